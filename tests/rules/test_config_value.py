"""Amounts are kept exactly or refused; instants are what they say."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config_value import WrongValueError, dollars, instant, to_nano, web_address


@pytest.mark.parametrize(
    ("written", "nano"),
    [
        (0, 0),
        (3, 3_000_000_000),
        ("0.055", 55_000_000),
        (Decimal("0.055"), 55_000_000),
        (Decimal("0.59"), 590_000_000),
        (Decimal("1e-9"), 1),
        (Decimal("0.1000000000000000000000000000000000000"), 100_000_000),
        (Decimal("-0.0"), 0),
        (Decimal("1e6"), 10**15),
        (Decimal("999999.999999999"), 999_999_999_999_999),
    ],
)
def test_an_amount_is_the_same_number_of_nano_dollars(written: object, nano: int) -> None:
    assert dollars(written) == nano


@pytest.mark.parametrize(
    "written",
    [
        *("", "1,5", "1e3", "٣", "-1", -1, True, 10**7, [], None),
        *map(Decimal, ("NaN", "Infinity", "1e-10", "1e-999999999", "1.0000000000000000000000000000000000000001")),
    ],
)
def test_what_is_no_exact_amount_is_refused(written: object) -> None:
    with pytest.raises(WrongValueError):
        dollars(written)


@given(st.decimals(min_value=0, max_value=10**6, allow_nan=False))
def test_conversion_is_exact_or_not_at_all(amount: Decimal) -> None:
    exact = Fraction(amount) * 10**9
    assert to_nano(amount) == (exact.numerator if exact.denominator == 1 else None)


@pytest.mark.parametrize(
    "written",
    [date(2027, 12, 31), datetime(2027, 12, 31), "2027-12-31", "2027-12-31T00:00:00Z", "2027-12-31T02:00:00+02:00"],  # noqa: DTZ001
)
def test_a_day_is_its_start_in_utc(written: object) -> None:
    assert instant(written) == 1_830_211_200_000


@pytest.mark.parametrize("written", ["", "soon", 2027, "1969-12-31", datetime.min, datetime.max.time(), None])  # noqa: DTZ901
def test_what_is_no_instant_is_refused(written: object) -> None:
    with pytest.raises(WrongValueError):
        instant(written)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("HTTPS://Example.com", "HTTPS://Example.com"),
    ],
)
def test_an_address_is_kept_without_its_last_slash(written: str, kept: str) -> None:
    assert web_address(written) == kept


@pytest.mark.parametrize(
    "written",
    [
        *("", "api.example.com", "ftp://h", "http://", "http://h:0", "http://h:70000", "http://[::1", "http://u@h"),
        *("http://h?q", "http://h#f", "http://h/a b", "http://h/\n", "http://ü", 5),
    ],
)
def test_what_is_no_address_is_refused(written: object) -> None:
    with pytest.raises(WrongValueError):
        web_address(written)
