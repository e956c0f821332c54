"""What an account has and what it used: read back exactly, by nobody else, and never more spent than there was."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from penstock.clock import from_iso
from penstock.config import Settings
from penstock.operations.actor import LOCAL
from penstock.operations.keys import revoke_key
from tests.stories.gateway import DEEPSEEK, FORWARD, LLAMA, ROUTER, TRUST, Person, Running
from tests.upstream import Plain, ScriptedUpstream

COST_NANO = 7 * 590 + 5 * 790  # of the usual answer, at the price of LLAMA


async def with_expiry(gateway: Running, settings: Settings, expires: str) -> None:
    """From now on, contracts that are bought end on this day."""
    contracts = tuple(replace(each, expires_ms=from_iso(expires)) for each in settings.contracts)
    await gateway.gateway.reload(replace(settings, contracts=contracts))


async def lots(gateway: Running, person: Person) -> list[int]:
    """What remains of each lot, in burn order."""
    return [lot.remaining for lot in (await gateway.balance(person)).contracts]


async def test_a_balance_read_right_after_an_answer_shows_it(gateway: Running) -> None:
    ada = await gateway.person(usd="0.5", tokens=100)
    await gateway.chat(TRUST, ada)
    await gateway.chat(FORWARD, ada, stream=True)
    balance = (await gateway.get(f"{TRUST}/balance", ada)).json()
    left = 500_000_000 - COST_NANO
    assert balance["account"] == ada.account
    assert balance["credits"] == {
        "total": {"usd": "0.49999192", "nano": left},
        "held": {"usd": "0.00", "nano": 0},
        "available": {"usd": "0.49999192", "nano": left},
    }
    (lot,) = balance["contracts"]
    assert (lot["contract"], lot["granted"], lot["remaining"], lot["held"], lot["available"]) == (
        "LLAMA", 100, 88, 0, 88,
    )  # fmt: skip
    assert (lot["expires"], lot["expired"]) == ("2100-01-01T00:00:00Z", False)


async def test_a_usage_record_says_who_called_what_and_what_it_cost(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12} | details
    upstream.script(Plain(usage=usage))
    answer = await gateway.chat(TRUST, ada, model="llama-70b")
    (record,) = (await gateway.get(f"{TRUST}/usage", ada)).json()["data"]
    assert record["first_byte_us"] <= record["total_us"]
    timing = {name: record.pop(name) for name in ("first_byte_us", "total_us", "created", "price_version")}
    assert all(timing.values())
    assert record == {
        "request": answer.headers["x-request-id"],
        "account": ada.account,
        "key": ada.account_key.id,
        "surface": "trust",
        "dialect": "openai_chat",
        "model": LLAMA,
        "provider": "main",
        "attempts": 1,
        "lane": "credits",
        "asset": "USD",
        "amount": COST_NANO,
        "cost": {"usd": "0.00000808", "nano": COST_NANO},
        "uncollected": 0,
        "input_tokens": 7,
        "cached_tokens": 4,
        "output_tokens": 5,
        "reasoning_tokens": 2,
        "total_tokens": 12,
        "estimated": False,
        "streamed": False,
        "status": 200,
        "ended": "answer",
        "state": "final",
        "tools": [],
    }


async def test_usage_is_filtered_and_paged(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    made = [
        await gateway.chat(TRUST, ada),
        await gateway.chat(ROUTER, ada, model=DEEPSEEK),
        await gateway.chat(FORWARD, ada),
        await gateway.chat(TRUST, ada, model=DEEPSEEK, stream=True),
    ]
    ids = [answer.headers["x-request-id"] for answer in made]

    async def found(**query: str) -> list[int]:
        answer = (await gateway.get(f"{TRUST}/usage", ada, query=query)).json()
        return [ids.index(record["request"]) for record in answer["data"]]

    assert await found() == [3, 2, 1, 0]
    assert await found(model=DEEPSEEK) == [3, 1]
    assert await found(lane="contract") == [2]
    assert await found(key=ada.personal_key.id) == [1]
    assert await found(lane="credits", model=LLAMA) == [0]
    assert await found(state="review") == []
    assert await found(since="2000-01-01", until="2099-12-31T23:59:59Z", limit="2") == [3, 2]
    assert await found(since="2099-01-01") == []
    first = (await gateway.get(f"{TRUST}/usage", ada, query={"limit": "3"})).json()
    rest = (await gateway.get(f"{TRUST}/usage", ada, query={"limit": "3", "cursor": first["next"]})).json()
    assert [record["request"] for record in first["data"] + rest["data"]] == ids[::-1]
    assert rest["next"] is None


async def test_a_filter_that_makes_no_sense_is_refused_by_name(gateway: Running) -> None:
    ada = await gateway.person()
    for name, value in (
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "9" * 40),
        ("since", "yesterday"),
        ("until", "2027-13-01"),
        ("lane", "treasure"),
        ("state", "done"),
        ("account", "acc_other"),
        ("sql", "1"),
        ("key", "\x00"),
        ("cursor", "req_\n"),
    ):
        answer = await gateway.get(f"{TRUST}/usage", ada, query={name: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name


async def test_accounts_see_nothing_of_each_other(gateway: Running) -> None:
    ada, bob = await gateway.person(usd="1", tokens=100), await gateway.person(usd="2")
    for person in (ada, bob):
        await gateway.chat(ROUTER, person)
    for path in (f"{TRUST}/balance", f"{TRUST}/usage"):
        own, foreign = await gateway.get(path, ada), await gateway.get(path, ada, headers={"x-trust": bob.account})
        assert own.status_code == 200
        assert bob.account not in own.text
        assert bob.personal_key.id not in own.text
        assert foreign.status_code == 403
    for filters in ({"key": bob.personal_key.id}, {"cursor": "req_zzzz", "key": bob.personal_key.id}):
        assert (await gateway.get(f"{TRUST}/usage", ada, query=filters)).json()["data"] == []


async def test_reading_needs_a_valid_key_and_an_account(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    for path in (f"{TRUST}/balance", f"{TRUST}/usage"):
        assert (await gateway.http.get(path)).status_code == 401
        without = await gateway.http.get(path, headers={"authorization": f"Bearer {ada.account_key.key}"})
        assert without.json()["error"]["code"] == "missing_trust"
        assert (await gateway.get(path, ada, key=ada.inference_key)).status_code == 401
    await revoke_key(gateway.office, LOCAL, key=ada.account_key.id)
    assert (await gateway.chat(TRUST, ada)).status_code == 401


# The contract lane.


async def test_an_empty_an_exhausted_and_an_expired_lot_are_402(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada, bob, cy = await gateway.person(), await gateway.person(tokens=12), await gateway.person(tokens=1_000)
    assert (await gateway.chat(FORWARD, ada)).status_code == 402
    assert [(await gateway.chat(FORWARD, bob)).status_code for _ in range(2)] == [200, 402]
    assert (await gateway.chat(FORWARD, cy)).status_code == 200
    gateway.office.clock.offset_ms += from_iso("2100-01-01") - gateway.office.clock.now_ms() + 1
    assert (await gateway.chat(FORWARD, cy)).status_code == 402
    balance = await gateway.balance(cy)
    assert (balance.contracts[0].remaining, balance.contracts[0].available, balance.contracts[0].expired) == (
        988, 0, True,
    )  # fmt: skip
    assert len(upstream.requests) == 2


async def test_a_lot_pays_for_the_models_of_its_contract_alone(gateway: Running) -> None:
    ada = await gateway.person(tokens=1_000, contract="DEEPSEEK")
    assert (await gateway.chat(FORWARD, ada, model=LLAMA)).status_code == 402
    assert (await gateway.chat(FORWARD, ada, model=DEEPSEEK)).status_code == 200
    assert await gateway.tokens(ada) == 1_000 - 12


async def test_the_lot_that_expires_first_is_used_up_first(gateway: Running, settings: Settings) -> None:
    ada = await gateway.person(tokens=1_000)
    for tokens, expires in ((30, "2060-01-01"), (20, "2050-01-01")):
        await with_expiry(gateway, settings, expires)
        await gateway.grant(ada, contract="LLAMA", tokens=tokens)
    seen = []
    for _ in range(5):
        await gateway.chat(FORWARD, ada)
        seen.append(await lots(gateway, ada))
    assert seen == [[8, 30, 1_000], [0, 26, 1_000], [0, 14, 1_000], [0, 2, 1_000], [0, 0, 990]]


async def test_the_last_call_is_served_and_the_lot_ends_at_zero(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(tokens=1)
    upstream.script(Plain(tokens=5, prompt_tokens=7))
    answer = await gateway.chat(FORWARD, ada)
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] == 8
    assert upstream.requests[0].json["max_tokens"] == 1
    assert await lots(gateway, ada) == [0]
    (record,) = await gateway.usage(ada)
    assert (record.amount, record.uncollected, record.total_tokens) == (1, 7, 8)
    assert (await gateway.chat(FORWARD, ada)).status_code == 402


async def test_the_output_is_fitted_to_the_money(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.0002")
    upstream.usual = Plain(tokens=10_000, prompt_tokens=7)
    answer = await gateway.chat(ROUTER, ada)
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert 1 <= upstream.requests[0].json["max_tokens"] < 4_096
    assert 0 <= await gateway.nano(ada) < 200_000
    (record,) = await gateway.usage(ada)
    assert record.uncollected == 0


# Many at once.


@pytest.mark.parametrize("base", [TRUST, ROUTER])
async def test_parallel_calls_on_a_small_balance_never_overspend_it(
    gateway: Running, upstream: ScriptedUpstream, base: str
) -> None:
    ada = await gateway.person(usd="0.001")
    upstream.usual = Plain(tokens=30, prompt_tokens=7)
    answers = await asyncio.gather(*(gateway.chat(base, ada, max_tokens=30) for _ in range(64)))
    while answers[-1].status_code == 200:
        answers.append(await gateway.chat(base, ada, max_tokens=30))
    records = await gateway.usage(ada)
    served = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 402}
    assert len(records) == len(served) == len(upstream.requests)
    assert sum(record.amount for record in records) == 1_000_000 - await gateway.nano(ada)
    assert {record.uncollected for record in records} == {0}


async def test_parallel_calls_on_a_small_lot_use_it_up_and_no_more(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(tokens=200)
    answers = await asyncio.gather(*(gateway.chat(FORWARD, ada, max_tokens=5) for _ in range(64)))
    while answers[-1].status_code == 200 or await gateway.tokens(ada):
        answers.append(await gateway.chat(FORWARD, ada, max_tokens=5))
    assert {answer.status_code for answer in answers} == {200, 402}
    records = await gateway.usage(ada)
    used = sum(record.total_tokens for record in records)
    assert sum(record.amount for record in records) == 200
    assert await lots(gateway, ada) == [0]
    assert sum(record.uncollected for record in records) == used - 200


async def test_hundreds_of_simultaneous_calls_of_one_key_are_all_answered(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    calls = [gateway.chat(ROUTER, ada, stream=bool(number % 2)) for number in range(256)]
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert len(upstream.requests) == 256
    assert await gateway.nano(ada) == 1_000_000_000 - 256 * COST_NANO
    assert len({record.request for record in await gateway.usage(ada)}) == 256


async def test_calls_on_every_surface_at_once_are_each_paid_from_the_right_money(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=5_000)
    bases: list[Any] = [TRUST, FORWARD, ROUTER] * 20
    answers = await asyncio.gather(*(gateway.chat(base, ada, max_tokens=5) for base in bases))
    assert {answer.status_code for answer in answers} == {200}
    assert await gateway.nano(ada) == 1_000_000_000 - 40 * COST_NANO
    assert await gateway.tokens(ada) == 5_000 - 20 * 12


@pytest.mark.parametrize("name", ["key", "model", "lane", "state", "since", "until", "cursor", "limit"])
async def test_an_empty_filter_is_refused_at_both_doors_and_does_not_mean_everything(
    gateway: Running, name: str
) -> None:
    ada = await gateway.person(usd="1")
    manager = await gateway.key("management", account=ada.account)
    here = await gateway.get(f"/v1/usage?{name}=", ada)
    headers = {"authorization": f"Bearer {manager.key}"}
    there = await gateway.http.get(f"/api/v1/usage?{name}=", headers=headers)
    for refused in (here, there):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
