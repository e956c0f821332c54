"""Processes that died: who is alive, and what becomes of the holds of who is not.

Every serving process is an *owner* with a lease that it renews; holds name their owner, so one small row keeps any
number of holds alive. When a lease is not renewed any more, the owner's holds are settled from their last recorded
progress, in the ledger's own way, and the usage records are marked `review`: the charge is what is known to be owed,
the operator sees that the outcome is not. Should the owner turn out to be alive after all (a machine that slept), its
own settlement, when it comes, takes the place of the review.

That a lease has run out is not read off a clock. Clocks of hosts differ, and jump. A lease is a value that changes when
it is renewed, and it has run out for whoever has looked at it for `LEASE_MS` and has not seen it change (`Sightings`).

Looking for the dead, and tidying up, is done by one process for all: the one that has the lease named `UPKEEP`. When
two believe for a moment that they have it, no harm is done; all of this may be done twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from penstock.clock import Clock
from penstock.db.ledger import Settlement, commit_group
from penstock.db.program import Program, Row, Run, Statement, any_of, fetch, run
from penstock.db.records import UsageRecord
from penstock.db.schema import holds, leases, owners
from penstock.db.workers import DROP_WORKERS_OF
from penstock.money.books import Need

LEASE_MS = 15_000
NO_SLIPS: Mapping[str, Settlement] = MappingProxyType({})
UPKEEP = "upkeep"  # the lease of the process that does the chores for all

_owner_names = tuple(column.name for column in owners.columns)
_owner = insert(owners).values({name: bindparam(name) for name in _owner_names})
WRITE_OWNER = Statement(_owner, *_owner_names)
RENEW_OWNER = Statement(
    _owner.on_conflict_do_update(index_elements=[owners.c.id], set_={"lease_until_ms": _owner.excluded.lease_until_ms}),
    *_owner_names,
)
REQUESTS_OF = Statement(select(holds.c.request_id).where(holds.c.owner_id == bindparam("owner")).distinct(), "owner")
ALL_OWNERS = Statement(select(owners.c.id, owners.c.host, owners.c.pid, owners.c.lease_until_ms))
LEASE_OF = Statement(
    select(owners.c.lease_until_ms).where(owners.c.id == bindparam("owner")).with_for_update(), "owner"
)
DROP_OWNER = Statement(delete(owners).where(owners.c.id == bindparam("owner")), "owner")
NOTE_PROGRESS = Statement(
    update(holds)
    .where(holds.c.request_id == bindparam("request"), holds.c.position == bindparam("place"))
    .values(progress=bindparam("owed"), progress_tokens=bindparam("tokens")),
    "owed", "tokens", "request", "place",
)  # fmt: skip
HOLDS_OF = Statement(
    select(holds.c.request_id, holds.c.position, holds.c.progress, holds.c.progress_tokens, holds.c.context)
    .where(holds.c.owner_id == bindparam("owner"))
    .order_by(holds.c.request_id, holds.c.position),
    "owner",
)
HOLDS_FOR = Statement(
    select(holds.c.request_id, holds.c.position, holds.c.progress, holds.c.progress_tokens, holds.c.context)
    .where(any_of(holds.c.request_id, "requests"))
    .order_by(holds.c.request_id, holds.c.position),
    "requests",
)
OVERDUE = Statement(
    select(holds.c.request_id, holds.c.position, holds.c.progress, holds.c.progress_tokens, holds.c.context)
    .where(holds.c.expires_ms <= bindparam("now"), holds.c.owner_id.not_in(select(owners.c.id)))
    .order_by(holds.c.request_id, holds.c.position),
    "now",
)

LEASE_NAMED = Statement(select(leases.c.holder, leases.c.until_ms).where(leases.c.name == bindparam("lease")), "lease")
_lease_names = tuple(column.name for column in leases.columns)
_lease = insert(leases).values({name: bindparam(name) for name in _lease_names})
TAKE_LEASE = Statement(
    _lease.on_conflict_do_update(
        index_elements=[leases.c.name], set_={"holder": _lease.excluded.holder, "until_ms": _lease.excluded.until_ms}
    ),
    *_lease_names,
)


@dataclass(frozen=True, slots=True)
class Owner:
    """A serving process as the store knows it."""

    id: str
    host: str
    pid: int
    lease_until_ms: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Which owner has it, and until when by that owner's clock: for others a value that changes."""

    holder: str
    until_ms: int


