"""Scripts that make the scripted upstream speak Anthropic's Messages, in the shapes Anthropic sends.

    async with ScriptedUpstream(UsualMessages()) as upstream:
        upstream.script(MessagesStream(blocks=(thinking("Hm."), text("Hello"), tool_use("look", {"at": "it"}))))

Everything else (arrivals, what was produced, holding and breaking) is as in `upstream.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.upstream import Exchange, Headers, Received, Script, words

Block = dict[str, Any]


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def thinking(words: str, signature: str = "c2lnbmVk") -> Block:
    return {"type": "thinking", "thinking": words, "signature": signature}


def tool_use(name: str, input: dict[str, Any], id: str = "toolu_01") -> Block:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


@dataclass(frozen=True)
class Counts:
    """What Anthropic reports besides output: the prompt in its three parts, and the part of the output that is thinking
    (None for servers that do not say)."""

    input: int = 7
    cache_read: int = 0
    cache_write: int = 0
    thinking: int | None = None

    def usage(self, output: int) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "input_tokens": self.input,
            "cache_creation_input_tokens": self.cache_write,
            "cache_read_input_tokens": self.cache_read,
            "output_tokens": output,
        }
        return usage if self.thinking is None else usage | {"output_tokens_details": {"thinking_tokens": self.thinking}}


@dataclass(frozen=True)
class UsualMessages:
    """What a healthy upstream does, by path and body: messages plain or streamed, count_tokens, models, else 404."""

    tokens: int = 5
    counts: Counts = Counts()

    async def play(self, exchange: Exchange) -> None:
        await self._script_for(exchange.received).play(exchange)

    def _script_for(self, received: Received) -> Script:
        match received.method, received.path.partition("?")[0].rpartition("/v1/")[2]:
            case "POST", "messages":
                kind = MessagesStream if received.json.get("stream") else MessagesPlain
                return kind(tokens=self.tokens, counts=self.counts)
            case "POST", "messages/count_tokens":
                return MessagesDocument({"input_tokens": 1234})
            case "GET", "models":
                listed = {"type": "model", "id": "scripted", "display_name": "Scripted"}
                data = [listed | {"created_at": "2026-01-01T00:00:00Z"}]
                ends = {"first_id": "scripted", "last_id": "scripted"}
                return MessagesDocument({"data": data, "has_more": False, **ends})
        return MessagesRefusal(404, "not_found_error", "There is nothing here.")


@dataclass(frozen=True)
class MessagesPlain:
    """A message of `tokens` words, or of `blocks`; `output` is what is billed for blocks.

    Without `usage` none is told.
    """

    tokens: int = 5
    blocks: tuple[Block, ...] = ()
    output: int | None = None
    counts: Counts = Counts()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    headers: Headers = ()
    hold: bool = False
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        _begin(received, self.counts)
        received.tokens_produced = received.limited(self.tokens if self.output is None else self.output)
        if self.hold:
            await self.resume.wait()
        content = list(self.blocks) or [text(words(0, received.tokens_produced))]
        document = _message(received) | {
            "content": content,
            "stop_reason": self.stop_reason or _stop_reason(received, self.tokens, self.blocks),
            "stop_sequence": self.stop_sequence,
        }
        if self.usage:
            document["usage"] = self.counts.usage(received.tokens_produced)
        await exchange.document(document | self.extra, headers=[("request-id", "req_upstream"), *self.headers])


@dataclass(frozen=True)
class MessagesStream:
    """A stream of `tokens` words in one text block, or of `blocks`, each in `pieces` deltas.

    Words are billed one by one, and blocks as `output` says. `hold_after` and `break_after` count events that are on
    the wire, `message_start` and `ping` among them. `error` (`type`, `message`) is sent in place of the end. Without
    `stop` there is no `message_stop`.
    """

    tokens: int = 10
    blocks: tuple[Block, ...] = ()
    output: int = 10
    pieces: int = 2
    counts: Counts = Counts()
    stop_reason: str | None = None
    hold_after: int | None = None
    break_after: int | None = None
    breaks: Literal["reset", "close"] = "reset"
    error: tuple[str, str] | None = None
    stop: bool = True
    headers: Headers = ()
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        _begin(received, self.counts)
        await exchange.stream_head(self.headers)
        for event, produced in self._events(received):
            if received.events.value == self.hold_after:
                await self.resume.wait()
            if received.events.value == self.break_after:
                await exchange.break_off(self.breaks)
                return
            received.tokens_produced += produced
            await exchange.event(event)
        await exchange.end()

    def _events(self, received: Received) -> Iterable[tuple[bytes, int]]:
        """Every event, and what it adds to the bill."""
        start = _message(received) | {"content": [], "stop_reason": None, "stop_sequence": None}
        yield event("message_start", message=start | {"usage": self.counts.usage(1)}), 0
        yield event("ping"), 0
        yield from self._blocks() if self.blocks else self._words(received.limited(self.tokens))
        if self.error is not None:
            kind, message = self.error
            yield event("error", error={"type": kind, "message": message}), 0
            return
        output = received.tokens_produced
        reason = self.stop_reason or _stop_reason(received, self.tokens, self.blocks)
        yield (
            event(
                "message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=self.counts.usage(output)
            ),
            0,
        )
        if self.stop:
            yield event("message_stop"), 0

    def _words(self, limit: int) -> Iterable[tuple[bytes, int]]:
        yield event("content_block_start", index=0, content_block=text("")), 0
        for place in range(limit):
            yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": words(place, 1)}), 1
        yield event("content_block_stop", index=0), 0

    def _blocks(self) -> Iterable[tuple[bytes, int]]:
        for index, block in enumerate(self.blocks):
            start, deltas = _taken_apart(block, self.pieces)
            yield event("content_block_start", index=index, content_block=start), 0
            for delta in deltas:
                yield event("content_block_delta", index=index, delta=delta), 0
            last = index == len(self.blocks) - 1
            yield event("content_block_stop", index=index), self.output if last else 0


@dataclass(frozen=True)
class MessagesRefusal:
    """An error status with a body in Anthropic's shape."""

    status: int
    type: str = "invalid_request_error"
    message: str = "The upstream will not."
    headers: Headers = ()

    async def play(self, exchange: Exchange) -> None:
        error = {"type": self.type, "message": self.message}
        document = {"type": "error", "error": error, "request_id": "req_upstream"}
        await exchange.document(document, status=self.status, headers=self.headers)


