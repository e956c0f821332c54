"""Rounds of an Anthropic message. See the package for what they are.

A message is a list of blocks; those of all rounds follow each other in one message, without our `tool_use` blocks. What
is thought in between stays in, as it was. A stream is passed as it comes until the model calls a tool of ours or a
second round begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from penstock.dialects import json_fields, sse
from penstock.dialects.anthropic_usage import read_report, write_report
from penstock.dialects.rounds import (
    BROKEN_ARGUMENTS,
    Kept,
    Round,
    ToolCall,
    appended,
    digest,
    encoded,
    newest,
    object_of,
    summed,
)
from penstock.dialects.usage import TokenUsage, estimate_delta_tokens, estimate_tokens
from penstock.errors import UpstreamFailed
from penstock.tools import Tool, ToolResult

NAME = "anthropic_messages"
PATH = "messages"
CUT_OFF = frozenset({"max_tokens", "refusal", "model_context_window_exceeded"})
MOST_RESTORED = 64  # messages of one request that are looked up: the newest
GROWING = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}  # delta -> field


class _Block:
    """A block as it comes: `fields` as it began, and what its deltas add, which is put to it when it is asked for. A
    call's input is text while it comes."""

    __slots__ = ("_citations", "_pieces", "fields")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self._pieces: dict[str, list[str]] = {}
        self._citations: list[Any] = []

    def grow(self, delta: dict[str, Any]) -> None:
        """Add a delta."""
        kind = _text(delta.get("type"))
        if kind == "citations_delta":
            self._citations.append(delta.get("citation"))
        elif kind == "input_json_delta" and isinstance(self.fields.get("input"), str):
            self._pieces.setdefault("input", []).append(_text(delta.get("partial_json")))
        elif kind in GROWING:
            name = GROWING[kind]
            self._pieces.setdefault(name, []).append(_text(delta.get(name)))

    def whole(self) -> dict[str, Any]:
        """The block as far as it has come."""
        for name, pieces in self._pieces.items():
            self.fields[name] = _text(self.fields.get(name)) + "".join(pieces)
        if self._citations:
            self.fields["citations"] = [*_list(self.fields.get("citations")), *self._citations]
        self._pieces, self._citations = {}, []
        return self.fields


class _Course:
    """What has come of one round: its blocks, whether one is a call of ours, how it ended, what it used."""

    def __init__(self, names: frozenset[str]) -> None:
        self.has_ours = False
        self.stop: dict[str, Any] = {}
        self.usage: dict[str, Any] = {}
        self._begun: list[_Block] = []
        self._names = names

    def __repr__(self) -> str:
        return f"_Course({len(self._begun)} blocks, {self.stop})"

    @property
    def blocks(self) -> list[dict[str, Any]]:
        return [block.whole() for block in self._begun]

    def begin(self, fields: dict[str, Any]) -> _Block:
        """A block more."""
        block = _Block(fields)
        self._begun.append(block)
        self.has_ours = self.has_ours or self.is_ours(fields)
        return block

    def is_ours(self, block: Mapping[str, Any]) -> bool:
        return block.get("type") == "tool_use" and _text(block.get("name")) in self._names

    def ours(self) -> list[dict[str, Any]]:
        return [block for block in self.blocks if self.is_ours(block)]

    def theirs(self) -> list[dict[str, Any]]:
        return [block for block in self.blocks if block.get("type") == "tool_use" and not self.is_ours(block)]

    def turn(self) -> bytes:
        """The message as the upstream is to see it again."""
        blocks = [{**block, "input": _input(block) or {}} if "input" in block else block for block in self.blocks]
        kept = [block for block in blocks if block.get("type") != "text" or block.get("text")]
        return encoded({"role": "assistant", "content": kept})

    def counted(self) -> TokenUsage | None:
        return read_report(Raw(encoded(self.usage))).counted()

    def produced(self) -> int:
        return estimate_tokens(sum(len(encoded(block)) for block in self.blocks))


DETAILS = ("cache_creation", "output_tokens_details", "iterations")  # of one round's count, which are in that of all


