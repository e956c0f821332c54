"""From OpenAI Responses to Anthropic Messages and back: over chat, by the two pairs that there are.

    Responses  --responses_to_chat-->  chat  --chat_to_messages-->  Messages

Nothing is lost on the way that a pair of its own would keep: chat, as these two write it, carries thinking with its
signature (`reasoning_details`, which a caller keeps as `encrypted_content`), parallel calls, results with images,
schemas and cache marks. What Messages has no word for is refused by the second of them, and is named here as the caller
knows it.
"""

from __future__ import annotations

from msgspec.structs import replace

from penstock.dialects import Label, Plain, Step, Stream, Wish, json_fields, sse
from penstock.dialects.pairs import chat_to_messages, responses_to_chat
from penstock.dialects.pairs.responses_to_chat import ResponseOfChat
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest

PATH = chat_to_messages.PATH

# What a field of a chat request was in the request for a response. Messages are not items, so of these the field alone.
_CALLED = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream. `InvalidRequest` names a field that Messages has nothing for."""
    chat = responses_to_chat.request(
        wish, model=model, output_limit=output_limit, limit_field="max_completion_tokens", ask_usage=False
    )
    try:
        return chat_to_messages.request(
            replace(wish, fields=json_fields.split(chat)),
            model=model,
            output_limit=output_limit,
            limit_field=limit_field,
            ask_usage=ask_usage,
        )
    except InvalidRequest as error:
        raise _as_called(error) from None


def _as_called(error: InvalidRequest) -> InvalidRequest:
    """The error with the caller's own name for the field."""
    param = error.param or ""
    field = param.partition("[")[0].partition(".")[0]
    if field not in _CALLED:
        return error
    message = error.message.replace(f"'{param}'", f"'{_CALLED[field]}'", 1)
    return InvalidRequest(message, param=_CALLED[field], code=error.code)


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's message and give it as a response. `UpstreamFailed` when it is none."""
    chat = chat_to_messages.answer(body, wish=wish, label=label)
    plain = responses_to_chat.answer(chat.body, wish=wish, label=label)
    return replace(plain, usage=chat.usage, produced=chat.produced)


def open_stream(*, wish: Wish, label: Label) -> ResponseOfMessages:
    """Begin reading a streamed message."""
    return ResponseOfMessages(
        chat_to_messages.open_stream(wish=wish, label=label), responses_to_chat.open_stream(wish=wish, label=label)
    )


class ResponseOfMessages:
    """A streamed message, given as a streamed response. `_chat` reads it, `_response` reads that."""

    __slots__ = ("_chat", "_cut", "_response")

    def __init__(self, chat: Stream, response: ResponseOfChat) -> None:
        self._chat = chat
        self._response = response
        self._cut = False  # we have ended it, so the upstream's own end does not count

    def __repr__(self) -> str:
        return f"ResponseOfMessages({self._chat!r}, {self._response!r})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event. Never raises."""
        self._response.mark()
        step = self._chat.feed(event)
        return replace(step, out=self._read(step.out))

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """Nothing is cut short here."""
        return b"", 0, start

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """The events that end what is open."""
        self._cut = True
        return self._response.final_chunk(finish_reason=finish_reason, reason=reason)

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """Nothing: the event that ends the stream carries the usage."""
        return self._response.usage_chunk(usage)

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began."""
        self._cut = True
        return self._response.error_event(type=type, code=code, message=message, param=param)

    def terminator(self) -> bytes:
        """The events that end the response."""
        rest = b"" if self._cut else self._read(self._chat.terminator())
        return rest + self._response.terminator()

    def _read(self, chat: bytes) -> bytes:
        return b"".join([self._response.read(event).out for event in sse.events(chat)])
