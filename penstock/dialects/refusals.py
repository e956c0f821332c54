"""What an upstream says when it refuses: its words, a code and the field it means, in whichever shape it writes them.

OpenAI's envelope is `{"error": {"message", "code", "param"}}`. Others wrap it in a list (Gemini), put the words beside
a bare `error` (xAI) or directly in the object (Mistral, Cerebras), call them `detail` (DeepInfra, FastAPI's servers) or
pass on another's refusal as text (OpenRouter). The words are the upstream's own: redact before showing them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import json

_DEEPEST = 6  # envelopes in one another: a router's with another provider's in it, and words at the bottom


class Said(NamedTuple):
    """What there is of a refusal."""

    message: str | None = None
    code: str | None = None
    param: str | None = None


def read_refusal(body: bytes | str) -> Said:
    """What a body says; nothing when it is in no shape that is known."""
    try:
        return _read(json.decode(body), _DEEPEST)
    except (ValueError, RecursionError):
        return Said()


def _read(value: Any, depth: int) -> Said:
    if depth == 0:
        return Said()
    if isinstance(value, str):
        return Said(value or None)
    if isinstance(value, list):
        return _details(value) or (_read(value[0], depth - 1) if value else Said())
    return _read_object(value, depth) if isinstance(value, dict) else Said()


def _read_object(value: dict[str, Any], depth: int) -> Said:
    for name in ("error", "message", "detail"):
        if value.get(name):
            said = _read(value[name], depth - 1)
            code, param = said.code or _code(value), said.param or _word(value.get("param"))
            return _with_cause(Said(said.message, code, param), value.get("metadata"), depth)
    return Said()


def _details(errors: list[Any]) -> Said | None:
    """The mistakes of a request as pydantic lists them: where each is, and what it is."""
    if not all(isinstance(each, dict) and isinstance(each.get("msg"), str) for each in errors) or not errors:
        return None
    places = [_place(each.get("loc")) for each in errors]
    words = "; ".join(
        f"{place}: {each['msg']}" if place else each["msg"] for place, each in zip(places, errors, strict=True)
    )
    return Said(words, param=places[0] or None)


def _place(loc: Any) -> str:
    return ".".join(str(part) for part in loc if part != "body") if isinstance(loc, list) else ""


def _with_cause(said: Said, metadata: Any, depth: int) -> Said:
    """OpenRouter's words for another provider's refusal say nothing; what that one said comes beside them."""
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if not isinstance(raw, str) or not raw:
        return said
    try:
        cause = _read(json.decode(raw), depth - 1)
    except (ValueError, RecursionError):
        cause = Said(raw)
    return Said(f"{said.message}: {cause.message or raw}", said.code, said.param or cause.param)


def _code(error: dict[str, Any]) -> str | None:
    """What kind of error it is. Some repeat the status as the code; then the type says more."""
    code = error.get("code")
    repeats = isinstance(code, int) and not isinstance(code, bool)
    return (_word(error.get("type") or error.get("status")) if repeats else None) or _word(code)


def _word(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
