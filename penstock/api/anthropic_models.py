"""Models as Anthropic lists them, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from penstock.catalogue import AUTO, Model
from penstock.errors import InvalidRequest

MOST_ON_A_PAGE = 1_000  # Anthropic's own limit for `limit`
NO_AGE = "1970-01-01T00:00:00Z"  # what Anthropic says where it does not know


def entries(models: Sequence[Model], surface: str, choice: Sequence[Model]) -> list[dict[str, Any]]:
    """The models that can be called, and after them `auto` when it has something to choose among."""
    named = [entry(model, model.name_on(surface)) for model in models if is_shown(model)]
    return named + ([auto_entry(choice)] if choice else [])


def page(entries: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Some of these, by `limit`, `after_id` and `before_id`. InvalidRequest when the limit is none."""
    ids = [each["id"] for each in entries]
    limit = _limit(query.get("limit"))
    start, end = 0, len(entries)
    if query.get("after_id") in ids:
        start = ids.index(query["after_id"]) + 1
    if query.get("before_id") in ids:
        end = ids.index(query["before_id"])
    shown = entries[max(start, end - limit) : end] if "before_id" in query else entries[start : min(end, start + limit)]
    return {
        "data": shown,
        "has_more": len(shown) < end - start,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def is_shown(model: Model) -> bool:
    """Whether a message can be asked of a model."""
    return model.kind == "chat" and not model.planned


def entry(model: Model, name: str) -> dict[str, Any]:
    """One model, by one of its names."""
    created = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    return _entry(name, model.id, created, [model])


def auto_entry(choice: Sequence[Model]) -> dict[str, Any]:
    """`auto`, which reaches as far as the largest of what it chooses among, and is of no age."""
    return _entry(AUTO, AUTO, NO_AGE, choice)


def _entry(name: str, display_name: str, created_at: str, models: Sequence[Model]) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": display_name,
        "created_at": created_at,
        "max_input_tokens": max((each.context_length for each in models if each.context_length), default=None),
        "max_tokens": max((each.max_output_tokens for each in models if each.max_output_tokens), default=None),
    }


def _limit(text: str | None) -> int:
    if text is None:
        return MOST_ON_A_PAGE
    if not (text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MOST_ON_A_PAGE):
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {MOST_ON_A_PAGE}.", param="limit")
    return int(text)
