"""Models as Anthropic lists them, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from penstock.catalogue import Model
from penstock.errors import InvalidRequest

MOST_ON_A_PAGE = 1_000  # Anthropic's own limit for `limit`


def page(models: Sequence[Model], surface: str, query: Mapping[str, str]) -> dict[str, Any]:
    """The models that can be called, by `limit`, `after_id` and `before_id`. InvalidRequest when the limit is none."""
    entries = [entry(model, model.name_on(surface)) for model in models if model.kind == "chat" and not model.planned]
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
    return {
        "type": "model",
        "id": name,
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": model.context_length,
        "max_tokens": model.max_output_tokens,
    }


def _limit(text: str | None) -> int:
    if text is None:
        return MOST_ON_A_PAGE
    if not (text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MOST_ON_A_PAGE):
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {MOST_ON_A_PAGE}.", param="limit")
    return int(text)
