"""A Messages upstream's answers in the words of OpenAI chat: plain ones and streams.

The other half of `chat_to_messages.py`. Thinking becomes `reasoning_content`; its signature goes along in
`reasoning_details`, so that a caller who sends the message back lets the model think on.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json
from msgspec.structs import replace

from penstock.dialects import Label, Plain, Step, Wish, json_fields, sse, unread
from penstock.dialects.anthropic_usage import UsageReport, read_report
from penstock.dialects.usage import TokenUsage, estimate_delta_tokens, estimate_tokens
from penstock.errors import UpstreamFailed

DONE = b"data: [DONE]\n\n"
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
REFUSED = "The model declined to answer."


class _Block(Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")


class _StopDetails(Struct, gc=False):
    explanation: str | None = None


class _Message(Struct, gc=False):
    content: list[_Block]
    model: str = ""
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    usage: Raw = Raw()


class _Start(Struct, gc=False):
    model: str = ""
    usage: Raw = Raw()


class _Delta(Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


class _Event(Struct, gc=False):
    type: str = ""
    index: Annotated[int, Meta(ge=0)] = 0
    message: _Start | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Raw = Raw()


class _Content(Struct, gc=False):
    delta: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None


_MESSAGE = json.Decoder(_Message)
_EVENT = json.Decoder(_Event)
_CONTENT = json.Decoder(_Content)
_OF_BLOCKS = frozenset({"content_block_start", "content_block_delta"})


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's message, and render the completion it is. `UpstreamFailed` when it is none."""
    json_fields.answer_fields(body)
    try:
        message = _MESSAGE.decode(body)
    except (ValueError, RecursionError):
        raise UpstreamFailed("The provider's answer is not a message.", began=True) from None
    usage = read_report(message.usage).counted()
    said = _said(message, legacy=_is_legacy(wish))
    finish_reason = _finish(message.stop_reason, legacy=_is_legacy(wish))
    completion = {
        "id": _id(label),
        "object": "chat.completion",
        "created": label.created_s,
        "model": label.model or message.model,
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason}],
    }
    if usage is not None:
        completion["usage"] = usage_report(usage)
    produced = sum(map(_size, message.content)) if usage is None else 0
    return Plain(json_fields.join(completion), usage, estimate_tokens(produced) if usage is None else usage.output)


def open_stream(*, wish: Wish, label: Label) -> MessagesAsChat:
    """Begin reading a streamed message."""
    return MessagesAsChat(label, legacy=_is_legacy(wish))


def usage_report(usage: TokenUsage) -> dict[str, Any]:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input,
            "cache_write_tokens": usage.cache_write,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _is_legacy(wish: Wish) -> bool:
    """Whether the caller knows functions and not tools."""
    return "functions" in wish.fields and "tools" not in wish.fields


def _id(label: Label) -> str:
    return f"{'chatcmpl-' if label.id_prefix is None else label.id_prefix}{label.id.partition('_')[2] or label.id}"


def _finish(stop_reason: str | None, *, legacy: bool) -> str:
    finish = FINISHES.get(stop_reason or "", "stop")
    return "function_call" if legacy and finish == "tool_calls" else finish


def _refusal(stop_reason: str | None, details: _StopDetails | None) -> str | None:
    if stop_reason != "refusal":
        return None
    return (details.explanation if details is not None else None) or REFUSED


def _said(message: _Message, *, legacy: bool) -> dict[str, Any]:
    blocks = message.content
    text = "".join(block.text or "" for block in blocks if block.type == "text")
    thought = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    calls = [_function(block) for block in blocks if block.type == "tool_use"]
    said: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": _refusal(message.stop_reason, message.stop_details),
    }
    if thought:
        said["reasoning_content"] = thought
    details = [detail for block in blocks if (detail := _detail(block))]
    if details:
        said["reasoning_details"] = details
    if calls and legacy:
        said["function_call"] = calls[0]
    elif calls:
        ids = [block.id for block in blocks if block.type == "tool_use"]
        said["tool_calls"] = [
            {"id": id, "type": "function", "function": call} for id, call in zip(ids, calls, strict=True)
        ]
    return said


def _function(block: _Block) -> dict[str, str]:
    return {"name": block.name, "arguments": bytes(block.input).decode()}


