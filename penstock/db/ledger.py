"""The ledger: how holds, settlements and grants reach the database, many in one transaction.

The gateway's requests do not talk to the database one by one. Whatever is waiting is taken as a group and committed
together (`commit_group`): load and lock the keys and lots concerned, let `money/books.py` decide each request in
turn, write what changed. One statement a kind, however many requests: on SQLite the write lock, on PostgreSQL the row
locks, taken in sorted order, make the group alone with its rows.

A hold is the rows of table `holds` with its request id, one for each lot it draws on; it exists from before the first
byte goes upstream until the settlement that deletes it. The deletion decides who settles: a request whose hold is
already gone has been settled, here or by recovery, and the usage record's primary key makes a second settlement
impossible even then. Crash recovery (`recover`) is nothing but settlements made from what the dead process had
written down.

    grant   grants  → lot:…          charge   lot:… → revenue          expiry   lot:… → expired
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from msgspec import Struct
from sqlalchemy import bindparam, delete, literal_column, null, select, update
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Fetch, Program, Row, Run, Statement, Together, any_of, each_of, fetch, run
from penstock.db.records import KeptAnswer, UsageRecord
from penstock.db.schema import credentials, holds, idempotency, lots, transfers, usage_records
from penstock.money.books import Books, Granted, Key, Lot, Need, Part, Refusal, Refused, Settled

REVENUE, GRANTS, EXPIRED = "revenue", "grants", "expired"
NEVER_SEEN: Row = ("", "", 0, 0)
NOTHING = (Part("", 0),)  # what a free call holds
IDEMPOTENCY_MS = 24 * 3600 * 1000


class Once(Struct, frozen=True, gc=False):
    """A request that must be answered and charged once: its idempotency key and the digest of its body."""

    key: str
    body_digest: str


class Replay(Struct, frozen=True, gc=False):
    """The request was seen before: `kept` is its answer; None while it is still running."""

    body_digest: str
    kept: KeptAnswer | None


class Entry(Struct, frozen=True, gc=False):
    """Let a request in that spends nothing: its keys must be valid, and it counts against their rate limits."""

    keys: tuple[str, ...]

    @property
    def need(self) -> Need:
        return Need("", self.keys, "", "", 0, want=0, least=0)


class Admission(Struct, frozen=True, gc=False):
    """Let a request in and set its money aside. `context` is what recovery needs to write its usage record (JSON)."""

    request_id: str
    need: Need
    owner_id: str
    expires_ms: int
    context: str
    once: Once | None = None


class Extension(Struct, frozen=True, gc=False):
    """Set more aside for an open hold and note how far it has come."""

    request_id: str
    need: Need
    owner_id: str
    expires_ms: int
    position: int
    progress: int
    progress_tokens: int


class Settlement(Struct, frozen=True, gc=False, array_like=True):
    """Close a hold: collect `owed` units, free the rest, keep the usage record."""

    request_id: str
    need: Need
    owed: int
    record: UsageRecord
    kept: KeptAnswer | None = None
    once: bool = False


Operation = Entry | Admission | Extension | Settlement
Outcome = Granted | Refused | Replay | Settled

_lot_columns = (
    lots.c.id,
    lots.c.account_id,
    lots.c.lane,
    lots.c.asset,
    lots.c.remaining,
    lots.c.held,
    lots.c.expires_ms,
)
_key_columns = (
    credentials.c.id,
    credentials.c.revoked_ms,
    credentials.c.expires_ms,
    credentials.c.requests_per_minute,
    credentials.c.limit_nano,
    credentials.c.spent_nano,
    credentials.c.held_nano,
    credentials.c.tat_us,
)

LOAD_KEYS = Statement(
    select(*_key_columns).where(each_of(credentials.c.id, "ids")).order_by(credentials.c.id).with_for_update(), "ids"
)
LOAD_LOTS = Statement(
    select(*_lot_columns)
    .where(each_of(lots.c.account_id, "accounts"), lots.c.remaining > literal_column("0"))
    .order_by(lots.c.expires_ms.is_(None), lots.c.expires_ms, lots.c.id)
    .with_for_update(),
    "accounts",
)
SAVE_KEY = Statement(
    update(credentials)
    .where(credentials.c.id == bindparam("key"))
    .values(
        spent_nano=bindparam("spent"),
        held_nano=bindparam("held"),
        tat_us=bindparam("tat"),
        last_used_ms=bindparam("used"),
    ),
    "spent", "held", "tat", "used", "key",
)  # fmt: skip
SAVE_LOT = Statement(
    update(lots)
    .where(lots.c.id == bindparam("lot"))
    .values(remaining=bindparam("left"), held=bindparam("set_aside")),
    "left", "set_aside", "lot",
)  # fmt: skip
SAVE_HELD = Statement(  # leaves alone the index of lots that have something remaining
    update(lots).where(lots.c.id == bindparam("lot")).values(held=bindparam("set_aside")), "set_aside", "lot"
)
CLOSE_HOLDS = Statement(
    delete(holds)
    .where(each_of(holds.c.request_id, "requests"))
    .returning(holds.c.request_id, holds.c.position, holds.c.lot_id, holds.c.amount, holds.c.value_nano),
    "requests",
)
OPEN_HOLDS = Statement(
    select(holds.c.request_id).where(each_of(holds.c.request_id, "requests"), holds.c.position == 0), "requests"
)
_hold_names = tuple(column.name for column in holds.columns)
_hold = insert(holds)
WRITE_HOLD = Statement(
    _hold.values({name: bindparam(name) for name in _hold_names}).on_conflict_do_update(
        index_elements=[holds.c.request_id, holds.c.lot_id],
        set_={
            "amount": holds.c.amount + _hold.excluded.amount,
            "value_nano": holds.c.value_nano + _hold.excluded.value_nano,
            "progress": _hold.excluded.progress,
            "progress_tokens": _hold.excluded.progress_tokens,
        },
    ),
    *_hold_names,
)
_transfer_names = ("source", "target", "asset", "amount", "kind", "reference", "created_ms")
WRITE_TRANSFER = Statement(
    transfers.insert().values({name: bindparam(name) for name in _transfer_names}), *_transfer_names
)
_usage_names = tuple(column.name for column in usage_records.columns)
WRITE_USAGE = Statement(usage_records.insert().values({name: bindparam(name) for name in _usage_names}), *_usage_names)
DROP_REVIEWED = Statement(delete(usage_records).where(usage_records.c.request_id == bindparam("request")), "request")
SEEN_USAGE = Statement(
    select(
        usage_records.c.request_id,
        usage_records.c.state,
        usage_records.c.amount,
        usage_records.c.cost_nano,
    ).where(each_of(usage_records.c.request_id, "requests")),
    "requests",
)
SEEN_KEYS = Statement(
    select(
        idempotency.c.credential_id,
        idempotency.c.key,
        idempotency.c.request_id,
        idempotency.c.body_digest,
        idempotency.c.state,
        idempotency.c.status,
        idempotency.c.headers,
        idempotency.c.answer,
    ).where(
        each_of(idempotency.c.credential_id, "credentials"),
        any_of(idempotency.c.key, "keys"),
        idempotency.c.expires_ms > bindparam("now"),
    ),
    "credentials", "keys", "now",
)  # fmt: skip
_once_names = ("credential_id", "key", "request_id", "body_digest", "state", "expires_ms")
_once = insert(idempotency)
REMEMBER_KEY = Statement(
    _once.values({name: bindparam(name) for name in _once_names}).on_conflict_do_update(
        index_elements=[idempotency.c.credential_id, idempotency.c.key],
        set_={
            "request_id": _once.excluded.request_id,
            "body_digest": _once.excluded.body_digest,
            "state": _once.excluded.state,
            "expires_ms": _once.excluded.expires_ms,
            "answer": null(),
        },
    ),
    *_once_names,
)
KEEP_ANSWER = Statement(
    update(idempotency)
    .where(idempotency.c.request_id == bindparam("request"))
    .values(
        state=bindparam("new_state"),
        status=bindparam("code"),
        headers=bindparam("head"),
        answer=bindparam("body"),
    ),
    "new_state", "code", "head", "body", "request",
)  # fmt: skip
FORGET_KEY = Statement(delete(idempotency).where(idempotency.c.request_id == bindparam("request")), "request")
FORGET_ANSWERS = Statement(delete(idempotency).where(idempotency.c.expires_ms <= bindparam("now")), "now")
WRITES = (WRITE_HOLD, WRITE_TRANSFER, WRITE_USAGE)
IDEMPOTENT_WRITES = (REMEMBER_KEY, KEEP_ANSWER, FORGET_KEY)


def commit_group(operations: Sequence[Operation], now_ms: int) -> Program[list[Outcome]]:
    """Carry out `operations` together; the outcomes, in their order. Settlements go first, for they free money."""
    kinds: dict[type[Operation], list[Any]] = {kind: [] for kind in (Settlement, Admission, Extension, Entry)}
    for operation in operations:
        kinds[type(operation)].append(operation)
    page = yield from _open_page(operations, kinds[Settlement], kinds[Admission], kinds[Extension], now_ms)
    settled = iter([page.settle(each) for each in kinds[Settlement]])
    outcomes: list[Outcome] = []
    for operation in operations:
        if isinstance(operation, Settlement):
            outcomes.append(next(settled))
        elif isinstance(operation, Admission):
            outcomes.append(page.admit(operation))
        elif isinstance(operation, Extension):
            outcomes.append(page.extend(operation))
        else:
            outcomes.append(page.books.enter(operation.need) or Granted((), 0))
    yield from page.write()
    return outcomes


def _open_page(
    operations: Sequence[Operation],
    settlements: Sequence[Settlement],
    admissions: Sequence[Admission],
    extensions: Sequence[Extension],
    now_ms: int,
) -> Program[_Page]:
    """Load and lock what the operations touch: idempotency keys, keys, lots, holds, each in sorted order."""
    page = _Page(Books(now_ms))
    needs = [operation.need for operation in operations]
    onces = [(each.need.keys[0], each.once.key) for each in admissions if each.once is not None]
    closing = list(dict.fromkeys([each.request_id for each in settlements]))
    extending = [each.request_id for each in extensions]
    if onces:
        yield from page.look_up_keys(onces)
    keys = sorted({key for each in {need.keys for need in needs} for key in each})
    accounts = sorted({need.account for need in needs})
    queries = [Fetch(LOAD_KEYS, (keys,)), Fetch(LOAD_LOTS, (accounts,))]
    if closing:
        queries.append(Fetch(CLOSE_HOLDS, (closing,)))
    if extending:
        queries.append(Fetch(OPEN_HOLDS, (extending,)))
    found: list[list[Row]] = yield Together(queries)
    for row in found[0]:
        page.books.keys[row[0]] = Key(row[0], row[1] is not None, *row[2:])
    for row in found[1]:
        page.books.add(Lot(*row))
    if closing:
        yield from page.close_holds(closing, found[2])
    if extending:
        page.open = {row[0] for row in found[-1]}.difference(closing)
    return page


def forget_answers(now_ms: int) -> Program[None]:
    """Drop the answers kept for idempotency keys that are older than a day."""
    yield from run(FORGET_ANSWERS, now_ms)


def recall(credential: str, key: str, now_ms: int) -> Program[Replay | None]:
    """What was asked with an idempotency key of a credential, if that is less than a day ago."""
    for row in (yield from fetch(SEEN_KEYS, [credential], [key], now_ms)):
        _, _, _, digest, state, *kept = row
        return Replay(digest, None if state == "running" else KeptAnswer(*kept))
    return None


def keep(credential: str, once: Once, id: str, answer: KeptAnswer, now_ms: int) -> Program[None]:
    """Keep the answer to what was done, under `id`, in this very transaction."""
    yield from run(REMEMBER_KEY, credential, once.key, id, once.body_digest, "done", now_ms + IDEMPOTENCY_MS)
    yield from run(KEEP_ANSWER, "done", answer.status, answer.headers, answer.body, id)


def changed_books(books: Books) -> list[Run]:
    """What writes the keys and lots that a decision has changed."""
    keys = [
        (key.spent_nano, key.held_nano, key.tat_us, books.now_ms, key.id) for key in books.keys.values() if key.changed
    ]
    moved = [lot for lot in books.lots.values() if lot.changed]
    spent = [(lot.remaining, lot.held, lot.id) for lot in moved if lot.spent]
    held = [(lot.held, lot.id) for lot in moved if not lot.spent]
    changes = ((SAVE_KEY, keys), (SAVE_LOT, spent), (SAVE_HELD, held))
    return [Run(statement, rows) for statement, rows in changes if rows]


@dataclass(slots=True)
class _Page:
    """One transaction's worth: the books, what was found, and the rows to write."""

    books: Books
    open: set[str] = field(default_factory=set)
    closed: dict[str, list[Part]] = field(default_factory=dict)
    seen: dict[str, Row] = field(default_factory=dict)
    remembered: dict[tuple[str, str], Replay] = field(default_factory=dict)
    onces: dict[str, tuple[str, str]] = field(default_factory=dict)
    rows: dict[Statement, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))

    def write(self) -> Program[None]:
        if DROP_REVIEWED in self.rows:  # a reviewed record makes room for the final one
            yield Run(DROP_REVIEWED, self.rows[DROP_REVIEWED])
        changed = changed_books(self.books)
        yield Together(changed + [Run(each, self.rows[each]) for each in WRITES if each in self.rows])
        for statement in IDEMPOTENT_WRITES:
            if statement in self.rows:
                yield Run(statement, self.rows[statement])

    def close_holds(self, requests: list[str], rows: list[Row]) -> Program[None]:
        for request, _, lot, amount, value in sorted(rows, key=itemgetter(0, 1)):
            self.closed.setdefault(request, []).append(Part(lot, amount, value))
        if len(self.closed) == len(requests):
            return
        gone = [request for request in requests if request not in self.closed]
        if gone:
            self.seen = {row[0]: row for row in (yield from fetch(SEEN_USAGE, gone))}

    def look_up_keys(self, onces: list[tuple[str, str]]) -> Program[None]:
        credentials, keys = sorted({once[0] for once in onces}), sorted({once[1] for once in onces})
        for row in (yield from fetch(SEEN_KEYS, credentials, keys, self.books.now_ms)):
            credential, key, request, digest, state, status, headers, body = row
            kept = None if state == "running" else KeptAnswer(status, headers, body)
            self.remembered[credential, key] = Replay(digest, kept)
            self.onces[request] = credential, key

    def admit(self, asked: Admission) -> Outcome:
        before = self.remembered.get((asked.need.keys[0], asked.once.key)) if asked.once else None
        if before:
            return self.books.enter(asked.need) or before
        outcome = self.books.ask(asked.need)
        if isinstance(outcome, Granted):
            context, rows = asked.context, self.rows[WRITE_HOLD]
            for place, part in enumerate(outcome.parts or NOTHING):
                row = (asked.request_id, part.lot, place, part.amount, part.value, asked.owner_id)
                rows.append((*row, 0, 0, asked.expires_ms, context))
                context = ""
            if asked.once:
                self._remember(asked, asked.once)
        return outcome

    def extend(self, asked: Extension) -> Outcome:
        if asked.request_id not in self.open:
            return Refused(Refusal.GONE)
        outcome = self.books.more(asked.need)
        if isinstance(outcome, Granted):
            for place, part in enumerate(outcome.parts, asked.position):
                row = (asked.request_id, part.lot, place, part.amount, part.value, asked.owner_id)
                self.rows[WRITE_HOLD].append((*row, asked.progress, asked.progress_tokens, asked.expires_ms, ""))
        return outcome

    def settle(self, asked: Settlement) -> Outcome:
        """Collect and record. A request settled before is left as it is; one under review is settled for good."""
        request, need, books = asked.request_id, asked.need, self.books
        _, state, amount, cost = self.seen.get(request, NEVER_SEEN)
        if state == "final":
            return Settled((), 0, 0)
        settled = books.settle(need, self.closed.pop(request, ()), max(0, asked.owed - amount))
        asset, now_ms = need.asset, books.now_ms
        for part in settled.charges:
            amount += part.amount
            row = (f"lot:{part.lot}", REVENUE, asset, part.amount, "charge", request, now_ms)
            self.rows[WRITE_TRANSFER].append(row)
        if state == "review":
            self.rows[DROP_REVIEWED].append((request,))
        record = asked.record
        record.amount = amount
        record.cost_nano = cost + settled.value
        record.uncollected = settled.uncollected
        self.rows[WRITE_USAGE].append(record.row())
        self.seen[request] = (request, record.state, amount, record.cost_nano)
        if asked.once:
            self._keep(request, asked.kept)
        return settled

    def _remember(self, asked: Admission, once: Once) -> None:
        credential = asked.need.keys[0]
        until_ms = self.books.now_ms + IDEMPOTENCY_MS
        self.remembered[credential, once.key] = Replay(once.body_digest, None)
        self.rows[REMEMBER_KEY].append((credential, once.key, asked.request_id, once.body_digest, "running", until_ms))

    def _keep(self, request: str, kept: KeptAnswer | None) -> None:
        """Keep a good answer for the next 24 hours; forget a failed request, so that it may be tried again: the next
        try may be in this very group."""
        if once := self.onces.pop(request, None):
            before = self.remembered.pop(once)
            if kept:
                self.remembered[once] = Replay(before.body_digest, kept)
        if kept:
            state = "too_large" if kept.body is None else "done"
            self.rows[KEEP_ANSWER].append((state, kept.status, kept.headers, kept.body, request))
        else:
            self.rows[FORGET_KEY].append((request,))
