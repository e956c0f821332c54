"""Units of money and the only conversions between them.

Inside, USD is whole nano-USD and prices are whole nano-USD per million tokens. People write dollars; they are
converted here, exactly on the way in and rounded once, down, on the way out (a shown balance is never more than what
can be spent).
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

USD = "USD"
NANO = 1_000_000_000
MEGA = 1_000_000
LARGEST = 2**62  # amounts stay below this, so that sums of two fit the 64-bit columns of both engines


def nano_usd(dollars: str) -> int:
    """Nano-USD for a decimal such as `"12.50"`. ValueError when it is not a number or finer than a nano-dollar."""
    try:
        amount = Decimal(dollars)
    except InvalidOperation:
        raise ValueError(f"{dollars!r} is not an amount of dollars") from None
    if not amount.is_finite() or abs(amount) >= Decimal(LARGEST) / NANO:
        raise ValueError(f"{dollars!r} is out of range")
    rounded = round(amount, 9)
    if rounded != amount:  # compared exactly, where arithmetic would round to the 28 digits of its context
        raise ValueError(f"{dollars!r} is finer than a nano-dollar")
    return int(rounded * NANO)


def dollars(nano: int) -> str:
    """`"0.000985"` for 985_000 nano-USD: exact, no exponent, no trailing zeros, at least cents."""
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), NANO)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def ceil_div(numerator: int, denominator: int) -> int:
    """Division rounded up."""
    return -(-numerator // denominator)
