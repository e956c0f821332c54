"""The meter: an estimate that grows with the stream until the upstream counts; a count of zero is a count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects.usage import TokenUsage
from penstock.money.prices import Price, TokenTariff, UsdTariff
from penstock.relay.meter import Meter

PRICE = Price(2_000_000, 3_000_000, 1_000_000, 3_000_000, per_request=100)  # 2, 3 and 1 nano-USD a token
COUNTED = TokenUsage(input=10, output=20, cached_input=4, reasoning=5, total=30)

Piece = tuple[int, TokenUsage | None]


def meter(*pieces: Piece, dispatched: bool = True) -> Meter:
    made = Meter(UsdTariff(PRICE), input_estimate=50)
    made.dispatched = dispatched
    for produced, usage in pieces:
        made.feed(produced, usage)
    return made


@pytest.mark.parametrize(
    ("pieces", "tokens", "owed", "estimated"),
    [
        pytest.param([], TokenUsage(50, 0, total=50), 200, True, id="sent, and nothing came"),
        pytest.param([(3, None), (4, None)], TokenUsage(50, 7, total=57), 221, True, id="nobody counted"),
        pytest.param([(3, None), (0, COUNTED)], COUNTED, 176, False, id="counted at the end"),
        pytest.param([(3, COUNTED)], COUNTED, 176, False, id="counted with the piece"),
        pytest.param([(0, COUNTED), (2, None)], TokenUsage(10, 22, 4, 5, 32), 182, True, id="more after a count"),
        pytest.param([(9, COUNTED), (2, None), (0, COUNTED)], COUNTED, 176, False, id="the last count counts"),
        pytest.param([(9, None), (0, TokenUsage(0, 0))], TokenUsage(0, 0), 100, False, id="an explicit zero"),
    ],
)
def test_what_is_owed_is_the_upstreams_count_and_else_an_estimate(
    pieces: list[Piece], tokens: TokenUsage, owed: int, estimated: bool
) -> None:
    made = meter(*pieces)
    assert (made.tokens(), made.owed(PRICE), made.estimated) == (tokens, owed, estimated)
    assert made.output == tokens.output


def test_a_call_that_reached_no_upstream_owes_nothing() -> None:
    made = meter(dispatched=False)
    assert (made.tokens(), made.owed(PRICE), made.estimated) == (TokenUsage(0, 0), 0, False)


def test_what_an_upstream_counted_is_owed_whatever_else_is_known() -> None:
    assert meter((0, COUNTED), dispatched=False).owed(PRICE) == 176


def test_a_contract_owes_the_total_the_upstream_names() -> None:
    made = Meter(TokenTariff("C", 1), input_estimate=50)
    made.dispatched = True
    made.feed(5, None)
    assert made.owed(PRICE) == 55
    made.feed(0, TokenUsage(10, 20, total=33))
    made.feed(2, None)
    assert made.owed(PRICE) == 35


@given(st.lists(st.integers(0, 1_000), max_size=30))
def test_an_estimate_is_never_below_what_was_sent_and_never_shrinks(sizes: list[int]) -> None:
    made, sent, before = meter(), 0, 0
    for produced in sizes:
        made.feed(produced, None)
        sent += produced
        assert made.output == sent
        assert before <= made.owed(PRICE) == 200 + 3 * sent
        before = made.owed(PRICE)


def running(*pieces: tuple[int, int], input: int = 10) -> Meter:
    """A stream with a count in each event: `(produced, counted)`."""
    made = meter()
    for produced, output in pieces:
        made.follow(produced, TokenUsage(input, output, total=input + output))
    return made


@pytest.mark.parametrize(
    ("pieces", "output", "estimated"),
    [
        pytest.param([(1, 1), (1, 2), (1, 3)], 3, False, id="a count that grows"),
        pytest.param([(1, 3), (1, 6)], 6, False, id="a count above our estimate"),
        pytest.param([(1, 0)] * 40, 40, True, id="zeros"),
        pytest.param([(1, 1)] * 40, 40, True, id="a count of each event alone"),
        pytest.param([(5, 2), (5, 4)], 10, True, id="a count below our estimate"),
    ],
)
def test_a_running_count_takes_back_nothing_that_has_come(
    pieces: list[tuple[int, int]], output: int, estimated: bool
) -> None:
    made, before = meter(), 0
    for produced, counted in pieces:
        usage = TokenUsage(10, counted, total=10 + counted)
        after = made.after(produced, usage)
        made.follow(produced, usage)
        assert before <= made.output == after
        before = after
    assert made.tokens() == TokenUsage(10, output, total=10 + output)
    assert made.estimated is estimated
    assert made.after(2, None) == output + 2


def test_what_comes_after_a_running_count_is_counted_on_top_of_the_larger_one() -> None:
    made = running((4, 2))
    made.feed(3, None)
    assert made.output == 7
    made.follow(1, TokenUsage(10, 20, total=30))
    made.feed(2, None)
    assert (made.output, made.tokens().total) == (22, 32)


def test_a_prompt_of_nothing_has_not_been_counted_while_the_stream_goes_on() -> None:
    made = running((0, 0), input=0)
    assert (made.tokens(), made.estimated) == (TokenUsage(50, 0, total=50), True)
    made.feed(0, COUNTED)
    assert (made.tokens(), made.estimated) == (COUNTED, False)


@pytest.mark.parametrize("produced", [5, 500])
def test_the_count_at_the_end_stands_though_it_is_lower(produced: int) -> None:
    ended = running((produced, 2), (produced, 4))
    ended.end()
    assert (ended.output, ended.estimated) == (4, False)
    told = running((produced, 2), (produced, 3))
    told.feed(0, TokenUsage(10, 4, total=14))
    assert (told.output, told.estimated) == (4, False)


def test_a_count_that_is_older_than_the_last_text_is_not_that_of_all() -> None:
    made = running((5, 2))
    made.feed(3, None)
    made.end()
    assert (made.output, made.estimated) == (8, True)


@pytest.mark.parametrize("each", [0, 1])
def test_what_was_said_all_along_while_text_came_is_no_count_in_the_end_either(each: int) -> None:
    ended = running(*[(1, each)] * 40)
    ended.end()
    told = running(*[(1, each)] * 40)
    told.feed(0, TokenUsage(10, each, total=10 + each))
    told.end()
    assert [(made.output, made.estimated) for made in (ended, told)] == [(40, True)] * 2
    told.feed(0, TokenUsage(10, 33, total=43))
    assert (told.output, told.estimated) == (33, False)


def test_a_further_request_is_owed_from_when_it_is_sent_and_counted_when_it_is() -> None:
    counting = meter((0, COUNTED))
    counting.begin_round(COUNTED, input_estimate=40)
    assert (counting.tokens(), counting.owed(PRICE), counting.estimated) == (COUNTED, 176, False)
    counting.sent()
    counting.sent()  # over another connection
    assert counting.tokens() == TokenUsage(50, 20, 4, 5, 70)
    assert (counting.owed(PRICE), counting.estimated) == (176 + 40 * 2 + 100, True)
    counting.feed(3, None)
    assert counting.output == 23
    counting.feed(0, TokenUsage(45, 30, 4, 5, 75))  # the sum of both requests
    assert (counting.owed(PRICE), counting.estimated) == (41 * 2 + 4 + 30 * 3 + 200, False)


def test_a_further_request_that_is_given_back_is_not_owed_until_it_is_sent_again() -> None:
    counting = meter((0, COUNTED))
    counting.begin_round(COUNTED, input_estimate=40)
    counting.sent()
    counting.returned()
    counting.returned()
    assert (counting.tokens(), counting.owed(PRICE), counting.estimated) == (COUNTED, 176, False)
    counting.sent()
    assert counting.owed(PRICE) == 176 + 40 * 2 + 100


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_further_request_that_did_not_come_about_is_not_owed(*, is_sent: bool) -> None:
    counting = meter((0, COUNTED))
    counting.begin_round(COUNTED, input_estimate=40)
    if is_sent:
        counting.sent()
    counting.abandon_round(COUNTED)
    assert (counting.tokens(), counting.owed(PRICE), counting.estimated) == (COUNTED, 176, False)


def test_an_attempt_that_failed_is_forgotten_with_all_its_requests() -> None:
    counting = meter((0, COUNTED))
    counting.begin_round(COUNTED, input_estimate=40)
    counting.guessed = True
    counting.restart()
    assert (counting.owed(PRICE), counting.output, counting.estimated) == (0, 0, False)
    counting.dispatched = True
    assert counting.owed(PRICE) == 200


def test_thinking_that_only_the_total_has_is_owed_in_every_round() -> None:
    counting = meter()
    counting.thinking_in_total = True
    counting.begin_round(TokenUsage(10, 20, total=37), input_estimate=40)
    assert counting.output == 27
    counting.feed(0, TokenUsage(50, 25, total=90))
    assert counting.output == 40
