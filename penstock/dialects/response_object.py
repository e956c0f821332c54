"""The `response` object of OpenAI's Responses API, where we are the ones to write it: its names, what it repeats of
the request, its usage and how it ended.

What is in its output is put there by `response_progress.py` and the pairs; an upstream's own object passes, see
`openai_responses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw

from penstock.dialects import Label
from penstock.dialects.json_fields import plain
from penstock.dialects.usage import TokenUsage

# What a response repeats of its request, and what stands there when the request did not say.
ECHOED: tuple[tuple[str, Any], ...] = (
    ("background", False),
    ("instructions", None),
    ("max_output_tokens", None),
    ("max_tool_calls", None),
    ("metadata", {}),
    ("parallel_tool_calls", True),
    ("previous_response_id", None),
    ("prompt_cache_key", None),
    ("reasoning", {"effort": None, "summary": None}),
    ("safety_identifier", None),
    ("service_tier", None),
    ("store", True),
    ("temperature", None),
    ("text", {"format": {"type": "text"}}),
    ("tool_choice", "auto"),
    ("tools", []),
    ("top_logprobs", 0),
    ("top_p", None),
    ("truncation", "disabled"),
    ("user", None),
)
# How a chat completion's end is called in a response: (status, reason of being incomplete).
ENDS = {"length": ("incomplete", "max_output_tokens"), "content_filter": ("incomplete", "content_filter")}


def response_id(label: Label) -> str:
    """The id of the response to a request."""
    return f"resp_{_suffix(label)}"


def item_id(prefix: str, label: Label, place: int) -> str:
    """The id of an item of its output, or of its input."""
    return f"{prefix}_{_suffix(label)}{place:04x}"


def _suffix(label: Label) -> str:
    return label.id.partition("_")[2] or label.id


def envelope(fields: Mapping[str, Raw], label: Label) -> dict[str, Any]:
    """A response that has just begun, in the order the published API has its fields; `fields` are the request's."""
    begun: dict[str, Any] = {
        "id": response_id(label),
        "object": "response",
        "created_at": label.created_s,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": label.model or plain(fields.get("model")) or "",
        "output": [],
        "usage": None,
    }
    return begun | {name: _echo(fields, name, default) for name, default in ECHOED}


def _echo(fields: Mapping[str, Raw], name: str, default: Any) -> Any:
    value = plain(fields.get(name))
    if value is None:
        return default
    return {**default, **value} if isinstance(default, dict) and isinstance(value, dict) else value


def ended(begun: Mapping[str, Any], output: list[Any], usage: TokenUsage | None, finish_reason: str | None) -> Any:
    """The response at its end. `finish_reason` is a chat completion's."""
    status, reason = ENDS.get(finish_reason or "", ("completed", None))
    return {
        **begun,
        "status": status,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": usage_object(usage) if usage is not None else None,
    }


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """The usage as a response reports it."""
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached_input, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total or usage.input + usage.output,
    }
