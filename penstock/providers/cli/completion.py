"""An answer in OpenAI's wire format, as a document or as events. Values in, bytes out, no I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.dialects.usage import TokenUsage
from penstock.providers.cli.prompt import Asked

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Completion:
    """Writes one answer. `created_s` is in seconds since 1970."""

    def __init__(self, asked: Asked, *, id: str, created_s: int) -> None:
        self._asked = asked
        self._identity = {"id": id, "created": created_s, "model": asked.model}
        self._begun = False

    def __repr__(self) -> str:
        return f"Completion({self._identity['id']})"

    def chunk(self, text: str) -> bytes:
        """An event with more text; the first one says whose it is."""
        delta = {"content": text} if self._begun else {"role": "assistant", "content": text}
        self._begun = True
        return self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def last(self, finish_reason: str, usage: TokenUsage | None) -> bytes:
        """The events that end the stream: the finish reason, the usage where it was asked for and is known, the
        terminator."""
        delta = {} if self._begun else {"role": "assistant", "content": ""}
        events = self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])
        if self._asked.include_usage and usage is not None:
            events += self._event([], usage=_report(usage))
        return events + DONE

    def whole(self, text: str, finish_reason: str, usage: TokenUsage | None) -> bytes:
        """The answer as one document. Where the command did not count, nobody says that it did."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        document: dict[str, Any] = self._identity | {"object": "chat.completion", "choices": [choice]}
        if usage is not None:
            document["usage"] = _report(usage)
        return _encode(document)

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = self._identity | {"object": "chat.completion.chunk", "choices": choices} | more
        return b"data: " + _encode(chunk) + b"\n\n"


def models(names: tuple[str, ...]) -> bytes:
    """The list of models. A command tells of none, so there is one, for whatever it runs."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "command"} for name in names]
    return _encode({"object": "list", "data": data})


def refusal(message: str, *, type: str, code: str | None, param: str | None) -> bytes:
    """The body of an error."""
    return _encode({"error": {"message": message, "type": type, "code": code, "param": param}})


def _report(usage: TokenUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
