"""Whose keys are presented: those who ask at the same time are looked up together.

While the store is being asked for some, whoever comes waits, and is then asked for in one go with all others who did.
So a key that nobody remembers costs no round trip of its own when there are many of them: hundreds of agents that
start at once would otherwise queue for the few connections that read, until the last ones had waited too long.
What is known of a key, and how it is found, is in `credentials.py`; it is remembered in `access.py`, not here.
"""

from __future__ import annotations

import asyncio

from penstock.clock import Clock
from penstock.db.credentials import Identity, identify
from penstock.db.store import Store
from penstock.errors import StoreUnavailable

MOST = 500  # keys in one look-up: bounds how long it keeps the others waiting

Waiting = dict[str, list["asyncio.Future[Identity | None]"]]


class Identities:
    """Finds out whose key has a digest."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: Waiting = {}
        self._asking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Identities({len(self._waiting)} waiting)"

    async def of(self, digest: str) -> Identity | None:
        """Whose key this is; None for nobody's, or one that is no longer good. StoreUnavailable."""
        future: asyncio.Future[Identity | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(digest, []).append(future)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())  # not the caller's: he may be cancelled, others not
        return await future

    async def _ask(self) -> None:
        while self._waiting:
            some = self._take(MOST)
            try:
                found = await self._store.read(identify(sorted(some), self._clock.now_ms()))
            except StoreUnavailable:
                for each in (some, self._take(len(self._waiting))):  # nobody waits for two look-ups to fail
                    _refuse(each, StoreUnavailable())
            except Exception as error:
                _refuse(some, error)
            else:
                _tell(some, found)
        self._asking = None

    def _take(self, most: int) -> Waiting:
        """Those who came first."""
        return {digest: self._waiting.pop(digest) for digest in list(self._waiting)[:most]}


def _tell(asked: Waiting, found: dict[str, Identity]) -> None:
    for digest, futures in asked.items():
        for future in futures:
            if not future.done():
                future.set_result(found.get(digest))


def _refuse(asked: Waiting, error: Exception) -> None:
    for futures in asked.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)
