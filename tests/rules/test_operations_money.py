"""Grants, balances, usage and the verification of the ledger, through `perform` on a real store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam

from penstock.app import open_office
from penstock.clock import Clock, iso
from penstock.config import Settings
from penstock.config_file import load
from penstock.db.ledger import Admission, Settlement
from penstock.db.program import Program, Statement, run
from penstock.db.records import UsageRecord
from penstock.db.schema import lots
from penstock.db.store import READ_S
from penstock.errors import InvalidRequest, NotFound, WrongState
from penstock.money.books import Granted, Need
from penstock.money.units import NANO, dollars
from penstock.operations.actor import LOCAL, Actor
from penstock.operations.index import operation_named, perform
from penstock.operations.office import Office
from penstock.operations.values import LARGEST_AMOUNT

(CONTRACT,) = load(None, {"PENSTOCK_DATABASE_URL": "sqlite://"}).contracts


@asynccontextmanager
async def team(settings: Settings) -> AsyncIterator[tuple[Office, str]]:
    """An office and an account, for examples that must not share one."""
    async with open_office(settings) as office:
        yield office, (await do(office, "accounts.create", name="Team")).id


async def do(office: Office, operation: str, /, actor: Actor = LOCAL, **arguments: Any) -> Any:
    return await perform(office, actor, operation_named(operation), arguments)


async def spend(
    office: Office,
    account: str,
    key: str,
    owed: int,
    *,
    model: str = "m",
    contract: bool = False,
    state: str = "final",
    created_ms: int = 1_000,
) -> str:
    """One call: a hold of what is owed, and its settlement, which nobody waits for."""
    lane, asset, rate = ("contract", CONTRACT.id, 200_000_000) if contract else ("credits", "USD", 1_000_000)
    request, need = office.ids.new("req"), Need(account, (key,), lane, asset, rate, want=owed, least=owed)
    asked = Admission(request, need, "own_test", office.clock.now_ms() + 60_000, "[]")
    assert isinstance(await office.store.commit(asked), Granted)
    record = UsageRecord(
        request_id=request, account_id=account, credential_id=key, surface="router", dialect="chat", model=model,
        provider="demo", attempts=1, lane=lane, asset=asset, price_version="v", input_tokens=10, cached_tokens=4,
        output_tokens=5, reasoning_tokens=2, total_tokens=15, estimated=0, streamed=1, status=200, ended="done",
        created_ms=created_ms, first_byte_us=7, total_us=9, state=state,
    )  # fmt: skip
    office.store.post(Settlement(request, need, owed, record))
    return request


async def test_usd_and_tokens_are_granted_and_shown_by_lane(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    await do(office, "balances.grant", account=account, usd="10.50", reference="invoice 7")
    await do(office, "balances.grant", account=account, usd="0.000000001")
    granted = await do(office, "balances.grant", account=account, contract=CONTRACT.id, tokens=5_000)
    assert (granted.lane, granted.tokens, granted.usd) == ("contract", 5_000, None)
    assert granted.expires == iso(CONTRACT.expires_ms)
    balance = await do(office, "balances.show", account=account)
    assert (balance.credits.total.usd, balance.credits.total.nano) == ("10.500000001", 10_500_000_001)
    assert (balance.credits.held.nano, balance.credits.available) == (0, balance.credits.total)
    (lot,) = balance.contracts
    assert (lot.id, lot.contract, lot.granted, lot.remaining, lot.available, lot.expired) == (
        granted.lot, CONTRACT.id, 5_000, 5_000, 5_000, False,
    )  # fmt: skip


async def test_a_grant_with_an_idempotency_key_is_made_once(office: Office) -> None:
    account, other = [(await do(office, "accounts.create", name=name)).id for name in ("Team", "Other")]
    asked = {"account": account, "usd": "5", "reference": "invoice 7", "idempotency_key": "invoice 7"}
    first = await do(office, "balances.grant", **asked)
    assert await do(office, "balances.grant", **asked) == first
    for changed in ({"usd": "6"}, {"reference": ""}, {"account": other}):
        with pytest.raises(WrongState) as refused:
            await do(office, "balances.grant", **{**asked, **changed})
        assert refused.value.code == "idempotency_mismatch"
    tokens = {"account": other, "contract": CONTRACT.id, "tokens": 500, "idempotency_key": "invoice 8"}
    of_contract = await do(office, "balances.grant", **tokens)
    office.clock.offset_ms = CONTRACT.expires_ms - Clock().now_ms() - 3_600_000
    late = {**tokens, "idempotency_key": "invoice 9"}
    of_late = await do(office, "balances.grant", **late)
    office.clock.offset_ms += 2 * 3_600_000  # what could not be granted any more was granted an hour ago
    assert await do(office, "balances.grant", **late) == of_late != of_contract
    office.clock.offset_ms = 0
    assert (await do(office, "balances.show", account=account)).credits.total.usd == "5.00"
    assert sum(lot.granted for lot in (await do(office, "balances.show", account=other)).contracts) == 1_000
    office.clock.offset_ms = 24 * 3_600_000 + 1_000
    assert (await do(office, "balances.grant", **asked)).lot != first.lot
    assert (await do(office, "ledger.verify")).ok


async def test_a_grant_that_was_refused_leaves_its_key_free_and_moves_nothing(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    for wrong, error in (
        ({"usd": "0"}, InvalidRequest),
        ({"contract": "NO_SUCH", "tokens": 5}, InvalidRequest),
        ({"usd": "1", "account": "acc_x"}, NotFound),
    ):
        with pytest.raises(error):
            await do(office, "balances.grant", **{"account": account, "idempotency_key": "k", **wrong})
    for key in ("", "x" * 256, "é", " k", "k ", "a\nb"):
        with pytest.raises(InvalidRequest) as refused:
            await do(office, "balances.grant", account=account, usd="1", idempotency_key=key)
        assert refused.value.param == "idempotency_key"
    assert (await do(office, "balances.show", account=account)).credits.total.nano == 0
    await do(office, "balances.grant", account=account, usd="1", idempotency_key="k")
    await do(office, "balances.grant", account=account, usd="2")
    await do(office, "balances.grant", account=account, usd="2")  # without a key each is a grant of its own
    assert (await do(office, "balances.show", account=account)).credits.total.usd == "5.00"


async def test_an_idempotency_key_of_a_grant_is_its_operators_own(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    operators = [Actor(frozenset({"operator"}), sees=None, manages=None, key=key) for key in ("key_a", "key_b")]
    for actor in (LOCAL, *operators, *operators, LOCAL):
        await do(office, "balances.grant", actor, account=account, usd="1", idempotency_key="k")
    assert (await do(office, "balances.show", account=account)).credits.total.usd == "3.00"


async def test_of_simultaneous_grants_with_one_key_one_is_made(store_url: str, plain_settings: Settings) -> None:
    shared = replace(plain_settings, store=replace(plain_settings.store, url=store_url))
    async with open_office(shared) as one, open_office(shared) as two:
        account = (await do(one, "accounts.create", name="Team")).id
        asked = {"account": account, "usd": "1", "idempotency_key": "k"}
        grants = await asyncio.gather(*(do(office, "balances.grant", **asked) for office in (one, two) * 10))
        assert len({granted.lot for granted in grants}) == 1
        assert (await do(two, "balances.show", account=account)).credits.total.usd == "1.00"
        assert (await do(one, "ledger.verify")).ok


async def test_what_calls_hold_is_not_available(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    key = (await do(office, "keys.create", kind="team", name="k", account=account)).id
    await do(office, "balances.grant", account=account, usd="1")
    need = Need(account, (key,), "credits", "USD", 1_000_000, want=300, least=300)
    await office.store.commit(Admission("req_1", need, "own", office.clock.now_ms() + 60_000, "[]"))
    credits = (await do(office, "balances.show", account=account)).credits
    assert (credits.total.nano, credits.held.nano, credits.available.nano) == (NANO, 300, NANO - 300)
    (shown,) = (await do(office, "keys.list")).data
    assert (shown.held.nano, shown.last_used is not None) == (300, True)


async def test_expired_tokens_are_shown_as_such_and_are_not_available(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    await do(office, "balances.grant", account=account, contract=CONTRACT.id, tokens=5_000)
    office.clock.offset_ms = CONTRACT.expires_ms - Clock().now_ms() + 1_000
    (lot,) = (await do(office, "balances.show", account=account)).contracts
    assert (lot.expired, lot.remaining, lot.available) == (True, 5_000, 0)
    with pytest.raises(InvalidRequest, match="expired"):
        await do(office, "balances.grant", account=account, contract=CONTRACT.id, tokens=5_000)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({}, "usd"),
        ({"usd": "1", "tokens": 1}, "usd"),
        ({"usd": "1", "contract": CONTRACT.id, "tokens": 1}, "usd"),
        ({"contract": CONTRACT.id}, "usd"),
        ({"tokens": 1}, "usd"),
        ({"usd": "0"}, "usd"),
        ({"usd": "-1"}, "usd"),
        ({"usd": "1000000.000000001"}, "usd"),
        ({"usd": "1e9"}, "usd"),
        ({"usd": "NaN"}, "usd"),
        ({"usd": "1,5"}, "usd"),
        ({"usd": "0.0000000001"}, "usd"),
        ({"usd": "\uff11"}, "usd"),
        ({"contract": "NO_SUCH", "tokens": 1}, "contract"),
        ({"contract": CONTRACT.id, "tokens": 0}, "tokens"),
        ({"contract": CONTRACT.id, "tokens": -5}, "tokens"),
        ({"contract": CONTRACT.id, "tokens": LARGEST_AMOUNT + 1}, "tokens"),
        ({"contract": CONTRACT.id, "tokens": 2**80}, "tokens"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_refused(office: Office, wrong: dict[str, Any], param: str) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    with pytest.raises(InvalidRequest) as refused:
        await do(office, "balances.grant", account=account, **wrong)
    assert refused.value.param == param
    assert (await do(office, "balances.show", account=account)).credits.total.nano == 0


async def test_an_unknown_account_gets_nothing(office: Office) -> None:
    for arguments in ({"usd": "1"}, {"contract": CONTRACT.id, "tokens": 1}):
        with pytest.raises(NotFound):
            await do(office, "balances.grant", account="acc_nobody", **arguments)
    assert (await do(office, "ledger.verify")).ok


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, LARGEST_AMOUNT)), min_size=1, max_size=6))
def test_any_grants_add_up_exactly(plain_settings: Settings, grants: list[tuple[bool, int]]) -> None:
    async def story() -> None:
        async with team(plain_settings) as (office, account):
            for in_tokens, size in grants:
                money = {"contract": CONTRACT.id, "tokens": size} if in_tokens else {"usd": dollars(size)}
                await do(office, "balances.grant", account=account, **money)
            balance = await do(office, "balances.show", account=account)
            assert balance.credits.total.nano == sum(size for in_tokens, size in grants if not in_tokens)
            assert sum(lot.remaining for lot in balance.contracts) == sum(size for tokens, size in grants if tokens)
            assert (await do(office, "ledger.verify")).ok

    asyncio.run(story())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=12), st.decimals().map(str), st.integers().map(str), st.floats().map(str)))
def test_any_text_is_an_exact_amount_or_refused(plain_settings: Settings, written: str) -> None:
    async def story() -> None:
        async with team(plain_settings) as (office, account):
            try:
                granted = await do(office, "balances.grant", account=account, usd=written)
            except InvalidRequest:
                assert (await do(office, "balances.show", account=account)).credits.total.nano == 0
            else:
                assert dollars(granted.usd.nano) == granted.usd.usd
                assert float(written) == pytest.approx(granted.usd.nano / NANO, rel=1e-12)

    asyncio.run(story())


async def test_a_call_that_has_just_ended_is_in_balance_and_usage(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    key = (await do(office, "keys.create", kind="team", name="k", account=account)).id
    await do(office, "balances.grant", account=account, usd="1")
    request = await spend(office, account, key, 400)
    (call,) = (await do(office, "usage.list")).data
    assert (call.request, call.key, call.cost.nano, call.total_tokens, call.streamed) == (request, key, 400, 15, True)
    assert call.created == "1970-01-01T00:00:01Z"
    assert (await do(office, "balances.show", account=account)).credits.total.nano == NANO - 400
    (shown,) = (await do(office, "keys.list")).data
    assert (shown.spent.nano, shown.held.nano) == (400, 0)
    assert (await do(office, "ledger.verify")).ok


async def test_pages_of_usage_follow_each_other_without_gap_or_repeat(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    key = (await do(office, "keys.create", kind="team", name="k", account=account)).id
    await do(office, "balances.grant", account=account, usd="1")
    made = [await spend(office, account, key, 1) for _ in range(7)]
    seen, cursor, sizes = [], None, []
    while True:
        page = await do(office, "usage.list", limit=3, cursor=cursor)
        seen += [call.request for call in page.data]
        sizes.append(len(page.data))
        cursor = page.next
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)
    assert sizes == [3, 3, 1]
    assert (await do(office, "usage.list", limit=7)).next is None


async def test_looking_for_a_few_calls_among_many_keeps_no_look_up_of_keys_waiting(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = [(await do(office, "accounts.create", name=name)).id for name in ("One", "Two")]
    read, apart = office.store.read, []

    async def noted(program: Program[Any], *, within_s: float = READ_S) -> Any:
        apart.append(within_s > READ_S)  # what may take longer is read apart from the look-ups
        return await read(program, within_s=within_s)

    monkeypatch.setattr(office.store, "read", noted)
    page: dict[str, Any]
    for page in ({}, {"account": one}, {"account": one, "cursor": "req_x"}, {"cursor": "req_x"}):
        await do(office, "usage.list", **page)
    assert apart == [False] * 4
    apart.clear()
    for sparse in ("key", "model", "lane", "state", "since", "until"):
        value = {"lane": "credits", "state": "final", "since": "2026-01-01", "until": "2026-01-01"}.get(sparse, "x")
        page = {"account": one, sparse: value}
        await do(office, "usage.list", **page)
    several = Actor(frozenset({"read"}), sees=frozenset({one, two}), manages=frozenset())
    await do(office, "usage.list", several)
    assert apart == [True] * 7


async def test_usage_is_filtered_and_added_up_over_everything_that_matches(office: Office) -> None:
    one, two = [(await do(office, "accounts.create", name=name)).id for name in ("One", "Two")]
    keys = [(await do(office, "keys.create", kind="team", name="k", account=each)).id for each in (one, two)]
    for account in (one, two):
        await do(office, "balances.grant", account=account, usd="1")
        await do(office, "balances.grant", account=account, contract=CONTRACT.id, tokens=1_000)
    for _ in range(3):
        await spend(office, one, keys[0], 10, model="small", created_ms=1_000)
    await spend(office, one, keys[0], 20, model="large", created_ms=2_000, state="review")
    await spend(office, two, keys[1], 30, model="large", contract=True, created_ms=3_000)

    async def counted(**wanted: Any) -> int:
        page, summary = await do(office, "usage.list", **wanted), await do(office, "usage.summary", **wanted)
        assert summary.requests == len(page.data) == sum(each.requests for each in summary.data)
        assert summary.cost.nano == sum(call.cost.nano for call in page.data)
        assert summary.total_tokens == 15 * len(page.data)
        return len(page.data)

    assert await counted() == 5
    assert await counted(account=one) == await counted(key=keys[0]) == 4
    assert await counted(model="large") == 2
    assert await counted(lane="contract") == await counted(account=two, lane="contract") == 1
    assert await counted(state="review") == 1
    assert await counted(since="1970-01-01T00:00:02Z") == 2
    assert await counted(since="1970-01-01T00:00:02Z", until="1970-01-01T00:00:03Z") == 1
    assert await counted(account=one, model="small", lane="credits", state="final", until="1970-01-02") == 3
    assert await counted(account="acc_x") == 0
    by_model = {(each.model, each.lane): each for each in (await do(office, "usage.summary")).data}
    assert by_model["small", "credits"].amount == 30
    assert by_model["large", "credits"].review == 1
    assert (by_model["large", "contract"].asset, by_model["large", "contract"].cost.nano) == (CONTRACT.id, 6_000)


async def test_somebody_with_several_accounts_sees_the_usage_of_these_alone(office: Office) -> None:
    accounts = [(await do(office, "accounts.create", name=name)).id for name in ("One", "Two", "Three")]
    for account in accounts:
        key = (await do(office, "keys.create", kind="team", name="k", account=account)).id
        await do(office, "balances.grant", account=account, usd="1")
        await spend(office, account, key, 5)
    for allowed in (accounts[:2], accounts[:1], []):
        actor = Actor(frozenset({"read"}), sees=frozenset(allowed), manages=frozenset())
        page = await do(office, "usage.list", actor)
        assert {call.account for call in page.data} == set(allowed)
        assert (await do(office, "usage.summary", actor)).requests == len(allowed)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 1001}, {"since": "yesterday"}, {"until": "0001-13-01"}])
async def test_a_filter_that_makes_no_sense_is_refused(office: Office, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await do(office, "usage.list", **wrong)
    assert refused.value.param in wrong


async def test_models_are_listed_with_prices_names_and_contract(office: Office) -> None:
    (model,) = (await do(office, "models.list")).data
    assert (model.id, model.planned, [name.name for name in model.names]) == ("penstock/demo", False, ["demo"])
    (offer,) = model.offers
    assert (offer.provider, offer.price.input.usd, offer.price.output.nano) == ("demo", "0.10", 400_000_000)
    assert (model.contract.id, model.contract.price.usd) == (CONTRACT.id, "0.20")


async def test_a_contract_model_without_a_price_is_shown_without_one(plain_settings: Settings) -> None:
    (model,) = plain_settings.models
    async with open_office(replace(plain_settings, models=(replace(model, price=None),))) as office:
        assert (await do(office, "models.list")).data[0].offers[0].price is None


async def test_a_balance_that_was_tampered_with_is_found(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    lot = (await do(office, "balances.grant", account=account, usd="1")).lot

    def tamper() -> Program[None]:
        yield from run(Statement(lots.update().where(lots.c.id == bindparam("lot")).values(remaining=5), "lot"), lot)

    await office.store.write(tamper())
    (difference,) = (await do(office, "ledger.verify")).differences
    assert (difference.what, difference.written, difference.computed) == (f"remaining of {lot}", 5, NANO)
