"""Usage: one record for each call that held money, and what they come to.

A record is `final`, or in `review` when its process died before it knew how the call ended.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from penstock.db.records import UsageRecord
from penstock.db.store import LONG_READ_S, READ_S
from penstock.db.usage import UsageFilter, UsageTotal, usage_page, usage_totals
from penstock.operations.actor import Actor
from penstock.operations.choices import Lane, State
from penstock.operations.office import Office
from penstock.operations.values import Amount, Listing, amount, parse_instant, require_filled, show_instant, within

MOST_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class ToolUseView:
    """A tool that the gateway had run for a call: in which of its rounds, for how long, and the size of the result.
    `ok` is false when the tool failed."""

    name: str
    round: int
    ms: int
    ok: bool
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """One call. `amount` is what was collected in units of `asset` (nano-USD, or tokens of a contract); `cost` is its
    worth.

    `uncollected` is what the call cost beyond the money there was. `estimated` says that no upstream reported its
    usage. `input_tokens` include `cached_tokens`, `output_tokens` include `reasoning_tokens`. `key` is the key's id.
    """

    request: str
    created: str
    account: str
    key: str
    surface: str
    dialect: str
    model: str
    provider: str
    attempts: int
    lane: str
    asset: str
    amount: int
    cost: Amount
    uncollected: int
    price_version: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    estimated: bool
    streamed: bool
    status: int
    ended: str
    state: str
    first_byte_us: int | None
    total_us: int
    tools: tuple[ToolUseView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """All calls of one model that one lane paid for in one asset. `estimated` and `review` count calls."""

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
    cost: Amount
    uncollected: int
    estimated: int
    review: int


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """What the calls come to: in all, and by model and lane, the dearest first."""

    requests: int
    total_tokens: int
    cost: Amount
    data: tuple[UsageSum, ...]


async def list_usage(
    office: Office,
    actor: Actor,
    *,
    account: str | None = None,
    key: str | None = None,
    model: str | None = None,
    lane: Lane | None = None,
    state: State | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Listing[UsageView]:
    """List calls, newest first, `limit` (1 to 1000) at a time; `cursor` is the `next` of the page before.

    `since` is included, `until` is not.
    """
    within(limit, "limit", most=MOST_RECORDS)
    require_filled(cursor=cursor)
    wanted = _filter(
        actor, account=account, key=key, model=model, lane=lane, state=state, since=since, until=until, before=cursor
    )
    await office.store.settled()
    within_s = READ_S if wanted.is_near else LONG_READ_S
    found = await office.store.read(usage_page(wanted, limit + 1), within_s=within_s)
    more = found[limit - 1].request_id if len(found) > limit else None
    return Listing(tuple(map(_view, found[:limit])), more)


async def summarize_usage(
    office: Office,
    actor: Actor,
    *,
    account: str | None = None,
    key: str | None = None,
    model: str | None = None,
    lane: Lane | None = None,
    state: State | None = None,
    since: str | None = None,
    until: str | None = None,
) -> UsageSummary:
    """Add up all calls that match, by model and lane."""
    wanted = _filter(actor, account=account, key=key, model=model, lane=lane, state=state, since=since, until=until)
    await office.store.settled()
    sums = tuple(map(_sum, await office.store.read(usage_totals(wanted), within_s=LONG_READ_S)))
    return UsageSummary(
        requests=sum(each.requests for each in sums),
        total_tokens=sum(each.total_tokens for each in sums),
        cost=amount(sum(each.cost.nano for each in sums)),
        data=sums,
    )


def _filter(
    actor: Actor, *, account: str | None, since: str | None, until: str | None, **rest: str | None
) -> UsageFilter:
    """What was asked for, within what the actor may see. A single account is found by its index."""
    require_filled(account=account, key=rest["key"], model=rest["model"])
    accounts = actor.sees
    if account is not None:
        actor.check_sees(account)
        accounts = None
    elif accounts is not None and len(accounts) == 1:
        (account,), accounts = accounts, None
    return UsageFilter(
        account=account,
        accounts=None if accounts is None else tuple(sorted(accounts)),
        since_ms=parse_instant(since, "since"),
        until_ms=parse_instant(until, "until"),
        **rest,
    )


def _view(record: UsageRecord) -> UsageView:
    return UsageView(
        request=record.request_id,
        created=show_instant(record.created_ms),
        account=record.account_id,
        key=record.credential_id,
        surface=record.surface,
        dialect=record.dialect,
        model=record.model,
        provider=record.provider,
        attempts=record.attempts,
        lane=record.lane,
        asset=record.asset,
        amount=record.amount,
        cost=amount(record.cost_nano),
        uncollected=record.uncollected,
        price_version=record.price_version,
        input_tokens=record.input_tokens,
        cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens,
        reasoning_tokens=record.reasoning_tokens,
        total_tokens=record.total_tokens,
        estimated=bool(record.estimated),
        streamed=bool(record.streamed),
        status=record.status,
        ended=record.ended,
        state=record.state,
        first_byte_us=record.first_byte_us,
        total_us=record.total_us,
        tools=tuple(ToolUseView(*each) for each in json.loads(record.tools or "[]")),
    )


def _sum(total: UsageTotal) -> UsageSum:
    return UsageSum(
        model=total.model,
        lane=total.lane,
        asset=total.asset,
        requests=total.requests,
        input_tokens=total.input_tokens,
        cached_tokens=total.cached_tokens,
        output_tokens=total.output_tokens,
        reasoning_tokens=total.reasoning_tokens,
        total_tokens=total.total_tokens,
        amount=total.amount,
        cost=amount(total.cost_nano),
        uncollected=total.uncollected,
        estimated=total.estimated,
        review=total.review,
    )
