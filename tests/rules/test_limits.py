"""The rate limit: a burst of a minute's allowance, then an even refill, and a clock that may jump."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.money.limits import MINUTE_US, arrive, retry_after_s

NOON_US = 1_800_000_000_000_000


def burst(tat_us: int, now_us: int, per_minute: int, *, most: int) -> tuple[int, int]:
    """`(tat_us, how many of `most` requests at one instant pass)`."""
    for passed in range(most):
        tat_us, wait_us = arrive(tat_us, now_us, per_minute)
        if wait_us:
            return tat_us, passed
    return tat_us, most


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_a_whole_minutes_allowance_passes_at_once_and_not_one_more(per_minute: int) -> None:
    assert burst(0, NOON_US, per_minute, most=per_minute + 1)[1] == per_minute


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_the_wait_that_is_named_is_just_long_enough(per_minute: int) -> None:
    tat_us, _ = burst(0, NOON_US, per_minute, most=per_minute)
    _, wait_us = arrive(tat_us, NOON_US, per_minute)
    assert wait_us == MINUTE_US // per_minute
    assert arrive(tat_us, NOON_US + wait_us - 1, per_minute)[1] == 1
    assert arrive(tat_us, NOON_US + wait_us, per_minute)[1] == 0


def test_a_refused_request_does_not_count() -> None:
    tat_us, _ = burst(0, NOON_US, 5, most=5)
    assert arrive(tat_us, NOON_US, 5)[0] == tat_us


def test_the_allowance_is_whole_again_after_a_minute() -> None:
    tat_us, _ = burst(0, NOON_US, 100, most=100)
    assert burst(tat_us, NOON_US + MINUTE_US // 2, 100, most=100)[1] == 50
    assert burst(tat_us, NOON_US + MINUTE_US, 100, most=101)[1] == 100


@given(st.integers(1, 200), st.lists(st.integers(0, 20_000_000), max_size=300))
def test_no_minute_sees_more_than_a_burst_and_a_minutes_refill(per_minute: int, gaps: list[int]) -> None:
    now_us, tat_us, passed = NOON_US, 0, []
    for gap in gaps:
        now_us += gap
        tat_us, wait_us = arrive(tat_us, now_us, per_minute)
        if not wait_us:
            passed.append(now_us)
    for start in passed:
        assert sum(start <= each < start + MINUTE_US for each in passed) <= 2 * per_minute


@pytest.mark.parametrize("back_s", [1, 60, 3_600, 10 * 365 * 86_400])
def test_a_clock_set_back_shuts_nobody_out_for_more_than_two_minutes(back_s: int) -> None:
    tat_us, _ = burst(0, NOON_US, 60, most=60)
    now_us = NOON_US - back_s * 1_000_000
    _, wait_us = arrive(tat_us, now_us, 60)
    assert wait_us <= MINUTE_US + MINUTE_US // 60
    assert arrive(tat_us, now_us + wait_us, 60)[1] == 0


def test_a_clock_set_back_does_not_give_a_new_burst() -> None:
    tat_us, _ = burst(0, NOON_US, 60, most=60)
    assert burst(tat_us, NOON_US - 3_600_000_000, 60, most=60)[1] <= 1


@pytest.mark.parametrize(
    ("wait_us", "seconds"),
    [(0, 1), (1, 1), (1_000_000, 1), (1_000_001, 2), (59_000_001, 60), (60_000_000, 60), (10**12, 60)],
)
def test_retry_after_is_whole_seconds_from_1_to_60(wait_us: int, seconds: int) -> None:
    assert retry_after_s(wait_us) == seconds