def _detail(block: _Block) -> dict[str, str] | None:
    """What makes thinking good for another turn."""
    if block.type == "redacted_thinking":
        return {"type": "reasoning.encrypted", "data": block.data or ""}
    if block.type == "thinking" and block.signature:
        return {"type": "reasoning.text", "text": block.thinking or "", "signature": block.signature}
    return None


def _size(block: _Block) -> int:
    text = block.text or block.thinking or ""
    return len(text.encode()) + (len(bytes(block.input)) + len(block.name) if block.type == "tool_use" else 0)


class MessagesAsChat:
    """One streamed message, as chunks.

    The last chunk waits for the terminator, or for the usage chunk that comes after it: the upstream's own count
    comes in the event that says how the message ended, and a count belongs to no chunk of text.
    """

    __slots__ = ("_begun", "_calls", "_finish", "_head", "_label", "_legacy", "_model", "_open", "_thought", "_usage")

    def __init__(self, label: Label, *, legacy: bool) -> None:
        self._label = label
        self._legacy = legacy
        self._model = label.model or ""
        self._head = b""
        self._begun = False
        self._calls = 0
        self._open: dict[int, tuple[int, bool]] = {}  # block -> (number of the call, whether arguments came)
        self._thought: dict[int, list[str]] = {}  # block -> the pieces of its text, until its signature comes
        self._usage = UsageReport()
        self._finish = b""

    def __repr__(self) -> str:
        return f"MessagesAsChat({self._label.id}, {self._calls} calls)"

    def feed(self, event: bytes) -> Step:
        """Read one raw event. Never raises: what is not understood is left out."""
        data = sse.data(event)
        if data is None:
            return Step(b"")
        try:
            read = _EVENT.decode(data)
            step = self._read(read, data)
            return self._left_out(data) if not step.out and read.type in _OF_BLOCKS else step
        except (ValueError, RecursionError):
            return Step(b"")

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """No short cut: every event is another one on the way out."""
        return b"", 0, start

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """A chunk that ends the answer; `penstock.reason` in it says to machines why we ended it."""
        self._finish = b""
        return self._start() + self._chunk({}, finish_reason, {"penstock": {"reason": reason}})

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """The usage event a caller gets who asked for one, after the last chunk."""
        report = {**self._identity(), "choices": [], "usage": usage_report(usage)}
        return self._ended() + b"data: " + json_fields.join(report) + b"\n\n"

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began, in OpenAI's envelope."""
        self._finish = b""
        envelope = {"error": {"message": message, "type": type, "code": code, "param": param}}
        return b"data: " + json_fields.join(envelope) + b"\n\n"

    def terminator(self) -> bytes:
        """The last bytes of a stream."""
        return self._ended() + DONE

    def _read(self, event: _Event, data: bytes) -> Step:
        match event.type:
            case "content_block_delta" if event.delta is not None:
                return self._delta(event.index, event.delta)
            case "content_block_start" if event.content_block is not None:
                return self._block(event.index, event.content_block)
            case "content_block_stop":
                return self._stop(event.index)
            case "message_start" if event.message is not None:
                self._model = self._label.model or event.message.model
                usage = self._counted(event.message.usage)
                if usage is not None and not usage.input:  # there is no prompt of nothing: it has not been counted yet
                    self._usage, usage = UsageReport(), None
                if usage is not None:  # what it counts of the output comes in the events that follow
                    usage = replace(usage, output=0, reasoning=0, total=usage.input)
                return Step(b"", usage=usage)
            case "message_delta" if event.delta is not None:
                return self._end(event.delta, event.usage)
            case "message_stop":
                return Step(b"", done=True)
            case "error":
                words = json_fields.error_message(json_fields.split(data))
                return Step(b"", error=words or "The provider reported an error.")
        return Step(b"")

    def _left_out(self, data: bytes) -> Step:
        """An event that is not told to the caller: what a model has said in it counts by its size."""
        read = _CONTENT.decode(data)
        said = read.content_block if read.delta is None else read.delta
        return Step(b"", 0 if said is None else estimate_delta_tokens(unread.in_block(said)))

    def _counted(self, usage: Raw) -> TokenUsage | None:
        """The count so far, each report of a stream being a running total. None when nothing was counted anew, so that
        what has come since is not taken for counted."""
        report = read_report(usage)
        self._usage = report.after(self._usage)
        return None if report.output_tokens is None else self._usage.counted()

    def _block(self, index: int, block: _Block) -> Step:
        if block.type == "tool_use":
            return self._call(index, block)
        if block.type == "redacted_thinking":
            return self._say({"reasoning_details": [_detail(block)]}, block.data or "")
        if block.type == "thinking":
            self._thought[index] = [block.thinking or ""]
            return self._say({"reasoning_content": block.thinking}, block.thinking) if block.thinking else Step(b"")
        return self._say({"content": block.text}, block.text) if block.type == "text" and block.text else Step(b"")

    def _call(self, index: int, block: _Block) -> Step:
        """A tool is called. Some servers give its arguments at once, the API itself in deltas."""
        given = bytes(block.input).decode()
        arguments = "" if given.replace(" ", "") == "{}" else given
        self._open[index] = self._calls, bool(arguments)
        self._calls += 1
        function = {"name": block.name, "arguments": arguments}
        opening = {"id": block.id, "type": "function"}
        return self._say(self._called(self._open[index][0], function, opening), block.name + arguments)

    def _called(self, number: int, function: dict[str, str], opening: dict[str, str] | None = None) -> dict[str, Any]:
        if self._legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": number, **(opening or {}), "function": function}]}

    def _delta(self, index: int, delta: _Delta) -> Step:
        match delta.type:
            case "text_delta" if delta.text:
                return self._say({"content": delta.text}, delta.text)
            case "thinking_delta" if delta.thinking:
                self._thought.setdefault(index, []).append(delta.thinking)
                return self._say({"reasoning_content": delta.thinking}, delta.thinking)
            case "signature_delta" if delta.signature:
                thought = "".join(self._thought.pop(index, ()))
                signed = _Block("thinking", thinking=thought, signature=delta.signature)
                return self._say({"reasoning_details": [_detail(signed)]}, "")
            case "input_json_delta" if delta.partial_json and index in self._open:
                number, _ = self._open[index]
                self._open[index] = number, True
                return self._say(self._called(number, {"arguments": delta.partial_json}), delta.partial_json)
        return Step(b"")

    def _stop(self, index: int) -> Step:
        """A block ends. A tool without arguments has sent none, and callers read an empty object and no empty text."""
        number, has_arguments = self._open.pop(index, (0, True))
        return Step(b"") if has_arguments else self._say(self._called(number, {"arguments": "{}"}), "")

    def _end(self, delta: _Delta, usage: Raw) -> Step:
        finish = _finish(delta.stop_reason, legacy=self._legacy)
        refusal = _refusal(delta.stop_reason, delta.stop_details)
        self._finish = self._start()
        if refusal:
            self._finish += self._chunk({"refusal": refusal}, None)
        self._finish += self._chunk({}, finish)
        return Step(b"", usage=self._counted(usage), finish_reason=finish if delta.stop_reason else None)

    def _say(self, delta: dict[str, Any], produced: str) -> Step:
        return Step(self._start() + self._chunk(delta, None), estimate_delta_tokens(len(produced.encode())))

    def _start(self) -> bytes:
        """What comes before the first chunk: one that names the role."""
        if self._begun:
            return b""
        self._begun = True
        identity = json_fields.join(self._identity())
        self._head = b"data: " + identity[:-1] + b',"choices":[{"index":0,"delta":'
        return self._chunk({"role": "assistant", "content": ""}, None)

    def _ended(self) -> bytes:
        finish, self._finish = self._finish, b""
        return finish

    def _identity(self) -> dict[str, Any]:
        return {
            "id": _id(self._label),
            "object": "chat.completion.chunk",
            "created": self._label.created_s,
            "model": self._model,
        }

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None, more: dict[str, Any] | None = None) -> bytes:
        finish = json_fields.join(finish_reason)
        tail = b"}" if more is None else b"," + json_fields.join(more)[1:]
        return (
            self._head
            + json_fields.join(delta)
            + b',"logprobs":null,"finish_reason":'
            + finish
            + b"}]"
            + tail
            + b"\n\n"
        )
