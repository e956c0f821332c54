"""What a request only names because a provider keeps it: files, containers, vector stores, and the like.

A provider keeps them for whoever has its key, which is the operator's: so they are one namespace for all callers, and
an id of one caller's is good for any other. The readers of each dialect ask here about what they come across; whether
an offer may be asked for such things is decided in `penstock/relay/tailor.py`. Files that are in a request itself, and
addresses on the web, are nobody's in particular.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from penstock.dialects.json_fields import plain

_OPEN = frozenset({"http", "https", "data"})
_LONGEST_SCHEME = 20  # characters; what has no colon among the first is data without a scheme, as some engines take it
_IDS = frozenset({"file_id", "file_ids", "vector_store_ids", "container_id", "skill_id"})
_DEEPEST = 8  # levels of a tool's settings, which have four


def is_address(url: str | None) -> bool:
    """Whether this is an address of a provider's own (`gs:`, `ms:`), or of a file where it runs (`file:`)."""
    if not url:
        return False
    scheme, colon, _ = url[:_LONGEST_SCHEME].partition(":")
    return bool(colon) and scheme.strip().lower() not in _OPEN


def url_of(raw: Raw) -> str | None:
    """The address in a field, which may be an object with one."""
    value = plain(raw)
    url = value.get("url") if isinstance(value, dict) else value
    return url if isinstance(url, str) else None


def names_any(raw: Raw) -> bool:
    """Whether a field names something: it is there, and not empty."""
    return bool(raw) and bool(plain(raw))


def in_object(raw: Raw, *names: str) -> str | None:
    """The first of these fields of an object that names something. None also when it is no object."""
    value = plain(raw) if raw else None
    return next((name for name in names if value.get(name)), None) if isinstance(value, dict) else None


def id_in(raw: Raw) -> bool:
    """Whether an id of such a thing is anywhere in the settings of a tool."""
    return bool(raw) and _has_id(plain(raw), _DEEPEST)


def _has_id(value: Any, depth: int) -> bool:
    if depth == 0:
        return bool(value)
    if isinstance(value, dict):
        return any((name in _IDS and bool(each)) or _has_id(each, depth - 1) for name, each in value.items())
    return isinstance(value, list) and any(_has_id(each, depth - 1) for each in value)
