"""What a request only names because a provider keeps it: files, containers, vector stores, and the like.

A provider keeps them for whoever has its key, which is the operator's: so they are one namespace for all callers, and
an id of one caller's is good for any other. The readers of each dialect ask here about what they come across; whether
an offer may be asked for such things is decided in `penstock/relay/tailor.py`. Files that are in a request itself, and
addresses on the web, are nobody's in particular.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, json

_OPEN = frozenset({"http", "https", "data"})
_LONGEST_SCHEME = 20  # characters; what has no colon among the first is data without a scheme, as some engines take it
_IDS = frozenset({"file_id", "file_ids", "vector_store_ids", "container_id", "skill_id"})
_DEEPEST = 8  # levels of a tool's settings, which have four
_BLANK = "".join(map(chr, range(33)))  # what readers of addresses pass over before one
UNREADABLE = "unreadable"  # stands for a value that we cannot read and a provider may: it may name anything


def read(raw: Raw) -> Any:
    """A decoded value, `UNREADABLE` when it cannot be had."""
    try:
        return json.decode(raw)
    except (ValueError, RecursionError):
        return UNREADABLE


def is_address(url: object) -> bool:
    """Whether this is an address of a provider's own (`gs:`, `ms:`), or of a file where it runs (`file:`)."""
    if not url or not isinstance(url, str):
        return False
    scheme, colon, _ = url.lstrip(_BLANK)[:_LONGEST_SCHEME].partition(":")
    return bool(colon) and scheme.lower() not in _OPEN


def has_address(raw: Raw) -> bool:
    """Whether there is such an address in a field, which may be an object with one."""
    value = read(raw) if raw else None
    return value is UNREADABLE or is_address(value.get("url") if isinstance(value, dict) else value)


def names_any(raw: Raw) -> bool:
    """Whether a field names something: it is there, and not empty."""
    return bool(raw) and bool(read(raw))


def in_object(raw: Raw, name: str) -> bool:
    """Whether this field of an object names something. Not when it is no object."""
    value = read(raw) if raw else None
    return value is UNREADABLE or (isinstance(value, dict) and bool(value.get(name)))


def id_in(raw: Raw) -> bool:
    """Whether an id of such a thing is anywhere in the settings of a tool."""
    value = read(raw) if raw else None
    return value is UNREADABLE or _has_id(value, _DEEPEST)


def _has_id(value: Any, depth: int) -> bool:
    if depth == 0:
        return bool(value)
    if isinstance(value, dict):
        return any((name in _IDS and bool(each)) or _has_id(each, depth - 1) for name, each in value.items())
    return isinstance(value, list) and any(_has_id(each, depth - 1) for each in value)