class Rounds:
    """See `rounds.Rounds`."""

    def __init__(self, body: bytes, tools: Sequence[Tool]) -> None:
        self._fields = json_fields.split(body)
        declared = _declared(self._fields)
        self._tools = () if declared is None else tuple(tool for tool in tools if tool.name not in declared)
        self.names = frozenset(tool.name for tool in self._tools)
        self._sent = len(body)
        self._heard = False  # something of this round has come
        self._turns: list[bytes] = []  # what comes after the caller's messages
        self._pending: list[bytes] = []  # results that the caller's own have to stand beside
        self._past: list[TokenUsage] = []
        self._shown: list[dict[str, Any]] = []  # blocks of the rounds before, without ours
        self._answer: dict[str, Any] = {}
        self._body = b""
        self._reason: str | None = None
        self._now = _Course(self.names)
        self._filter = _Filter(self._now)

    def __repr__(self) -> str:
        return f"Rounds({len(self._past) + 1}, {len(self._turns)} turns, {self._now!r})"

    # The request.

    @property
    def done(self) -> bool:
        return self._filter.stopped != b""

    @property
    def so_far(self) -> TokenUsage:
        return summed(self._past)

    def request(self, *, output_limit: int | None, last: bool) -> bytes:
        fields: dict[str, Any] = dict(self._fields)
        own = _objects(json_fields.plain(self._fields.get("tools")))
        if not (last and own):
            fields["tools"] = appended(
                self._fields["tools"] if own else b"[]", [encoded(_definition(tool)) for tool in self._tools]
            )
        if last and not own:  # calls in the conversation need definitions; this one says that there are no more
            fields["tool_choice"] = {"type": "none"}
        fields["messages"] = appended(self._fields["messages"], self._turns)
        if output_limit is not None:
            fields |= self._limited(output_limit)
        body = json_fields.join(fields)
        self._sent = len(body)
        return body

    def _limited(self, output_limit: int) -> dict[str, Any]:
        """The limit, and thinking that fits below it: a budget has to be smaller, and at least 1024."""
        thinking = json_fields.plain(self._fields.get("thinking"))
        budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
        if not isinstance(budget, int) or budget < output_limit:
            return {"max_tokens": output_limit}
        if output_limit <= 1024:
            return {"max_tokens": output_limit, "thinking": {"type": "disabled"}}
        return {"max_tokens": output_limit, "thinking": {**thinking, "budget_tokens": output_limit - 1}}

    # What comes back.

    def read(self, body: bytes) -> Round:
        try:
            answer = msgspec.json.decode(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("content"), list):
            fields = json_fields.answer_fields(body)  # its error in its own words, when it is one
            raise UpstreamFailed(f"The provider's answer has no content ({len(fields)} fields).", began=True)
        now = self._now
        self._heard, self._body, self._answer = True, body, answer
        for block in _objects(answer["content"]):
            now.begin(block)
        now.stop = {name: answer.get(name) for name in ("stop_reason", "stop_sequence")}
        now.usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
        return self._outcome()

    def feed(self, event: bytes) -> tuple[bytes, int]:
        self._heard = True
        return self._filter.feed(event)

    def ended(self) -> Round:
        self._filter.catch_up()
        if not self._now.ours() and not self._past:
            return Round((), bool(self._now.theirs()), self._now.counted(), 0)
        return self._outcome()

    def _outcome(self) -> Round:
        now = self._now
        calls = [] if _text(now.stop.get("stop_reason")) in CUT_OFF else now.ours()
        told = tuple(ToolCall(_text(call.get("id")), _text(call.get("name")), _input(call)) for call in calls)
        return Round(told, bool(now.theirs()), now.counted(), now.produced(), bool(now.stop))

    def answered(self, results: Mapping[str, ToolResult]) -> None:
        now = self._now
        self._turns.append(now.turn())
        blocks = [encoded(_result(call, results)) for call in now.ours()]
        if now.theirs():
            self._pending = blocks
            return
        self._turns.append(b'{"role":"user","content":[' + b",".join(blocks) + b"]}")
        self._past.append(self._counted())
        self._shown += [block for block in now.blocks if not now.is_ours(block)]
        self._heard = False
        self._now = _Course(self.names)
        self._filter = self._filter.next(self._now)

    def _counted(self) -> TokenUsage:
        """What the round used: as counted, else by the bytes that went and came."""
        counted = self._now.counted()
        if counted is not None:
            return counted
        input, output = estimate_tokens(self._sent), self._now.produced()
        return TokenUsage(input, output, total=input + output)

    # What goes on.

    def cut(self, reason: str) -> None:
        self._reason = reason

    def whole(self) -> bytes:
        now = self._now
        if not self._past and not now.ours() and self._reason is None:
            return self._body
        blocks = [*self._shown, *(block for block in now.blocks if not now.is_ours(block))]
        usage = {name: value for name, value in now.usage.items() if name not in DETAILS}
        answer = {**self._answer, "content": blocks, **self._ending(), "usage": {**usage, **self._all_usage()}}
        return encoded(answer if self._reason is None else {**answer, "penstock": {"reason": self._reason}})

    def closing(self) -> bytes:
        passing = self._filter
        if not passing.held and self._reason is None:
            return passing.stopped
        ours = {} if self._reason is None else {"penstock": {"reason": self._reason}}
        delta = {"delta": {"stop_reason": None, "stop_sequence": None, **self._ending()}, "usage": self._all_usage()}
        ending = _event("message_delta", {**delta, **ours}) + _event("message_stop", {})
        return passing.open_blocks_ended() + ending

    def _all_usage(self) -> dict[str, Any]:
        """What all rounds used."""
        return write_report(summed([*self._past, self._counted()]) if self._heard else self.so_far)

    def _ending(self) -> dict[str, Any]:
        if self._reason is not None:
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        stop = self._now.stop
        if stop.get("stop_reason") == "tool_use" and not self._now.theirs():
            return {"stop_reason": "end_turn", "stop_sequence": None}
        return stop

    # What the caller does not see.

    def kept(self, account: str) -> tuple[str, Kept] | None:
        theirs = self._now.theirs()
        if not theirs or not self._turns:
            return None
        turns = self._turns if self._now.ours() else [*self._turns, self._now.turn()]
        before = _objects(json_fields.plain(self._fields["messages"]))
        name = digest(account, _said(before[-1:]), _calls(theirs))
        return name, Kept(NAME, list(map(Raw, turns)), list(map(Raw, self._pending)))


