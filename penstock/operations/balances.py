"""Balances: what an account has, lane by lane, and how money comes in.

Credits are USD. A contract lot is a number of tokens at the contract's locked price that ends when the contract does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from penstock.catalogue import Contract
from penstock.db.accounts import find_account
from penstock.db.journal import grant
from penstock.db.program import Program
from penstock.db.usage import LotRow, lots_of
from penstock.errors import InvalidRequest, NotFound
from penstock.money.units import USD
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.once import done_once
from penstock.operations.values import LARGEST_AMOUNT, Amount, amount, parse_usd, show_instant, within


@dataclass(frozen=True, slots=True)
class CreditsView:
    """Prepaid USD. `held` is set aside for calls under way; `available` is the rest."""

    total: Amount
    held: Amount
    available: Amount


@dataclass(frozen=True, slots=True)
class LotView:
    """Tokens of one contract, bought at once. Lots are used up in the order in which they expire."""

    id: str
    contract: str
    granted: int
    remaining: int
    held: int
    available: int
    created: str
    expires: str | None
    expired: bool


@dataclass(frozen=True, slots=True)
class BalanceView:
    """What an account has on each lane."""

    account: str
    credits: CreditsView
    contracts: tuple[LotView, ...]


@dataclass(frozen=True, slots=True)
class GrantView:
    """What was put into an account: `usd` on the lane `credits`, or `tokens` of a contract on the lane `contract`."""

    lot: str
    account: str
    lane: str
    usd: Amount | None
    contract: str | None
    tokens: int | None
    expires: str | None
    reference: str


@dataclass(frozen=True, slots=True)
class _Gift:
    """A grant as it is asked for."""

    account: str
    usd: str | None
    contract: str | None
    tokens: int | None
    reference: str


async def show_balance(office: Office, actor: Actor, *, account: str) -> BalanceView:
    """Show what an account has: credits, and every contract lot, used up and expired ones too."""
    actor.check_sees(account)
    await office.store.settled()
    rows = await office.store.read(_lots(account))
    now_ms = office.clock.now_ms()
    lots = tuple(_lot(row, now_ms) for row in rows if row.lane == "contract")
    return BalanceView(account, _credits([row for row in rows if row.lane == "credits"], now_ms), lots)


async def grant_balance(
    office: Office,
    actor: Actor,
    *,
    account: str,
    usd: str | None = None,
    contract: str | None = None,
    tokens: int | None = None,
    reference: str = "",
    idempotency_key: str | None = None,
) -> GrantView:
    """Put money into an account: an amount of USD, or tokens of a contract, which end when the contract does.

    `reference` is kept with it in the journal: an invoice, a name, a reason. With an idempotency key the same request
    again, within 24 hours, grants nothing and answers as the first; another request is refused.
    """
    actor.check_manages(account)
    gift = _Gift(account, usd, contract, tokens, reference)
    lot, now_ms = office.ids.new("lot"), office.clock.now_ms()
    granting = _grant(office, gift, lot=lot, now_ms=now_ms)
    asked = {"operation": "balances.grant", **asdict(gift)}
    return await office.store.write(
        done_once(actor, idempotency_key, asked, granting, GrantView, id=lot, now_ms=now_ms)
    )


def _grant(office: Office, gift: _Gift, *, lot: str, now_ms: int) -> Program[GrantView]:
    found, size = _what(office, gift)
    lane, asset, expires_ms = ("contract", found.id, found.expires_ms) if found else ("credits", USD, None)
    granted = yield from grant(
        lot_id=lot,
        account=gift.account,
        lane=lane,
        asset=asset,
        amount=size,
        expires_ms=expires_ms,
        reference=gift.reference,
        now_ms=now_ms,
    )
    if not granted:
        raise NotFound("There is no such account.")
    money, count = (None, size) if found else (amount(size), None)
    return GrantView(lot, gift.account, lane, money, gift.contract, count, show_instant(expires_ms), gift.reference)


def _what(office: Office, gift: _Gift) -> tuple[Contract | None, int]:
    """What is granted: nano-USD when there is no contract, else its tokens."""
    if gift.usd is not None and gift.contract is None and gift.tokens is None:
        return None, parse_usd(gift.usd, "usd")
    if gift.usd is None and gift.contract is not None and gift.tokens is not None:
        return _contract(office, gift.contract), within(gift.tokens, "tokens", most=LARGEST_AMOUNT)
    raise InvalidRequest("Give either 'usd', or 'contract' and 'tokens'.", param="usd")


def _contract(office: Office, id: str) -> Contract:
    found = office.catalogue.contracts.get(id)
    if found is None:
        raise InvalidRequest(f"There is no contract '{id}'.", param="contract")
    if found.expires_ms <= office.clock.now_ms():
        raise InvalidRequest(f"The contract '{id}' has expired.", param="contract")
    return found


def _lots(account: str) -> Program[list[LotRow]]:
    if (yield from find_account(account)) is None:
        raise NotFound("There is no such account.")
    return (yield from lots_of(account))


def _credits(rows: list[LotRow], now_ms: int) -> CreditsView:
    alive = [row for row in rows if not _expired(row, now_ms)]
    total, held = sum(row.remaining for row in alive), sum(row.held for row in alive)
    return CreditsView(amount(total), amount(held), amount(total - held))


def _lot(row: LotRow, now_ms: int) -> LotView:
    expired = _expired(row, now_ms)
    return LotView(
        id=row.id,
        contract=row.asset,
        granted=row.granted,
        remaining=row.remaining,
        held=row.held,
        available=0 if expired else row.remaining - row.held,
        created=show_instant(row.created_ms),
        expires=show_instant(row.expires_ms),
        expired=expired,
    )


def _expired(row: LotRow, now_ms: int) -> bool:
    return row.expires_ms is not None and row.expires_ms <= now_ms
