"""One value of the configuration: from what stands in the file to what the settings hold, or what is wrong with it.

`config.py` notes on each field how it is written (`Annotated[int, whole(1, 65_535)]`); `convert` follows the note. A
message says what would be right and never repeats the value: the line is named beside it, and some values are secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from penstock.clock import from_iso

NANO_DECIMALS = 9
_MOST_DOLLARS = 1_000_000  # in nano-USD this is far inside 64 bits, and no price comes near it
_LONGEST_TEXT = 500
_CONNECTION = """
    host content-length transfer-encoding connection accept-encoding te trailer upgrade expect keep-alive
    proxy-connection
"""
CONNECTION_HEADERS = frozenset(_CONNECTION.split())  # who sends a request writes them: see `providers/origin.py`


class WrongValueError(ValueError):
    """A value is not what its setting needs; the message completes the sentence `<setting>: …`."""


def convert(hint: Any, raw: object) -> Any:
    """The TOML value `raw` as the type `hint` asks; `WrongValueError` when it cannot be."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))  # TOML has no way to write None
    if get_origin(hint) is Annotated:
        return get_args(hint)[1](raw)
    if get_origin(hint) is Literal:
        return _one_of(get_args(hint), raw)
    if get_origin(hint) is tuple:
        return tuple(convert(get_args(hint)[0], item) for item in _listed(raw))
    return _truth(raw) if hint is bool else text(raw)


def whole(low: int, high: int) -> Callable[[object], int]:
    """Reads a whole number from `low` to `high`, both included."""

    def read(raw: object) -> int:
        if isinstance(raw, int) and not isinstance(raw, bool) and low <= raw <= high:
            return raw
        raise wrong(f"a whole number from {low} to {high}", raw, int)

    return read


def number(low: float, high: float) -> Callable[[object], float]:
    """Reads a number, whole or not, from `low` to `high`, both included."""

    def read(raw: object) -> float:
        amount = _finite(raw)
        if amount is not None and low <= amount <= high:
            return float(amount)
        raise wrong(f"a number from {low} to {high}", raw, int, Decimal)

    return read


def matching(pattern: str, words: str) -> Callable[[object], str]:
    """Reads text that matches `pattern` as a whole; `words` say what that is (`a name of …`)."""
    compiled = re.compile(pattern)

    def read(raw: object) -> str:
        if isinstance(raw, str) and compiled.fullmatch(raw):
            return raw
        raise wrong(words, raw, str)

    return read


def text(raw: object) -> str:
    """Text on one line."""
    if isinstance(raw, str) and 0 < len(raw) <= _LONGEST_TEXT and raw.isprintable():
        return raw
    raise wrong(f"text of 1 to {_LONGEST_TEXT} characters on one line", raw, str)


def model_name(raw: object) -> str:
    """A name a model is called by."""
    if isinstance(raw, str) and re.fullmatch(r"[!-~]{1,200}", raw):
        return raw
    raise wrong("a name of 1 to 200 printable ASCII characters without spaces", raw, str)


def by_surface(surfaces: tuple[str, ...]) -> Callable[[object], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Reads names for all surfaces (a list) or for each (a table of lists)."""

    def read(raw: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
        table = {"*": raw} if isinstance(raw, list) else raw
        if not isinstance(table, dict):
            raise wrong('a list of names, or a table such as { trust = ["name"] }', raw)
        if stray := next((key for key in table if key not in surfaces), None):
            raise WrongValueError(f"has a surface {stray!r}{did_you_mean(stray, surfaces)}")
        return tuple((surface, tuple(model_name(name) for name in _listed(table[surface]))) for surface in table)

    return read


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'port'?)`, or what there is to choose from when nothing is near."""
    names = sorted(known)
    if near := get_close_matches(name, names, 1):
        return f" (did you mean {near[0]!r}?)"
    return f" (there are: {', '.join(names)})" if names else ""


def web_address(raw: object) -> str:
    """An http or https address without credentials, query or fragment; a slash at the end is dropped."""
    words = "an address such as https://api.example.com/v1"
    if not isinstance(raw, str) or not raw.isascii() or not raw.isprintable() or " " in raw:
        raise wrong(words, raw, str)
    try:
        parts = urlsplit(raw)
        port = parts.port  # reading it checks its range
    except ValueError as error:
        raise wrong(words, raw, str) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise wrong(words, raw, str)
    if parts.username is not None or parts.query or parts.fragment:
        raise WrongValueError("must be an address without credentials, query or fragment")
    return raw.rstrip("/?#")


def dollars(raw: object) -> int:
    """An amount in dollars, a number or a numeral in quotes, as nano-USD. Exact: a tenth decimal is a mistake."""
    written = Decimal(raw) if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,30})?", raw) else raw
    amount = _finite(written)
    if amount is None or not 0 <= amount <= _MOST_DOLLARS:
        raise wrong(f"an amount in dollars from 0 to {_MOST_DOLLARS}", raw, int, Decimal, str)
    nano = to_nano(Decimal(amount))
    if nano is None:
        raise WrongValueError(f"has more than {NANO_DECIMALS} decimals; the smallest amount is 0.000000001 dollars")
    return nano


