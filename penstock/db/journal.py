"""Money in, money gone, and whether the books add up: grants, expiry of lots, `penstock ledger verify`.

The journal (`transfers`) is append-only and double-entry; a lot's balance is kept beside it in the same transaction
and can always be computed again from it. That is what `verify` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Integer, bindparam, func, select, update

from penstock.db.ledger import EXPIRED, GRANTS, WRITE_TRANSFER
from penstock.db.program import Program, Run, Statement, fetch, run
from penstock.db.schema import accounts, credentials, holds, lots, transfers, usage_records

GRACE_MS = (
    24 * 3_600_000
)  # an expired lot is not spent from, and emptied only when no clock that is wrong by hours says so
EXPIRE_AT_ONCE = 500  # lots in one transaction, so that nobody waits long behind it

_lot_names = tuple(column.name for column in lots.columns)
WRITE_LOT = Statement(lots.insert().values({name: bindparam(name) for name in _lot_names}), *_lot_names)
ACCOUNT_EXISTS = Statement(select(accounts.c.id).where(accounts.c.id == bindparam("account")), "account")
EXPIRED_LOTS = Statement(
    select(lots.c.id, lots.c.asset, lots.c.remaining)
    .where(lots.c.expires_ms <= bindparam("now"), lots.c.remaining > bindparam("zero"))
    .where(lots.c.held == bindparam("zero"))
    .order_by(lots.c.id)
    .limit(bindparam("most", type_=Integer))
    .with_for_update(),
    "now", "zero", "most",
)  # fmt: skip
EMPTY_LOT = Statement(
    update(lots).where(lots.c.id == bindparam("lot")).values(remaining=bindparam("nothing")), "nothing", "lot"
)
ALL_LOTS = Statement(select(lots.c.id, lots.c.asset, lots.c.remaining, lots.c.held))
FLOWS_IN = Statement(
    select(transfers.c.target, transfers.c.asset, func.sum(transfers.c.amount)).group_by(
        transfers.c.target, transfers.c.asset
    )
)
FLOWS_OUT = Statement(
    select(transfers.c.source, transfers.c.asset, func.sum(transfers.c.amount)).group_by(
        transfers.c.source, transfers.c.asset
    )
)
HELD_BY_LOT = Statement(select(holds.c.lot_id, func.sum(holds.c.amount)).group_by(holds.c.lot_id))
CHARGED = Statement(
    select(transfers.c.asset, func.sum(transfers.c.amount))
    .where(transfers.c.kind == bindparam("kind"))
    .group_by(transfers.c.asset),
    "kind",
)
RECORDED = Statement(select(usage_records.c.asset, func.sum(usage_records.c.amount)).group_by(usage_records.c.asset))
SPENT_BY_KEY = Statement(
    select(usage_records.c.credential_id, func.sum(usage_records.c.cost_nano)).group_by(usage_records.c.credential_id)
)
ALL_KEYS = Statement(
    select(credentials.c.id, credentials.c.parent_id, credentials.c.spent_nano, credentials.c.held_nano)
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where the books do not add up: what is written there, and what the journal or the holds say."""

    what: str
    written: int
    computed: int


def ping() -> Program[None]:
    """Ask something small: it fails when the store cannot be read."""
    yield from fetch(ACCOUNT_EXISTS, "")


def grant(
    *,
    lot_id: str,
    account: str,
    lane: str,
    asset: str,
    amount: int,
    expires_ms: int | None,
    reference: str,
    now_ms: int,
) -> Program[bool]:
    """Open a lot of `amount` units. False, and nothing is written, when there is no such account."""
    if not (yield from fetch(ACCOUNT_EXISTS, account)):
        return False
    yield from run(WRITE_LOT, lot_id, account, lane, asset, amount, amount, 0, expires_ms, now_ms)
    yield from run(WRITE_TRANSFER, GRANTS, f"lot:{lot_id}", asset, amount, "grant", reference, now_ms)
    return True


def expire_lots(now_ms: int) -> Program[int]:
    """Empty the lots whose time has been over for a while and which no open hold draws on; how many there were. A part
    at a time: call again while there is something."""
    rows = yield from fetch(EXPIRED_LOTS, now_ms - GRACE_MS, 0, EXPIRE_AT_ONCE)
    if rows:
        yield Run(EMPTY_LOT, [(0, lot) for lot, _, _ in rows])
        gone = [(f"lot:{lot}", EXPIRED, asset, remaining, "expiry", lot, now_ms) for lot, asset, remaining in rows]
        yield Run(WRITE_TRANSFER, gone)
    return len(rows)


def verify() -> Program[list[Difference]]:
    """Compute every balance anew from the journal, the open holds and the usage records; the differences found."""
    found = yield from _verify_lots()
    charged = {asset: int(total) for asset, total in (yield from fetch(CHARGED, "charge"))}
    recorded = {asset: int(total) for asset, total in (yield from fetch(RECORDED)) if total}
    for asset in sorted(charged.keys() | recorded.keys()):
        found += _compare(f"usage records in {asset}", recorded.get(asset, 0), charged.get(asset, 0))
    found += yield from _verify_keys()
    return found


def _verify_lots() -> Program[list[Difference]]:
    balance: dict[tuple[str, str], int] = {}
    for target, asset, total in (yield from fetch(FLOWS_IN)):
        balance[target, asset] = balance.get((target, asset), 0) + int(total)
    for source, asset, total in (yield from fetch(FLOWS_OUT)):
        balance[source, asset] = balance.get((source, asset), 0) - int(total)
    held = {lot: int(total) for lot, total in (yield from fetch(HELD_BY_LOT)) if total}
    found = []
    for lot, asset, remaining, set_aside in (yield from fetch(ALL_LOTS)):
        found += _compare(f"remaining of {lot}", remaining, balance.pop((f"lot:{lot}", asset), 0))
        found += _compare(f"held of {lot}", set_aside, held.pop(lot, 0))
    for (name, asset), amount in balance.items():
        if name.startswith("lot:"):
            found += _compare(f"{name} in {asset}, a lot that does not exist", 0, amount)
    for lot, amount in held.items():
        found += _compare(f"held of {lot}, a lot that does not exist", 0, amount)
    return found


def _verify_keys() -> Program[list[Difference]]:
    """A key's spending is its own usage and that of the keys minted from it; what it holds ends with the last hold."""
    keys = {row[0]: row for row in (yield from fetch(ALL_KEYS))}
    spent = dict.fromkeys(keys, 0)
    for id, total in (yield from fetch(SPENT_BY_KEY)):
        holder: str | None = id
        while holder in keys:
            spent[holder] += int(total)
            holder = keys[holder][1]
    idle = not (yield from fetch(HELD_BY_LOT))
    found = []
    for id, _, written, held in keys.values():
        found += _compare(f"spent by {id}", written, spent[id])
        if idle:
            found += _compare(f"held by {id}", held, 0)
    return found


def _compare(what: str, written: int, computed: int) -> list[Difference]:
    return [] if written == computed else [Difference(what, written, computed)]
