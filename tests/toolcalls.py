"""Answers of upstreams that call tools, as scripts for `tests/upstream.py`: plain and streamed, in both dialects.

A turn is what a model says in one round: some text, some calls `(id, name, arguments)`, and what its upstream counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.upstream import Exchange, Raw

Call = tuple[str, str, str]


@dataclass(frozen=True)
class Turn:
    """What a model says. `finish` is the upstream's word for why it stopped, where that is not the usual one."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    prompt: int = 10
    output: int = 5
    finish: str | None = None


@dataclass(frozen=True)
class Held:
    """A stream of these events that waits for `resume` before the last `rest` of them."""

    events: tuple[bytes, ...]
    rest: int
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        for event in self.events[: -self.rest]:
            await exchange.event(event)
        await self.resume.wait()
        for event in self.events[-self.rest :]:
            await exchange.event(event)
        await exchange.end()


def call(name: str, arguments: Any = None, id: str | None = None) -> Call:
    """A call of a tool."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return id or f"call_{name}", name, written


def chat(turn: Turn) -> Raw:
    """A plain chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        message["tool_calls"] = [_chat_call(each) for each in turn.calls]
    choice = {"index": 0, "message": message, "finish_reason": _chat_finish(turn)}
    body = {"id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": "up", "choices": [choice]}
    return Raw(json.dumps({**body, "usage": _chat_usage(turn)}).encode())


def chat_stream(turn: Turn, id: str = "chatcmpl-x") -> Raw:
    """The same as a stream: text word by word, arguments in two pieces, usage in an event of its own."""
    return Raw(b"".join(chat_events(turn, id)), content_type="text/event-stream")


def chat_events(turn: Turn, id: str = "chatcmpl-x") -> Iterator[bytes]:
    """The events of that stream."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in _words(turn.text)]
    for index, (call_id, name, arguments) in enumerate(turn.calls):
        begin = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        halves = arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]
        pieces = [{"index": index, "function": {"arguments": half}} for half in halves]
        deltas += [{"tool_calls": [piece]} for piece in (begin, *pieces)]
    head = {"id": id, "object": "chat.completion.chunk", "created": 1, "model": "up"}
    for delta in deltas:
        yield _data({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _data({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": _chat_finish(turn)}]})
    yield _data({**head, "choices": [], "usage": _chat_usage(turn)})
    yield b"data: [DONE]\n\n"


def message(turn: Turn) -> Raw:
    """A plain Anthropic message."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
    for id, name, arguments in turn.calls:
        blocks.append({"type": "tool_use", "id": id, "name": name, "input": json.loads(arguments)})
    usage = {"input_tokens": turn.prompt, "output_tokens": turn.output}
    body = {"id": "msg_x", "type": "message", "role": "assistant", "model": "up", "content": blocks}
    return Raw(json.dumps({**body, "stop_reason": _message_stop(turn), "stop_sequence": None, "usage": usage}).encode())


def message_stream(turn: Turn) -> Raw:
    """The same as a stream."""
    return Raw(b"".join(message_events(turn)), content_type="text/event-stream")


def message_events(turn: Turn) -> Iterator[bytes]:
    """The events of that stream."""
    start = {"id": "msg_x", "type": "message", "role": "assistant", "model": "up", "content": []}
    usage = {"input_tokens": turn.prompt, "output_tokens": 1}
    yield _event("message_start", message={**start, "stop_reason": None, "stop_sequence": None, "usage": usage})
    index = 0
    if turn.text:
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for word in _words(turn.text):
            yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        yield _event("content_block_stop", index=0)
        index = 1
    for id, name, arguments in turn.calls:
        block = {"type": "tool_use", "id": id, "name": name, "input": {}}
        yield _event("content_block_start", index=index, content_block=block)
        for half in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            delta = {"type": "input_json_delta", "partial_json": half}
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
        index += 1
    stop = {"stop_reason": _message_stop(turn), "stop_sequence": None}
    yield _event("message_delta", delta=stop, usage={"output_tokens": turn.output})
    yield _event("message_stop")


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)] if text else []


def _chat_call(each: Call) -> dict[str, Any]:
    id, name, arguments = each
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _chat_finish(turn: Turn) -> str:
    return turn.finish or ("tool_calls" if turn.calls else "stop")


def _chat_usage(turn: Turn) -> dict[str, int]:
    total = turn.prompt + turn.output
    return {"prompt_tokens": turn.prompt, "completion_tokens": turn.output, "total_tokens": total}


def _message_stop(turn: Turn) -> str:
    return turn.finish or ("tool_use" if turn.calls else "end_turn")


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, separators=(",", ":")).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
