"""The values operations take and give: amounts of USD, instants, names, lists.

USD is written in dollars and shown in dollars and in nano-USD; instants are ISO 8601, UTC. What cannot be meant is
refused here with the name of the parameter, for every door alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, overload

from penstock.clock import from_iso, iso
from penstock.errors import InvalidRequest
from penstock.money.units import dollars, nano_usd

T = TypeVar("T")

LARGEST_AMOUNT = 10**15  # a million dollars, or as many tokens: beyond is a slip; thousands of them sum within 64 bits
LONGEST_NAME = 200
MOST_ON_A_PAGE = 1000
_DOLLARS = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Amount:
    """An amount of money, exactly: in dollars as text (`"12.50"`) and in nano-USD."""

    usd: str
    nano: int


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """Some of what there is, in order. `next` is the cursor to the rest; null when this is all."""

    data: tuple[T, ...]
    next: str | None = None


class _Named(Protocol):
    """What a list has, by its id."""

    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def page_of(found: Sequence[N], limit: int) -> Listing[N]:
    """A page of so many, of which one more was looked for to know whether there is more."""
    return Listing(tuple(found[:limit]), found[limit - 1].id if len(found) > limit else None)


def amount(nano: int) -> Amount:
    """An amount of nano-USD as it is shown."""
    return Amount(dollars(nano), nano)


def require_printable(arguments: Mapping[str, object]) -> None:
    """InvalidRequest for text with characters that nobody can have meant, and that a database may not take."""
    for param, value in arguments.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise InvalidRequest(f"'{param}' has characters that cannot be printed.", param=param)


def require_filled(**given: str | None) -> None:
    """InvalidRequest for what is given and empty: nothing has such a name, and all is not what was asked for."""
    for param, value in given.items():
        if value == "":
            raise InvalidRequest(f"'{param}' is empty; leave it out.", param=param)


def parse_usd(written: str, param: str) -> int:
    """Nano-USD for `"12.50"`; more than nothing and at most a million dollars, else InvalidRequest."""
    if not _DOLLARS.fullmatch(written):
        raise InvalidRequest(
            f"'{param}' must be an amount of dollars such as \"12.50\", at most 1,000,000.", param=param
        )
    return within(nano_usd(written), param, most=LARGEST_AMOUNT, shown="1,000,000 dollars")


def within(number: int, param: str, *, most: int, shown: str | None = None) -> int:
    """The number, when it is from 1 to `most`; else InvalidRequest."""
    if number < 1:
        raise InvalidRequest(f"'{param}' must be more than zero.", param=param)
    if number > most:
        raise InvalidRequest(f"'{param}' must be at most {shown or format(most, ',')}.", param=param)
    return number


def parse_instant(written: str | None, param: str) -> int | None:
    """Milliseconds for an ISO instant; a bare date is the start of that day, UTC. InvalidRequest when it is neither."""
    if written is None:
        return None
    try:
        return from_iso(written)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"'{param}' must be a date or an instant such as 2027-01-31 or 2027-01-31T12:00:00Z.", param=param
        ) from None


@overload
def show_instant(instant_ms: int) -> str: ...
@overload
def show_instant(instant_ms: int | None) -> str | None: ...
def show_instant(instant_ms: int | None) -> str | None:
    """`2027-01-31T12:00:00Z`."""
    return None if instant_ms is None else iso(instant_ms)


def parse_name(written: str, param: str = "name") -> str:
    """A name for people: 1 to 200 characters with something to see in them."""
    name = written.strip()
    if not name or len(name) > LONGEST_NAME:
        raise InvalidRequest(f"'{param}' must have 1 to {LONGEST_NAME} characters.", param=param)
    return name