class Sightings:
    """Leases as one process has seen them, timed by its own monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[object, float]] = {}

    def __repr__(self) -> str:
        return f"Sightings({len(self._seen)} leases)"

    def silent(self, found: Mapping[str, object]) -> set[str]:
        """Look at leases, by name: the names of those that were not renewed while this process was looking."""
        now_s = self._clock.monotonic()
        before, self._seen = self._seen, {}
        for name, lease in found.items():
            last, since_s = before.get(name, (None, now_s))
            self._seen[name] = (lease, since_s if last == lease else now_s)
        return {name for name, (_, since_s) in self._seen.items() if now_s - since_s >= LEASE_MS / 1000}

    def forget(self) -> None:
        """The store was away: nobody could renew, and silence meant nothing."""
        self._seen.clear()


def register(owner: Owner, now_ms: int) -> Program[None]:
    """Enter a process before it takes its first hold."""
    yield from run(WRITE_OWNER, owner.id, owner.host, owner.pid, now_ms, owner.lease_until_ms)


def renew(owner: str, progress: list[tuple[int, int, str]], now_ms: int) -> Program[None]:
    """Stay alive for another lease, and note how far open holds have come: `(owed, tokens, request id)` each.

    A process that was buried alive is entered again, or nobody would look after its next holds should it die. Where it
    runs is not written then: its lease alone speaks for it.
    """
    yield from run(RENEW_OWNER, owner, "", 0, now_ms, now_ms + LEASE_MS)
    if progress:
        yield Run(NOTE_PROGRESS, [(*each, 0) for each in progress])


def all_owners() -> Program[list[Owner]]:
    """Every process that has registered and not left."""
    return [Owner(*row) for row in (yield from fetch(ALL_OWNERS))]


def lease_named(name: str) -> Program[Lease | None]:
    """Who has the lease of this name, or had it last."""
    rows = yield from fetch(LEASE_NAMED, name)
    return Lease(*rows[0]) if rows else None


def take_lease(name: str, owner: str, *, seen: Lease | None, now_ms: int) -> Program[bool]:
    """Take a lease, or keep it for longer; False when it is not, any more, as it was `seen`."""
    if (yield from lease_named(name)) != seen:
        return False
    yield from run(TAKE_LEASE, name, owner, now_ms + LEASE_MS)
    return True


def bury(
    owner: str, now_ms: int, *, lease_until_ms: int | None = None, slips: Mapping[str, Settlement] = NO_SLIPS
) -> Program[int | None]:
    """Settle what a dead owner left open, by its slips where there are any, and forget it; how many requests that were.

    Whoever took it for dead says by which lease: an owner that has renewed it meanwhile is left alone, which is None.
    """
    if lease_until_ms is not None and (yield from fetch(LEASE_OF, owner)) != [(lease_until_ms,)]:
        return None
    settled = yield from _settle((yield from fetch(HOLDS_OF, owner)), now_ms, slips)
    yield from run(DROP_WORKERS_OF, owner)
    yield from run(DROP_OWNER, owner)
    return settled


def requests_of(owner: str) -> Program[set[str]]:
    """The requests that a process holds something for."""
    return {row[0] for row in (yield from fetch(REQUESTS_OF, owner))}


def settle_forgotten(requests: list[str], now_ms: int) -> Program[int]:
    """Settle holds that their own process knows nothing of; how many of them were still there."""
    return (yield from _settle((yield from fetch(HOLDS_FOR, sorted(requests))), now_ms))


def settle_overdue(now_ms: int) -> Program[int]:
    """Settle holds past their latest possible end whose process is not known; how many. Finding one is a defect."""
    return (yield from _settle((yield from fetch(OVERDUE, now_ms)), now_ms))


def _settle(rows: list[Row], now_ms: int, slips: Mapping[str, Settlement] = NO_SLIPS) -> Program[int]:
    settlements = _last_words(rows, now_ms, slips)
    if settlements:
        yield from commit_group(settlements, now_ms)
    return len(settlements)


def _last_words(rows: list[Row], now_ms: int, slips: Mapping[str, Settlement]) -> list[Settlement]:
    """A settlement for each request among these hold rows: its own, or from the furthest progress that was recorded."""
    contexts: dict[str, str] = {}
    furthest: dict[str, tuple[int, int]] = {}
    for request, position, owed, tokens, context in rows:
        if position == 0:
            contexts[request] = context
        furthest[request] = max(furthest.get(request, (0, 0)), (owed, tokens))
    return [
        slips.get(id) or _epitaph(id, contexts[id], owed, tokens, now_ms) for id, (owed, tokens) in furthest.items()
    ]


def context_of(need: Need, record: UsageRecord) -> str:
    """What `bury` must know of a request, as JSON, written with its hold."""
    known = [record.surface, record.dialect, record.model, record.provider, record.price_version, record.streamed]
    who = [need.account, need.keys, need.lane, need.asset, need.value_rate]
    return msgspec.json.encode([who, known, record.input_tokens, record.created_ms]).decode()


def _epitaph(request: str, context: str, owed: int, tokens: int, now_ms: int) -> Settlement:
    (account, keys, lane, asset, value_rate), known, input_tokens, created_ms = msgspec.json.decode(context)
    surface, dialect, model, provider, price_version, streamed = known
    record = UsageRecord(
        request_id=request,
        account_id=account,
        credential_id=keys[0],
        surface=surface,
        dialect=dialect,
        model=model,
        provider=provider,
        attempts=1,
        lane=lane,
        asset=asset,
        price_version=price_version,
        input_tokens=input_tokens if owed else 0,
        cached_tokens=0,
        output_tokens=tokens,
        reasoning_tokens=0,
        total_tokens=(input_tokens if owed else 0) + tokens,
        estimated=1,
        streamed=streamed,
        status=0,
        ended="crash",
        created_ms=created_ms,
        first_byte_us=None,
        total_us=(now_ms - created_ms) * 1000,
        state="review",
    )
    need = Need(account, tuple(keys), lane, asset, value_rate, want=0, least=0)
    return Settlement(request, need, owed, record, once=True)
