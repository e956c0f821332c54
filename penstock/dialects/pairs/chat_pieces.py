"""What a chat completion says, message or delta, as parts of a message. Servers differ, so nothing is relied on."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Raw, Struct, json

from penstock.dialects import json_fields

# Divides a call's id from what its server wants back with it (Gemini signs what it thought before a call, and refuses a
# conversation without). An id is all of a call that every caller returns as it was.
EXTRA = "__extra__"
Kind = Literal["text", "thinking", "tool_use"]


class Piece(Struct, frozen=True, gc=False):
    """A part of a message, or what an event adds to one. `key` tells parts of one kind apart; a tool's `key` is its
    place, and of thinking it is the field it came in."""

    kind: Kind
    key: str
    text: str
    id: str = ""
    name: str = ""


def pieces(delta: dict[str, Any]) -> list[Piece]:
    """What a delta or a whole message has, in the order in which a model produces it."""
    found: list[Piece] = []
    for field in ("reasoning_content", "reasoning"):
        text = delta.get(field)
        if isinstance(text, str) and text:
            found.append(Piece("thinking", field, text))
            break  # servers that moved from one name to the other send the same text under both
    found += _said(delta.get("content"))
    found += _said(delta.get("refusal"))
    calls = delta.get("tool_calls")
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            found.append(_called(call, place))
    return found


def _said(content: Any) -> Iterable[Piece]:
    """Text, also where a server sends a list of parts (Mistral's thinking models)."""
    waiting = _parts(content, "text")  # the next one last: thinking may be in thinking, at any depth
    while waiting:
        part, kind = waiting.pop()
        if isinstance(part, str) and part:
            yield Piece(kind, "" if kind == "text" else "content", part)
        elif isinstance(part, dict):
            if isinstance(part.get("thinking"), list | str):
                waiting += _parts(part["thinking"], "thinking")
            elif isinstance(part.get("text"), str):
                waiting.append((part["text"], kind))


def _parts(content: Any, kind: Kind) -> list[tuple[Any, Kind]]:
    parts = content if isinstance(content, list) else [content]
    return [(part, kind) for part in reversed(parts)]


def _called(call: dict[str, Any], place: int) -> Piece:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    index, id, name = call.get("index"), call.get("id"), function.get("name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.encode(arguments).decode()
    return Piece(
        "tool_use",
        str(index if isinstance(index, int) else place),
        arguments if isinstance(arguments, str) else "",
        id=with_extra(id if isinstance(id, str) else "", call.get("extra_content")),
        name=name if isinstance(name, str) else "",
    )


def with_extra(id: str, extra: Any) -> str:
    """A call's id with what its server wants back, in characters that an id may have."""
    if not isinstance(extra, dict) or not extra:
        return id
    return id + EXTRA + urlsafe_b64encode(json.encode(extra)).decode().rstrip("=")


def without_extra(id: str) -> tuple[str, Raw | None]:
    """A call's own id, and what was put behind it."""
    own, mark, extra = id.rpartition(EXTRA)
    if not mark:
        return id, None
    try:
        raw = urlsafe_b64decode(extra + "=" * (-len(extra) % 4))
        json_fields.split(raw)
    except (ValueError, RecursionError):  # it is somebody else's id
        return id, None
    return own, Raw(raw)


def size(found: Iterable[Piece]) -> int:
    """Bytes of UTF-8."""
    return sum(len((piece.text + piece.name).encode("utf-8", "surrogatepass")) for piece in found)


def first_choice(choices: Any) -> dict[str, Any] | None:
    """The choice that counts; there is one only, since a message is one."""
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index") in (0, None):
            return choice
    return None


def content_of(choice: dict[str, Any]) -> dict[str, Any]:
    """The delta or the message of a choice; empty when it has neither."""
    for name in ("delta", "message"):
        content = choice.get(name)
        if isinstance(content, dict):
            return content
    return {}