def to_nano(amount: Decimal) -> int | None:
    """Nano-USD for `amount` dollars (at least 0), or None when that is not a whole number."""
    _, digits, exponent = amount.as_tuple()
    if not isinstance(exponent, int) or not any(digits):
        return 0 if amount == 0 else None
    figure = int("".join(map(str, digits)))  # Decimal's own arithmetic rounds to 28 digits; whole numbers do not
    places = exponent + NANO_DECIMALS
    if places >= 0:
        return int(figure * 10**places)
    if -places > len(digits):
        return None
    nano, rest = divmod(figure, 10**-places)
    return None if rest else nano


def instant(raw: object) -> int:
    """A date (the start of that day, UTC) or an instant, as TOML has them or as ISO 8601 text, in ms since 1970."""
    try:
        if isinstance(raw, str | date):
            milliseconds = from_iso(raw if isinstance(raw, str) else _with_zone(raw).isoformat())
            if milliseconds > 0:
                return milliseconds
    except (ValueError, OverflowError):
        pass
    raise wrong("a date or an instant such as 2027-12-31 or 2027-12-31T12:00:00Z", raw, str, date)


def headers(raw: object) -> tuple[tuple[str, str], ...]:
    """A table of header names and values; credentials are refused, they have a setting of their own."""
    if not isinstance(raw, dict):
        raise wrong('a table of headers such as { "x-title" = "Penstock" }', raw)
    for name, value in raw.items():
        if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name):
            raise WrongValueError("has a header whose name is not made of letters, digits and '-'")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise WrongValueError(f"the value of {name} must be printable ASCII text")
        if name.lower() in ("authorization", "api-key", "x-api-key", "proxy-authorization", "cookie"):
            raise WrongValueError(f"{name} is a credential; give it as api_key_env or api_key_file")
        if name.lower() in CONNECTION_HEADERS:
            raise WrongValueError(f"{name} belongs to the connection")
    return tuple((name.lower(), value) for name, value in raw.items())


def wrong(words: str, raw: object, *expected: type) -> WrongValueError:
    """`must be <words>`, and what it is instead when not even its type is right."""
    if type(raw) in expected or type(raw) not in _KINDS:
        return WrongValueError(f"must be {words}")
    return WrongValueError(f"must be {words}, not {_KINDS[type(raw)]}")


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    Decimal: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
    date: "a date",
    datetime: "an instant",
}


def _one_of(choices: tuple[Any, ...], raw: object) -> Any:
    if isinstance(raw, str) and raw in choices:
        return raw
    named = [f'"{choice}"' for choice in choices]
    raise wrong(" or ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named), raw, str)


def _listed(raw: object) -> list[Any]:
    if isinstance(raw, list):
        return raw
    raise wrong("a list", raw)


def _truth(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    raise wrong("true or false", raw)


def _finite(raw: object) -> int | Decimal | None:
    if isinstance(raw, bool) or not isinstance(raw, int | Decimal):
        return None
    return None if isinstance(raw, Decimal) and not raw.is_finite() else raw


def _with_zone(day: date) -> datetime:
    moment = day if isinstance(day, datetime) else datetime(day.year, day.month, day.day, tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
