"""Reading what was used: usage records by page, their totals, and the lots of an account. Nothing is written here.

Filters that are not set are left out of the statement rather than tested in it, so that the index of an account's
records serves the common question. There is one statement for each set of filters, made when it is first asked for.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from functools import cache

from sqlalchemy import ColumnElement, Integer, bindparam, func, select

from penstock.db.program import Program, Statement, Value, any_of, fetch
from penstock.db.records import UsageRecord
from penstock.db.schema import lots, usage_records

_columns = usage_records.c
_record_names = tuple(column.name for column in _columns)
_conditions: dict[str, ColumnElement[bool]] = {
    "account": _columns.account_id == bindparam("account"),
    "accounts": any_of(_columns.account_id, "accounts"),
    "key": _columns.credential_id == bindparam("key"),
    "model": _columns.model == bindparam("model"),
    "lane": _columns.lane == bindparam("lane"),
    "state": _columns.state == bindparam("state"),
    "since_ms": _columns.created_ms >= bindparam("since_ms"),
    "until_ms": _columns.created_ms < bindparam("until_ms"),
    "before": _columns.request_id < bindparam("before"),
}
_lot_columns = tuple(column for column in lots.columns if column.name != "account_id")
LOTS_OF = Statement(
    select(*_lot_columns)
    .where(lots.c.account_id == bindparam("account"))
    .order_by(lots.c.expires_ms.is_(None), lots.c.expires_ms, lots.c.id),
    "account",
)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which records are meant; what is None does not restrict. `until_ms` is not included, `since_ms` is."""

    account: str | None = None
    accounts: tuple[str, ...] | None = None
    key: str | None = None
    model: str | None = None
    lane: str | None = None
    state: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    before: str | None = None

    def given(self) -> dict[str, Value]:
        """The restrictions there are, by name."""
        values = zip((field.name for field in fields(self)), astuple(self), strict=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value is not None}

    @property
    def is_near(self) -> bool:
        """Whether an index leads to the first of the records. Else all of an account's, or all there are, may have to
        be looked through for a few or for none."""
        return self.given().keys() <= {"account", "before"}


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """All records of one model that one lane paid for in one asset, added up. `amount` is in units of the asset."""

    model: str
    lane: str
    asset: str
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    amount: int
    cost_nano: int
    uncollected: int
    estimated: int
    review: int


@dataclass(frozen=True, slots=True)
class LotRow:
    """A lot as it stands."""

    id: str
    lane: str
    asset: str
    granted: int
    remaining: int
    held: int
    expires_ms: int | None
    created_ms: int


def usage_page(wanted: UsageFilter, most: int) -> Program[list[UsageRecord]]:
    """The newest `most` records that match, newest first."""
    given = wanted.given()
    rows = yield from fetch(_page(frozenset(given)), *_in_order(given), most)
    return [UsageRecord(**dict(zip(_record_names, row, strict=True))) for row in rows]


def usage_totals(wanted: UsageFilter) -> Program[list[UsageTotal]]:
    """The sums over every record that matches, by model, lane and asset; the dearest first."""
    given = wanted.given()
    rows = yield from fetch(_totals(frozenset(given)), *_in_order(given))
    return [UsageTotal(*row[:3], *map(int, row[3:])) for row in rows]


def lots_of(account: str) -> Program[list[LotRow]]:
    """Every lot of an account, empty and expired ones too, in burn order."""
    return [LotRow(*row) for row in (yield from fetch(LOTS_OF, account))]


@cache
def _page(names: frozenset[str]) -> Statement:
    most = bindparam("most", type_=Integer)
    found = select(usage_records).where(*(_conditions[name] for name in sorted(names)))
    return Statement(found.order_by(_columns.request_id.desc()).limit(most), *sorted(names), "most")


@cache
def _totals(names: frozenset[str]) -> Statement:
    sums = (
        _columns.input_tokens, _columns.cached_tokens, _columns.output_tokens, _columns.reasoning_tokens,
        _columns.total_tokens, _columns.amount, _columns.cost_nano, _columns.uncollected, _columns.estimated,
    )  # fmt: skip
    review = func.count().filter(_columns.state == bindparam("in_review", "review"))
    group = (_columns.model, _columns.lane, _columns.asset)
    found = select(*group, func.count(), *(func.sum(column) for column in sums), review)
    found = found.where(*(_conditions[name] for name in sorted(names))).group_by(*group)
    return Statement(found.order_by(func.sum(_columns.cost_nano).desc(), *group), *sorted(names))


def _in_order(given: dict[str, Value]) -> list[Value]:
    return [given[name] for name in sorted(given)]
