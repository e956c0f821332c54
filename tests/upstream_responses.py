"""What an upstream of `tests/upstream.py` does that speaks OpenAI Responses, and streams of any events one likes.

    upstream.script(Answered(tokens=3), Streamed(tokens=9, hold_after=4), Events([...]))

`Answered` and `Streamed` count as the others do: `received.tokens_produced` is the truth. Events are those of the
published API, in its order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.upstream import Exchange, Received

UPSTREAM_ID = "resp_upstream00000000000000000000000000000000"


def item_id(received: Received) -> str:
    """The id of the message that answers a request."""
    return f"msg_upstream{received.number:032x}"


def sse(type: str, **fields: Any) -> bytes:
    """An event as OpenAI writes it."""
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """An event of a chat completion; with neither delta nor reason it has no choices."""
    has_choice = delta is not None or finish_reason is not None
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish_reason}] if has_choice else []
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": choices, **more}).encode() + b"\n\n"


def usage_of(received: Received, reasoning: int = 0, cached: int = 0) -> dict[str, Any]:
    """The truth about a request, as a response reports it."""
    return {
        "input_tokens": received.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": received.tokens_produced,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": received.prompt_tokens + received.tokens_produced,
    }


def response_of(received: Received, status: str, output: list[Any], usage: Any = None, **more: Any) -> dict[str, Any]:
    """A whole `response`."""
    asked = received.json
    return {
        "id": UPSTREAM_ID,
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "model": asked.get("model"),
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": asked.get("store"),
        "temperature": 1.0,
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": asked.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
        "metadata": {},
        **more,
    }


def message(received: Received, text: str, status: str = "completed") -> dict[str, Any]:
    """A message of an output."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": item_id(received), "type": "message", "status": status, "role": "assistant", "content": content}


def words(count: int) -> list[str]:
    """So many words, each a token."""
    return [f" word{place % 10}" for place in range(count)]


def limited(received: Received, tokens: int) -> int:
    """`tokens`, or the request's own limit when that is less."""
    return min(tokens, received.json.get("max_output_tokens") or tokens)


@dataclass(frozen=True)
class Answered:
    """A response of `tokens` words, or of these items."""

    tokens: int = 5
    prompt_tokens: int = 7
    reasoning: int = 0
    cached: int = 0
    output: list[Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        received.prompt_tokens = self.prompt_tokens
        received.tokens_produced = limited(received, self.tokens)
        output = [message(received, "".join(words(received.tokens_produced)))] if self.output is None else self.output
        usage = usage_of(received, self.reasoning, self.cached)
        await exchange.document(response_of(received, "completed", output, usage, **self.more))


@dataclass(frozen=True)
class Streamed:
    """A streamed response of `tokens` words. After `hold_after` words it waits, after `break_after` it breaks off."""

    tokens: int = 5
    prompt_tokens: int = 7
    hold_after: int | None = None
    break_after: int | None = None
    failure: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    usage: Literal["true"] | None = "true"
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        received.prompt_tokens = self.prompt_tokens
        await exchange.stream_head(())
        number, texts = 0, words(limited(received, self.tokens))

        async def send(type: str, **fields: Any) -> None:
            nonlocal number
            await exchange.event(sse(type, sequence_number=number, **fields))
            number += 1

        await send("response.created", response=response_of(received, "in_progress", []))
        await send("response.in_progress", response=response_of(received, "in_progress", []))
        where = {"item_id": item_id(received), "output_index": 0, "content_index": 0}
        await send(
            "response.output_item.added", output_index=0, item=message(received, "", "in_progress") | {"content": []}
        )
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        await send("response.content_part.added", **where, part=part)
        for place, text in enumerate(texts):
            if place == self.hold_after:
                await self.resume.wait()
            if place == self.break_after:
                await exchange.break_off("reset")
                return
            received.tokens_produced += 1
            await send("response.output_text.delta", **where, delta=text, logprobs=[], obfuscation="x7")
        if self.error is not None:
            await send("error", **self.error)
        elif self.failure is not None:
            usage = usage_of(received)
            await send("response.failed", response=response_of(received, "failed", [], usage, error=self.failure))
        else:
            await self._finish(received, texts, send, where)
        await exchange.end()

    async def _finish(self, received: Received, texts: Sequence[str], send: Any, where: dict[str, Any]) -> None:
        text = "".join(texts)
        whole = message(received, text)
        await send("response.output_text.done", **where, text=text, logprobs=[])
        await send("response.content_part.done", **where, part=whole["content"][0])
        await send("response.output_item.done", output_index=0, item=whole)
        usage = usage_of(received) if self.usage else None
        await send("response.completed", response=response_of(received, "completed", [whole], usage))


@dataclass(frozen=True)
class Events:
    """A stream of exactly these events; `tokens` is what they are billed as."""

    events: Sequence[bytes]
    tokens: int = 0
    prompt_tokens: int = 0

    async def play(self, exchange: Exchange) -> None:
        exchange.received.prompt_tokens, exchange.received.tokens_produced = self.prompt_tokens, self.tokens
        await exchange.stream_head(())
        for event in self.events:
            await exchange.event(event)
        await exchange.end()
