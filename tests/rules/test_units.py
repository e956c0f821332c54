"""Units: dollars come in exactly or not at all, and go out as they are."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.money.units import LARGEST, ceil_div, dollars, nano_usd


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        ("0", 0),
        ("1", 1_000_000_000),
        ("12.50", 12_500_000_000),
        ("0.000985", 985_000),
        ("0.000000001", 1),
        ("-0.000000001", -1),
        ("1.000000000000", 1_000_000_000),
        ("1e-9", 1),
        ("4611686018.427387903", LARGEST - 1),
    ],
)
def test_an_amount_of_dollars_is_read_exactly(written: str, nano: int) -> None:
    assert nano_usd(written) == nano


@pytest.mark.parametrize(
    "written",
    [
        "",
        "ten",
        "1,5",
        "nan",
        "snan",
        "inf",
        "-inf",
        "0.0000000001",
        "1.0000000000000000000000000000001",
        "1e-999999",
        "4611686018.427387904",
        "-4611686018.427387904",
        "1e999999",
        "9" * 40,
    ],
)
def test_what_is_no_amount_or_too_fine_or_too_large_is_refused(written: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- that it is refused is all there is
        nano_usd(written)


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (985_000, "0.000985"),
        (10_000_000, "0.01"),
        (12_500_000_000, "12.50"),
        (-1_500_000_000, "-1.50"),
        (LARGEST, "4611686018.427387904"),
    ],
)
def test_an_amount_is_shown_without_exponent_and_with_cents(nano: int, shown: str) -> None:
    assert dollars(nano) == shown


@given(st.integers(1 - LARGEST, LARGEST - 1))
def test_what_is_shown_is_read_back_as_it_was(nano: int) -> None:
    assert nano_usd(dollars(nano)) == nano


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**12))
def test_division_rounds_up(numerator: int, denominator: int) -> None:
    up = ceil_div(numerator, denominator)
    assert up - 1 < Fraction(numerator, denominator) <= up
