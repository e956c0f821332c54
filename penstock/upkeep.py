"""The chores: what must be done again and again for the promises to hold. One list, one loop each.

    every   chore of each process
    0.25 s  write buffered log lines, measure the event loop's lag
    1 s     keep quiet streams alive with a comment; let answers go that a store keeps waiting
    5 s     renew this process's lease and note how far its calls have come

    every   chore that one process does for all on the store
    5 s     settle what dead processes left
    60 s    settle forgotten holds, empty expired lots, forget old answers

The common chores are done by who has the lease `UPKEEP`. Whoever finds it run out, or its holder gone, takes it over.
A chore that fails is logged and tried again the next time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from penstock.clock import Clock
from penstock.db import journal, ledger, recovery
from penstock.db.recovery import LEASE_MS, UPKEEP, Lease, Owner
from penstock.db.store import Store
from penstock.errors import StoreUnavailable
from penstock.log import FLUSH_S, RequestLog
from penstock.relay.hold import Holds
from penstock.relay.observe import Observer
from penstock.relay.relay import Relay

_logger = logging.getLogger("penstock.upkeep")


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every `every_s` seconds."""

    name: str
    every_s: float
    do: Callable[[], Awaitable[None]]


class Upkeep:
    """Does the chores of one serving process, from `start` to `stop`."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        owner: str,
        holds: Holds,
        relay: Relay,
        observer: Observer,
        log: RequestLog,
        quiet_s: float,
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._holds = holds
        self._relay = relay
        self._observer = observer
        self._log = log
        self._quiet_s = quiet_s
        self._tasks: list[asyncio.Task[None]] = []
        self.chores = [
            Chore("write the log", FLUSH_S, self._write_log),
            Chore("keep streams alive", 1.0, self._keep_alive),
            Chore("let answers go", 1.0, self._let_go),
            Chore("renew the lease", 5.0, self._renew),
            Chore("settle for dead processes", 5.0, self._common(self._bury_dead)),
            Chore("tidy the ledger", 60.0, self._common(self._tidy)),
        ]

    def __repr__(self) -> str:
        return f"Upkeep({', '.join(chore.name for chore in self.chores)})"

    async def start(self) -> None:
        """Register this process, settle what its predecessors left unless another sees to it, and begin."""
        now_ms = self._clock.now_ms()
        me = Owner(self._owner, host_identity(), os.getpid(), now_ms + LEASE_MS)
        await self._store.write(recovery.register(me, now_ms))
        await self._common(self._bury_dead)()
        self._tasks = [asyncio.create_task(self._repeat(chore), name=chore.name) for chore in self.chores]

    async def stop(self) -> None:
        """End the chores, settle what is still open, and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._store.settled()
            await self._store.write(recovery.bury(self._owner, self._clock.now_ms()))
        except StoreUnavailable:
            _logger.warning("the store is not there; another process will settle what is open here")
        self._log.flush()

    async def _repeat(self, chore: Chore) -> None:
        while True:
            due_s = self._clock.monotonic() + chore.every_s
            await asyncio.sleep(chore.every_s)
            self._observer.lagged(self._clock.monotonic() - due_s)
            try:
                await chore.do()
            except StoreUnavailable:
                _logger.warning("%s: the store is not there", chore.name)
            except Exception:
                _logger.exception("%s failed", chore.name)

    async def _write_log(self) -> None:
        self._log.flush()

    async def _keep_alive(self) -> None:
        for stream in list(self._relay.streams):
            stream.keep_alive(self._quiet_s)

    async def _let_go(self) -> None:
        self._holds.let_go()

    async def _renew(self) -> None:
        await self._store.write(recovery.renew(self._owner, self._holds.progress(), self._clock.now_ms()))

    def _common(self, do: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """A chore that is done for all: by this process when the common chores are its own to do."""

        async def do_on_duty() -> None:
            if await self._on_duty():
                await do()

        return do_on_duty

    async def _on_duty(self) -> bool:
        """Whether this process has the lease of the common chores. It keeps it, or takes it from one that is dead."""
        seen = await self._store.read(recovery.lease_named(UPKEEP))
        mine = seen is not None and seen.holder == self._owner
        if seen is not None and not mine and await self._is_held(seen):
            return False
        now_ms = self._clock.now_ms()
        taken = await self._store.write(recovery.take_lease(UPKEEP, self._owner, seen=seen, now_ms=now_ms))
        if taken and not mine:
            _logger.info("process %s (%d) does the common chores now", self._owner, os.getpid())
        return taken

    async def _is_held(self, lease: Lease) -> bool:
        here, now_ms = host_identity(), self._clock.now_ms()
        owners = {owner.id: owner for owner in await self._store.read(recovery.all_owners())}
        holder = owners.get(lease.holder)
        return lease.until_ms > now_ms and holder is not None and not is_dead(holder, here, now_ms)

    async def _bury_dead(self) -> None:
        here = host_identity()
        for owner in await self._store.read(recovery.all_owners()):
            if owner.id != self._owner and is_dead(owner, here, self._clock.now_ms()):
                lease = owner.lease_until_ms
                settled = await self._store.write(recovery.bury(owner.id, self._clock.now_ms(), lease_until_ms=lease))
                _logger.warning("process %s (%d) is gone; settled %d of its calls", owner.id, owner.pid, settled)

    async def _tidy(self) -> None:
        now_ms = self._clock.now_ms()
        forgotten = await self._store.write(recovery.settle_overdue(now_ms))
        if forgotten:
            _logger.error("%d holds were never closed: a defect; they are settled and under review", forgotten)
        await self._store.write(journal.expire_lots(now_ms))
        await self._store.write(ledger.forget_answers(now_ms))


def host_identity() -> str:
    """This host as far as process ids go: two containers on one machine are two hosts."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()}/{file.read().strip()}/{namespace}"
    except OSError:
        return socket.gethostname()


def is_dead(owner: Owner, here: str, now_ms: int) -> bool:
    """Whether a process has let its lease run out or, on this host, is seen to be gone."""
    if owner.lease_until_ms <= now_ms:
        return True
    if owner.host != here:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process: it is there
        return False
    return False
