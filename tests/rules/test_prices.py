"""Prices: what a call costs, to the nano-dollar, and what money covers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects.usage import TokenUsage
from penstock.money.prices import (
    UNLIMITED,
    Price,
    Tariff,
    TokenTariff,
    UsdTariff,
    charge,
    dearest,
    units_within,
    value,
)
from penstock.money.units import MEGA

# Nano-USD per million tokens: $0.59/M is 590_000_000.
LLAMA = Price(590_000_000, 790_000_000, 590_000_000, 790_000_000)
DETAILED = Price(3_000_000_000, 15_000_000_000, 300_000_000, 20_000_000_000, per_request=10_000_000)

CLAUDE = Price(  # the list price of Claude Sonnet 5
    2_000_000_000, 10_000_000_000, 200_000_000, 10_000_000_000, cache_write=2_500_000_000, cache_write_1h=4_000_000_000
)

rates = st.integers(0, 10**12)
prices = st.builds(
    Price, rates, rates, rates, rates, per_request=st.integers(0, 10**9), cache_write=rates, cache_write_1h=rates
)
tokens = st.integers(0, 10**7)


@pytest.mark.parametrize(
    ("price", "usage", "nano"),
    [
        pytest.param(LLAMA, TokenUsage(1_000, 500), 985_000, id="the contract's own example"),
        pytest.param(LLAMA, TokenUsage(0, 0), 0, id="an explicit zero"),
        pytest.param(Price(55, 55, 55, 55), TokenUsage(1, 0), 1, id="a fraction of a nano-dollar is one"),
        pytest.param(Price(400_000, 400_000, 400_000, 400_000), TokenUsage(1, 1), 1, id="rounded once and not by part"),
        pytest.param(Price(55_000_000, 55_000_000, 0, 0), TokenUsage(1_000_000, 0), 55_000_000, id="0.055 $/M"),
        pytest.param(DETAILED, TokenUsage(0, 0), 10_000_000, id="the request alone"),
        pytest.param(DETAILED, TokenUsage(1_000, 0, cached_input=1_000), 10_300_000, id="all from the cache"),
        pytest.param(DETAILED, TokenUsage(1_000, 0, cached_input=400), 11_920_000, id="partly from the cache"),
        pytest.param(DETAILED, TokenUsage(0, 100, reasoning=40), 11_700_000, id="reasoning is dearer"),
        pytest.param(
            DETAILED, TokenUsage(10, 10, cached_input=99, reasoning=99), 10_203_000, id="parts within the whole"
        ),
        pytest.param(Price(0, 0, 0, 0), TokenUsage(10**6, 10**6), 0, id="free"),
        pytest.param(
            CLAUDE, TokenUsage(1_000, 0, cached_input=600, cache_write=300), 1_070_000, id="from the cache and into it"
        ),
        pytest.param(
            CLAUDE,
            TokenUsage(1_000, 0, cache_write=1_000, cache_write_1h=400),
            3_100_000,
            id="kept for an hour, partly",
        ),
        pytest.param(
            CLAUDE, TokenUsage(10, 0, 7, cache_write=99, cache_write_1h=99), 13_400, id="written within the rest"
        ),
        pytest.param(LLAMA, TokenUsage(1_000, 0, cache_write=500), 590_000, id="writing costs what input costs"),
    ],
)
def test_a_call_costs_what_its_tokens_cost(price: Price, usage: TokenUsage, nano: int) -> None:
    assert price.cost(usage) == nano


@given(prices, tokens, tokens, tokens, tokens, tokens, tokens)
def test_a_cost_is_the_exact_amount_rounded_up_once(
    price: Price, fresh: int, cached: int, said: int, thought: int, short: int, long: int
) -> None:
    into = fresh + cached + short + long
    cost = price.cost(TokenUsage(into, said + thought, cached, thought, cache_write=short + long, cache_write_1h=long))
    read = fresh * price.input + cached * price.cached_input
    written = short * price.cache_write + long * price.cache_write_1h
    exact = price.per_request + Fraction(read + written + said * price.output + thought * price.reasoning, MEGA)
    assert cost - 1 < exact <= cost


def test_the_dearest_price_takes_the_highest_of_each_part() -> None:
    one, other = Price(1, 9, 3, 4, 5, "a", cache_write=7, cache_write_1h=8), Price(6, 2, 2, 8, 0, "b")
    assert dearest([one, other]) == Price(6, 9, 3, 8, 5, cache_write=7, cache_write_1h=8)


def test_writing_to_a_cache_costs_what_input_does_unless_something_is_said() -> None:
    assert (LLAMA.cache_write, LLAMA.cache_write_1h) == (LLAMA.input, LLAMA.input)
    assert Price(1, 1, 1, 1, cache_write=0).cache_write_1h == 0


def test_a_single_price_is_the_dearest_and_keeps_its_version() -> None:
    assert dearest([DETAILED]) is DETAILED


@given(st.lists(prices, min_size=1, max_size=4), tokens, tokens, st.data())
def test_no_offer_of_the_plan_costs_more_than_the_bound(
    offers: list[Price], into: int, out: int, data: st.DataObject
) -> None:
    cached, reasoning = data.draw(st.integers(0, into)), data.draw(st.integers(0, out))
    written = data.draw(st.integers(0, into))
    usage = TokenUsage(
        into, out, cached, reasoning, cache_write=written, cache_write_1h=data.draw(st.integers(0, into))
    )
    bound = UsdTariff(dearest(offers)).bound(into, out)
    assert all(offer.cost(usage) <= bound for offer in offers)


@given(st.one_of(st.builds(UsdTariff, prices), st.just(TokenTariff("C", 140_000_000))), st.integers(0, 10**15), tokens)
def test_output_within_is_the_exact_inverse_of_the_bound(tariff: Tariff, amount: int, into: int) -> None:
    output = tariff.output_within(amount, into)
    assert (output >= 0) == (tariff.bound(into, 0) <= amount)
    if 0 <= output < UNLIMITED:
        assert tariff.bound(into, output) <= amount < tariff.bound(into, output + 1)


@given(st.one_of(st.builds(UsdTariff, prices), st.just(TokenTariff("C", 140_000_000))), tokens, tokens)
def test_a_bound_covers_the_output_it_was_made_for(tariff: Tariff, into: int, out: int) -> None:
    assert tariff.output_within(tariff.bound(into, out), into) >= out


def test_output_that_costs_nothing_is_covered_without_end_once_the_input_is() -> None:
    tariff = UsdTariff(Price(1_000_000, 0, 1_000_000, 0, per_request=5))
    assert (tariff.output_within(14, 10), tariff.output_within(15, 10)) == (-1, UNLIMITED)


def test_a_contract_charges_every_token_alike_and_a_price_plays_no_role() -> None:
    tariff = TokenTariff("DEEPSEEK_JULY26", 140_000_000)
    assert charge(tariff, DETAILED, TokenUsage(10, 5, 3, 2, total=16)) == 16
    assert (tariff.bound(10, 5), tariff.asset, tariff.serves_last_call) == (15, "DEEPSEEK_JULY26", True)


def test_usd_is_charged_at_the_serving_offers_price_and_not_the_dearest() -> None:
    assert charge(UsdTariff(DETAILED), LLAMA, TokenUsage(1_000, 500)) == 985_000


def test_a_nano_dollar_is_worth_a_nano_dollar() -> None:
    tariff = UsdTariff(LLAMA)
    assert value(985_000, tariff.value_rate) == 985_000
    assert units_within(985_000, tariff.value_rate) == 985_000


@given(st.integers(0, 10**15), st.integers(1, 10**12))
def test_units_within_is_the_exact_inverse_of_value(nano: int, rate: int) -> None:
    units = units_within(nano, rate)
    assert value(units, rate) <= nano < value(units + 1, rate)


def test_units_that_are_worth_nothing_fit_any_limit() -> None:
    assert units_within(0, 0) == UNLIMITED
    assert value(10**9, 0) == 0