@dataclass(frozen=True)
class MessagesDocument:
    """Any JSON object."""

    document: dict[str, Any]

    async def play(self, exchange: Exchange) -> None:
        await exchange.document(self.document)


def event(kind: str, **fields: Any) -> bytes:
    """One event as Anthropic writes it, named twice."""
    data = json.dumps({"type": kind, **fields}, separators=(",", ":"), ensure_ascii=False)
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _begin(received: Received, counts: Counts) -> None:
    received.prompt_tokens = counts.input + counts.cache_read + counts.cache_write


def _message(received: Received) -> dict[str, Any]:
    model = received.json.get("model")
    return {"id": f"msg_{received.number:02}", "type": "message", "role": "assistant", "model": model}


def _stop_reason(received: Received, wanted: int, blocks: tuple[Block, ...]) -> str:
    if blocks:
        return "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
    return "end_turn" if received.tokens_produced >= wanted else "max_tokens"


def _taken_apart(block: Block, pieces: int) -> tuple[Block, list[Block]]:
    """How a block begins, and the deltas that make it whole."""
    if block["type"] == "text":
        return block | {"text": ""}, [{"type": "text_delta", "text": piece} for piece in _cut(block["text"], pieces)]
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _cut(block["thinking"], pieces)]
        signature = {"type": "signature_delta", "signature": block["signature"]}
        return block | {"thinking": "", "signature": ""}, [*deltas, signature]
    if block["type"] == "tool_use":
        input = _compact(block["input"])
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in _cut(input, pieces)]
        return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": ""}, *deltas]
    return block, []


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _cut(whole: str, pieces: int) -> list[str]:
    size = max(-(-len(whole) // pieces), 1)
    return [whole[at : at + size] for at in range(0, len(whole), size)]
