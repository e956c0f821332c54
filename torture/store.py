"""The store of a history: furnished with accounts, money and keys before, read as a whole afterwards.

Everything goes through the store of the gateway itself, opened beside it as the command line does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, func, select

from penstock.app import open_office
from penstock.config_file import load
from penstock.db.accounts import Account, insert_account
from penstock.db.credentials import NewCredential, insert_credential
from penstock.db.journal import Difference, grant, verify
from penstock.db.program import Program, Statement, fetch
from penstock.db.schema import holds, lots, owners, transfers
from penstock.money.units import USD
from penstock.operations.actor import LOCAL
from penstock.operations.keys import mint
from penstock.operations.office import Office
from penstock.operations.usage import UsageView, list_usage
from torture.farm import CONTRACT, SECRETS

PER_MINUTE = 1_000_000_000  # the rate is counted, and out of reach
CHARGES = Statement(
    select(transfers.c.reference, transfers.c.source, transfers.c.amount).where(transfers.c.kind == bindparam("kind")),
    "kind",
)
OPEN_HOLDS = Statement(select(func.count(holds.c.request_id.distinct())))
OWNERS = Statement(select(func.count()).select_from(owners))
REMAINING = Statement(select(lots.c.account_id, func.sum(lots.c.remaining)).group_by(lots.c.account_id))


@dataclass(frozen=True, slots=True)
class Want:
    """A key to make. Without an `account` it gets one of its own, with this money; `parent` is another key's id."""

    lane: str = "credits"
    account: str | None = None
    usd_nano: int = 0
    tokens: int = 0
    parent: str | None = None
    limit_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key that was made. Keys of the lane `contract` call the forward surface, the others the router surface."""

    id: str
    secret: str
    account: str
    lane: str

    @property
    def path(self) -> str:
        return "/api/v1/gateway/v1" if self.lane == "contract" else "/api/openai/v1"


@dataclass(frozen=True, slots=True)
class Charge:
    """What one request took from one lot, by the journal."""

    lot: str
    amount: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that the store says at the end. `records` are by key, `charges` by request, `remaining` by account."""

    records: dict[str, list[UsageView]]
    charges: dict[str, list[Charge]]
    remaining: dict[str, int]
    holds: int
    owners: int
    differences: list[Difference]

    def troubles(self) -> list[str]:
        """What is wrong with the store as a whole, when nothing should be open any more."""
        found = [f"the books differ: {each}" for each in self.differences]
        if self.holds:
            found.append(f"{self.holds} holds are left")
        if self.owners:
            found.append(f"{self.owners} processes are still registered")
        return found


class Till:
    """The store of one history."""

    def __init__(self, office: Office) -> None:
        self._office = office

    def __repr__(self) -> str:
        return f"Till({self._office.store!r})"

    async def keys(self, wants: Sequence[Want]) -> list[Key]:
        """Make keys, and the accounts and money that belong to them, in one transaction."""
        return await self._office.store.write(self._furnish(wants))

    async def open_holds(self) -> int:
        """How many requests hold money now."""
        return await self._count(OPEN_HOLDS)

    async def registered(self) -> int:
        """How many processes are entered as serving."""
        return await self._count(OWNERS)

    async def quiet(self, *, holds: int, owners: int, within_s: float) -> bool:
        """Wait until no more than so many holds are open and processes registered; whether that came about."""

        async def look() -> bool:
            return await self.open_holds() <= holds and await self.registered() <= owners

        return await comes_about(look, within_s)

    async def outcome(self) -> Outcome:
        """Everything the store says."""
        read = self._office.store.read
        charges: dict[str, list[Charge]] = {}
        for request, source, amount in await read(_rows(CHARGES, "charge")):
            charges.setdefault(request, []).append(Charge(source, int(amount)))
        return Outcome(
            records=await self._records(),
            charges=charges,
            remaining={account: int(total) for account, total in await read(_rows(REMAINING))},
            holds=await self.open_holds(),
            owners=await self.registered(),
            differences=await read(verify()),
        )

    async def _records(self) -> dict[str, list[UsageView]]:
        """Usage records by key, oldest first."""
        found: dict[str, list[UsageView]] = {}
        cursor = None
        while True:
            page = await list_usage(self._office, LOCAL, limit=1000, cursor=cursor)
            for record in page.data:
                found.setdefault(record.key, []).insert(0, record)
            cursor = page.next
            if cursor is None:
                return found

    async def _count(self, statement: Statement) -> int:
        ((count,),) = await self._office.store.read(_rows(statement))
        return int(count)

    def _furnish(self, wants: Sequence[Want]) -> Program[list[Key]]:
        made = []
        for want in wants:
            account = want.account or (yield from self._account(want))
            made.append((yield from self._key(want, account)))
        return made

    def _account(self, want: Want) -> Program[str]:
        ids, now_ms = self._office.ids, self._office.clock.now_ms()
        account = ids.new("acc")
        yield from insert_account(Account(account, "team", "torture", now_ms))
        for lane, asset, amount in (("credits", USD, want.usd_nano), ("contract", CONTRACT, want.tokens)):
            if amount:
                yield from grant(
                    lot_id=ids.new("lot"),
                    account=account,
                    lane=lane,
                    asset=asset,
                    amount=amount,
                    expires_ms=None,
                    reference="torture",
                    now_ms=now_ms,
                )
        return account

    def _key(self, want: Want, account: str) -> Program[Key]:
        asked = NewCredential(
            id=self._office.ids.new("key"),
            kind="inference" if want.lane == "contract" else "team",
            name="torture",
            display="",
            digest=None,
            user_id=None,
            account_id=account,
            scopes=("inference",),
            created_ms=self._office.clock.now_ms(),
            requests_per_minute=PER_MINUTE,
            parent_id=want.parent,
            limit_nano=want.limit_nano,
        )
        secret, new = mint(self._office, asked)
        yield from insert_credential(new)
        return Key(new.id, secret, account, want.lane)


@asynccontextmanager
async def till(config: Path) -> AsyncIterator[Till]:
    """The store that a configuration file names."""
    async with open_office(load(config, SECRETS)) as office:
        yield Till(office)


async def comes_about(look: Callable[[], Awaitable[bool]], within_s: float) -> bool:
    """Look again and again, until there is something to see or the time is over; whether there was."""
    try:
        async with asyncio.timeout(within_s):
            while not await look():  # noqa: ASYNC110 -- nothing announces it
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


def _rows(statement: Statement, *values: str) -> Program[list[tuple[Any, ...]]]:
    return [tuple(row) for row in (yield from fetch(statement, *values))]
