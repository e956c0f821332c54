"""Events of a Messages stream, rendered: for streams that are ended here, and for those that are made of another
dialect's. Which event comes when is the business of whoever calls."""

from __future__ import annotations

from typing import Any

from msgspec import json

from penstock.dialects import Label
from penstock.dialects.anthropic_errors import error_type
from penstock.dialects.anthropic_usage import write_report
from penstock.dialects.usage import TokenUsage

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
# Begins the signature of thinking that came from an upstream of another dialect; the field it came in follows.
SIGNATURE = "penstock:"
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

_encode = json.Encoder().encode


def event(kind: str, fields: dict[str, Any]) -> bytes:
    """Any event; its kind is named twice, as Anthropic does."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def message_start(label: Label, model: str, usage: TokenUsage) -> bytes:
    """The first event: a message without content. `model` is for a label that names none."""
    return event("message_start", {"message": message(label, model, usage)})


def message(label: Label, model: str, usage: TokenUsage) -> dict[str, Any]:
    """A message without content."""
    return {
        "id": message_id(label),
        "type": "message",
        "role": "assistant",
        "model": label.model or model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": write_report(usage),
    }


def message_id(label: Label) -> str:
    """Our name for the answer to a request (`req_…`)."""
    return f"msg_{label.id.partition('_')[2] or label.id}"


def block_start(index: int, block: dict[str, Any]) -> bytes:
    return event("content_block_start", {"index": index, "content_block": block})


def block_delta(index: int, delta: dict[str, Any]) -> bytes:
    return event("content_block_delta", {"index": index, "delta": delta})


def block_stop(index: int) -> bytes:
    return event("content_block_stop", {"index": index})


def message_delta(
    stop: dict[str, Any], usage: TokenUsage, reason: str | None = None, more: dict[str, Any] | None = None
) -> bytes:
    """How a message ended, and what it used. `reason` is for machines and says why it was ended here."""
    ours = {} if reason is None else {"penstock": {"reason": reason}}
    return event("message_delta", {"delta": stop, "usage": write_report(usage), **(more or {}), **ours})


def error_event(kind: str, message: str, id: str) -> bytes:
    """An error of one of our kinds, after which nothing comes."""
    return event("error", {"error": {"type": error_type(kind), "message": message}, "request_id": id})