def open_rounds(body: bytes, tools: Sequence[Tool]) -> Rounds:
    """Begin a completion."""
    return Rounds(body, tools)


class _Filter:
    """A round's stream on its way to the caller: blocks of ours left out, the others numbered without a gap."""

    def __init__(self, course: _Course) -> None:
        self.stopped = b""  # the upstream's last event
        self.held = False  # the message's end is not passed on
        self._course = course
        self._unread: list[bytes] = []  # passed as they came, and not yet looked at
        self._slow = False
        self._later = False
        self._first = 0  # the index of this round's first block among the caller's
        self._indexes: dict[int, int] = {}  # of open blocks: as they come, and as the caller sees them; ours have -1
        self._blocks: dict[int, _Block] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"_Filter({self._course!r}, slow={self._slow}, held={self.held})"

    def next(self, course: _Course) -> _Filter:
        """The filter of the next round."""
        found = _Filter(course)
        found._slow = found._later = found.held = True
        found._next = self._next
        return found

    def feed(self, event: bytes) -> tuple[bytes, int]:
        if not self._slow:
            self._unread.append(event)
            if b'"tool_use"' not in event and b"message_stop" not in event:
                return event, 0
            self._unread.pop()
            self.catch_up()
            self._slow = True
        fields = _fields(event)
        if fields is None:
            return event, 0
        return self._passed(event, fields)

    def catch_up(self) -> None:
        """Take note of the events that were passed unseen."""
        for event in self._unread:
            fields = _fields(event)
            if fields is not None:
                self._passed(event, fields)
        self._unread.clear()

    def _passed(self, event: bytes, fields: dict[str, Any]) -> tuple[bytes, int]:
        match fields.get("type"):
            case "message_start":
                message = fields.get("message")
                self._note_usage(message.get("usage") if isinstance(message, dict) else None)
                return (b"" if self._later else event), 0
            case "content_block_start":
                return self._started(event, fields), 0
            case "content_block_delta":
                return self._grown(event, fields)
            case "content_block_stop":
                return self._block_event(event, fields, ends=True), 0
            case "message_delta":
                self._note_usage(fields.get("usage"))
                self._course.stop = fields["delta"] if isinstance(fields.get("delta"), dict) else {}
                self.held = self.held or self._course.has_ours
                return (b"" if self.held else event), 0
            case "message_stop":
                self.stopped = event
                return b"", 0
            case _:
                return event, 0

    def _note_usage(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._course.usage |= {name: value for name, value in usage.items() if value is not None}

    def _started(self, event: bytes, fields: dict[str, Any]) -> bytes:
        block = dict(fields["content_block"]) if isinstance(fields.get("content_block"), dict) else {}
        index = _index(fields)
        if block.get("type") == "tool_use":
            block["input"] = "" if not block.get("input") else encoded(block["input"]).decode()
        self._blocks[index] = self._course.begin(block)
        if self._course.is_ours(block):
            self._indexes[index] = -1
            return b""
        self._indexes[index], self._next = self._next, self._next + 1
        return self._block_event(event, fields, ends=False)

    def _grown(self, event: bytes, fields: dict[str, Any]) -> tuple[bytes, int]:
        delta = fields["delta"] if isinstance(fields.get("delta"), dict) else {}
        block = self._blocks.get(_index(fields))
        if block is not None:
            block.grow(delta)
        if self._indexes.get(_index(fields)) == -1:
            return b"", estimate_delta_tokens(len(_text(delta.get("partial_json")).encode("utf-8", "replace")))
        return self._block_event(event, fields, ends=False), 0

    def _block_event(self, event: bytes, fields: dict[str, Any], *, ends: bool) -> bytes:
        """The event under the index that the caller sees."""
        index = _index(fields)
        seen = self._indexes.get(index, index)
        if ends:
            self._indexes.pop(index, None)
        if seen == -1:
            return b""
        return event if seen == index else _event(str(fields["type"]), {**fields, "index": seen})

    def open_blocks_ended(self) -> bytes:
        """Events that end the blocks which the caller has seen begin."""
        return b"".join(_event("content_block_stop", {"index": seen}) for seen in self._indexes.values() if seen >= 0)


# What was kept, back in its place.


def digests(body: bytes, account: str) -> tuple[str, ...]:
    """The digests of the messages in a request that something may be kept for."""
    if b'"tool_use"' not in body:
        return ()
    messages = _objects(msgspec.json.decode(json_fields.split(body)["messages"]))
    return tuple(name for _, name in _calling(messages, account))[-MOST_RESTORED:]


def restored(body: bytes, account: str, kept: Mapping[str, Kept]) -> bytes:
    """The request with what was kept in its place."""
    fields: dict[str, Any] = dict(json_fields.split(body))
    raw = msgspec.json.decode(fields["messages"], type=list[Raw])
    places = newest(_calling(_objects(msgspec.json.decode(fields["messages"])), account))
    messages: list[Raw] = []
    pending: list[Raw] = []
    for place, message in enumerate(raw):
        found = kept.get(places.get(place, ""))
        if found is not None and found.dialect == NAME and place + 1 < len(raw):
            messages += found.turns
            pending = found.pending
            continue
        messages.append(_beside(message, pending))
        pending = []
    return json_fields.join({**fields, "messages": messages})


def _beside(message: Raw, pending: Sequence[Raw]) -> Raw:
    """The caller's message with results before what it says."""
    if not pending:
        return message
    fields = json_fields.split(bytes(message))
    content = bytes(fields.get("content", b"[]"))
    if content.startswith(b'"'):
        content = b'[{"type":"text","text":' + content + b"}]"
    blocks = [bytes(each) for each in (*pending, *msgspec.json.decode(content, type=list[Raw]))]
    return Raw(json_fields.join({**fields, "content": appended(b"[]", blocks)}))


def _calling(messages: list[dict[str, Any]], account: str) -> Iterator[tuple[int, str]]:
    """The places and digests of the messages that call tools."""
    for place, message in enumerate(messages):
        blocks = _objects(message.get("content")) if message.get("role") == "assistant" else []
        calls = [block for block in blocks if block.get("type") == "tool_use"]
        if calls:
            yield place, digest(account, _said(messages[max(place - 1, 0) : place]), _calls(calls))


def _calls(blocks: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(_text(each.get("id")), _text(each.get("name")), encoded(_input(each) or {}).decode()) for each in blocks]


def _said(messages: list[dict[str, Any]]) -> str:
    """A message by what it says, whatever else (cache marks, say) stands in it."""
    for message in messages:
        content = message.get("content")
        parts = _objects(content) if isinstance(content, list) else [{"text": content}]
        words = [_text(part.get("text")) + _text(part.get("tool_use_id")) for part in parts]
        return f"{message.get('role')} {''.join(words)}"
    return ""


# Pieces of JSON.


def _declared(fields: Mapping[str, Raw]) -> frozenset[str] | None:
    """The names of the caller's own tools; None when the request leaves no room for others."""
    choice, tools = (json_fields.plain(fields.get(name)) for name in ("tool_choice", "tools"))
    if choice is not None and not (isinstance(choice, dict) and choice.get("type") == "auto"):
        return None
    if tools is not None and not isinstance(tools, list):
        return None
    return frozenset(_text(tool.get("name")) for tool in _objects(tools))


def _definition(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}


def _result(call: dict[str, Any], results: Mapping[str, ToolResult]) -> dict[str, Any]:
    id = _text(call.get("id"))
    result = results[id] if _input(call) is not None else BROKEN_ARGUMENTS
    block = {"type": "tool_result", "tool_use_id": id, "content": result.text or "(nothing)"}
    return {**block, "is_error": True} if result.failed else block


def _input(block: Mapping[str, Any]) -> dict[str, Any] | None:
    """The input of a call; None when it is no object."""
    input = block.get("input")
    if isinstance(input, str):
        return object_of(input)
    return input if isinstance(input, dict) else None


def _fields(event: bytes) -> dict[str, Any] | None:
    data = sse.data(event)
    try:
        value = None if data is None else msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encoded({"type": kind, **fields}))


def _index(fields: dict[str, Any]) -> int:
    index = fields.get("index")
    return index if isinstance(index, int) else 0


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
