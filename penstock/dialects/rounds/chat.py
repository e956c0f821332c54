"""Rounds of an OpenAI chat completion. See the package for what they are.

A stream is passed as it comes until the model calls a tool or a second round begins; only from then on events are taken
apart. Only requests for one choice are followed: what a tool found out belongs to one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from penstock.dialects import json_fields, sse
from penstock.dialects.openai_chat import DONE, LIMIT_FIELDS, NAME
from penstock.dialects.rounds import (
    BROKEN_ARGUMENTS,
    SEPARATOR,
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
from penstock.dialects.usage import TokenUsage, estimate_delta_tokens, estimate_tokens, read_usage
from penstock.errors import UpstreamFailed
from penstock.tools import Tool, ToolResult

PATH = "chat/completions"
TEXTS = ("content", "reasoning_content", "reasoning")  # what a model says, as servers call it
RETURNED = ("content", "reasoning_content", "reasoning_details")  # what an upstream wants to see again in its turn
CUT_OFF = frozenset({"length", "content_filter"})  # a call may be half of what it should be
IDENTITY = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")
MOST_RESTORED = 64  # messages of one request that are looked up: the newest


class _Call:
    """A call as it comes, in pieces or whole. It is `ours` when its name is one of `names`; `place` is its index among
    the caller's, once it has one; `extra` is what some servers want to have back, such as a signature of thought."""

    __slots__ = ("_arguments", "_name", "_names", "_size", "extra", "id", "ours", "place", "waiting")

    def __init__(self, names: frozenset[str]) -> None:
        self.id = ""
        self.ours = False
        self.place: int | None = None
        self.extra: dict[str, Any] = {}
        self.waiting: list[dict[str, Any]] = []  # pieces from before the name was known
        self._names = names
        self._name: list[str] = []
        self._size = 0  # characters of the name
        self._arguments: list[str] = []

    @property
    def named(self) -> bool:
        return self._size > 0

    @property
    def name(self) -> str:
        return "".join(self._name)

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    def add(self, piece: dict[str, Any]) -> int:
        """Add a piece; the tokens in it."""
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = _text(function.get("name")), _text(function.get("arguments"))
        if name:
            self._name.append(name)
            self._size += len(name)  # a name that is too long to be one of ours is not put together for each piece
            self.ours = self._size <= max(map(len, self._names), default=0) and self.name in self._names
        self._arguments.append(arguments)
        self.id = self.id or _text(piece.get("id"))
        self.extra |= {key: value for key, value in piece.items() if key not in ("index", "id", "function", "type")}
        return estimate_delta_tokens(len(name) + len(arguments.encode("utf-8", "replace")))

    def whole(self) -> dict[str, Any]:
        """The call as a message has it."""
        # Servers that read the arguments of earlier turns stumble over what is no JSON.
        arguments = self.arguments
        if not arguments.strip() or object_of(arguments) is None:
            arguments = "{}"
        return {
            **self.extra,
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": arguments},
        }


class _Course:
    """What has come of one round: its calls, how many of them are ours, what else the model said, how it ended."""

    def __init__(self, names: frozenset[str]) -> None:
        self.calls: list[_Call] = []
        self.number_ours = 0
        self.finish: str | None = None
        self.usage: TokenUsage | None = None
        self.message: dict[str, Any] = {}
        self._names = names

    def __repr__(self) -> str:
        return f"_Course({len(self.calls)} calls, finish={self.finish})"

    def begin(self) -> _Call:
        """A call more."""
        call = _Call(self._names)
        self.calls.append(call)
        return call

    def add(self, call: _Call, piece: dict[str, Any]) -> int:
        """Add a piece to a call; the tokens in it."""
        before = call.ours
        tokens = call.add(piece)
        self.number_ours += call.ours - before
        return tokens

    def ours(self) -> list[_Call]:
        return [call for call in self.calls if call.ours]

    def theirs(self) -> list[_Call]:
        return [call for call in self.calls if not call.ours]

    def turn(self) -> dict[str, Any]:
        """The message as the upstream is to see it again."""
        said = {name: self.message[name] for name in RETURNED if self.message.get(name)}
        turn = {"role": "assistant", "content": None, **said}
        return {**turn, "tool_calls": [call.whole() for call in self.calls]} if self.calls else turn

    def produced(self) -> int:
        texts = "".join(_text(self.message.get(name)) for name in TEXTS)
        arguments = "".join(call.name + call.arguments for call in self.calls)
        return estimate_tokens(len((texts + arguments).encode("utf-8", "replace")))


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
        self._past: list[TokenUsage] = []
        self._said: dict[str, list[str]] = {}  # in the rounds before
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
        return self._filter.done

    @property
    def so_far(self) -> TokenUsage:
        return summed(self._past)

    def request(self, *, output_limit: int | None, last: bool) -> bytes:
        fields: dict[str, Any] = dict(self._fields)
        if last and "tools" not in fields:
            for name in ("tool_choice", "parallel_tool_calls"):  # refused where there are no tools
                fields.pop(name, None)
        if not last:
            fields["tools"] = appended(
                _array(fields.get("tools")), [encoded(_definition(tool)) for tool in self._tools]
            )
        fields["messages"] = appended(self._fields["messages"], self._turns)
        if output_limit is not None:
            named = [name for name in LIMIT_FIELDS if name in fields] or [LIMIT_FIELDS[1]]
            fields |= dict.fromkeys(named, output_limit)
        body = json_fields.join(fields)
        self._sent = len(body)
        return body

    # What comes back.

    def read(self, body: bytes) -> Round:
        json_fields.answer_fields(body)  # its error in its own words, when it is one
        try:
            self._answer = msgspec.json.decode(body)
        except (ValueError, RecursionError):  # below the fields of the top, at which alone it has been looked
            raise UpstreamFailed("The provider's answer cannot be read.", began=True) from None
        self._heard, self._body = True, body
        now, choice = self._now, _choice(self._answer)
        now.message = choice["message"] if isinstance(choice.get("message"), dict) else {}
        for piece in _objects(now.message.get("tool_calls")):
            now.add(now.begin(), piece)
        now.finish = _text(choice.get("finish_reason")) or None
        now.usage = _usage(self._answer.get("usage"))
        return self._outcome()

    def feed(self, event: bytes) -> tuple[bytes, int]:
        self._heard = True
        return self._filter.feed(event)

    def ended(self) -> Round:
        if not self._now.ours() and not self._past:
            return Round((), bool(self._now.calls), self._now.usage, 0)
        self._now.message = self._filter.message()
        return self._outcome()

    def _outcome(self) -> Round:
        now = self._now
        calls = [] if now.finish in CUT_OFF else now.ours()
        known = {call.id for call in now.theirs()}
        for number, call in enumerate(calls):
            if not call.id or call.id in known:  # a few servers give calls no id, or all the same one
                call.id = f"call_{len(self._past)}_{number}"
            known.add(call.id)
        told = tuple(ToolCall(call.id, call.name, object_of(call.arguments)) for call in calls)
        finished = now.finish is not None or self._filter.done
        return Round(told, bool(now.theirs()), now.usage, now.produced(), finished)

    def answered(self, results: Mapping[str, ToolResult]) -> None:
        now = self._now
        self._turns.append(encoded(now.turn()))
        for call in now.ours():
            result = results[call.id] if object_of(call.arguments) is not None else BROKEN_ARGUMENTS
            content = f"Error: {result.text}" if result.failed else result.text
            self._turns.append(encoded({"role": "tool", "tool_call_id": call.id, "content": content}))
        if now.theirs():
            return
        self._past.append(self._counted())
        for name in TEXTS:
            if text := _text(now.message.get(name)):
                self._said.setdefault(name, []).append(text)
        self._heard = False
        self._now = _Course(self.names)
        self._filter = self._filter.next(self._now, spoke="content" in self._said)

    def _counted(self) -> TokenUsage:
        """What the round used: as counted, else by the bytes that went and came."""
        if self._now.usage is not None:
            return self._now.usage
        input, output = estimate_tokens(self._sent), self._now.produced()
        return TokenUsage(input, output, total=input + output)

    # What goes on.

    def cut(self, reason: str) -> None:
        self._reason = reason

    def whole(self) -> bytes:
        now = self._now
        if not self._past and not now.ours() and self._reason is None:
            return self._body
        answer, choice = self._answer, _choice(self._answer)
        latest = choice["message"] if isinstance(choice.get("message"), dict) else {"role": "assistant"}
        message = {name: value for name, value in latest.items() if name != "tool_calls"}
        for name in TEXTS:
            texts = [*self._said.get(name, ()), *([text] if (text := _text(now.message.get(name))) else [])]
            if texts or name in message:
                message[name] = SEPARATOR.join(texts) or None
        theirs = [call.whole() for call in now.theirs()]
        if theirs:
            message["tool_calls"] = theirs
        usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
        answer |= {"choices": [{**choice, "message": message, "finish_reason": self._ending()}]}
        answer["usage"] = usage | _report(self._all_usage())
        return encoded(answer if self._reason is None else {**answer, "penstock": {"reason": self._reason}})

    def closing(self) -> bytes:
        passing, out = self._filter, b""
        ended_here = passing.finish_held or self._reason is not None
        if ended_here:
            choice = {"index": 0, "delta": {}, "finish_reason": self._ending()}
            chunk = {**passing.identity(), "choices": [choice]}
            out += _event(chunk if self._reason is None else {**chunk, "penstock": {"reason": self._reason}})
        if not passing.usage_passed and (self._now.usage is not None or (self._past and self._reason is not None)):
            out += _event({**passing.identity(), "choices": [], "usage": _report(self._all_usage())})
        return out + (DONE if passing.done or ended_here else b"")

    def _all_usage(self) -> TokenUsage:
        if not self._heard:
            return self.so_far
        self._now.message = self._now.message or self._filter.message()
        return summed([*self._past, self._counted()])

    def _ending(self) -> str:
        """The reason to give for the end of all rounds."""
        if self._reason is not None:
            return "length"
        finish = self._now.finish or "stop"
        if finish in CUT_OFF:
            return finish
        if self._now.theirs():
            return "tool_calls"
        return "stop" if finish in ("tool_calls", "function_call") else finish

    # What the caller does not see.

    def kept(self, account: str) -> tuple[str, Kept] | None:
        theirs = self._now.theirs()
        if not theirs or not self._turns:
            return None
        turns = self._turns if self._now.ours() else [*self._turns, encoded(self._now.turn())]
        before = _objects(json_fields.plain(self._fields["messages"]))
        name = digest(account, _shown(before[-1:]), [(each.id, each.name, each.arguments) for each in theirs])
        return name, Kept(NAME, list(map(Raw, turns)))


def open_rounds(body: bytes, tools: Sequence[Tool]) -> Rounds:
    """Begin a completion."""
    return Rounds(body, tools)


class _Filter:
    """A round's stream on its way to the caller: ours left out, the caller's calls numbered without a gap."""

    def __init__(self, course: _Course) -> None:
        self.done = self.finish_held = self.usage_passed = False
        self._course = course
        self._events: list[bytes] = []
        self._slow = False
        self._head = b""  # the first event of the first round: what the answer is called
        self._later = False
        self._spoke = False  # in an earlier round, and nothing in this one yet
        self._open: dict[int, _Call] = {}
        self._places = 0  # of calls, among the caller's
        self._identity: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"_Filter({len(self._events)} events, slow={self._slow})"

    def next(self, course: _Course, *, spoke: bool) -> _Filter:
        """The filter of the next round."""
        found = _Filter(course)
        found._slow = found._later = True
        found._head, found._spoke = self._head, spoke
        return found

    def identity(self) -> dict[str, Any]:
        """What the answer is called."""
        if self._identity is None:
            found = _chunk(self._head) or {}
            names = {name: found[name] for name in IDENTITY if name in found}
            self._identity = {**names, "object": "chat.completion.chunk"}
        return self._identity

    def feed(self, event: bytes) -> tuple[bytes, int]:
        self._events.append(event)
        if not self._head and event.startswith(b"data:"):
            self._head = event
        if not self._slow and b'"tool_calls"' not in event and b"[DONE]" not in event:
            return event, 0
        self._slow = True
        data = sse.data(event)
        if data is not None and data.strip() == b"[DONE]":
            self.done = True
            return b"", 0
        chunk = _chunk(event)
        if chunk is None or chunk.get("error"):
            return event, 0
        return self._usage_of(event, chunk) if chunk.get("usage") else self._choice_of(event, chunk)

    def _usage_of(self, event: bytes, chunk: dict[str, Any]) -> tuple[bytes, int]:
        """The count is of this round; when it is not of all, it is held back and told as the sum in the end."""
        self._course.usage = _usage(chunk["usage"])
        if not self._later and not self._course.number_ours:
            self.usage_passed = True
            return self._choice_of(event, chunk)
        chunk["usage"] = None
        return self._choice_of(event, chunk) if chunk.get("choices") else (b"", 0)

    def _choice_of(self, event: bytes, chunk: dict[str, Any]) -> tuple[bytes, int]:
        choice = _choice(chunk)
        if not choice:
            return (b"" if self._later else event), 0
        delta = dict(choice["delta"]) if isinstance(choice.get("delta"), dict) else {}
        theirs, hidden = self._sorted(_objects(delta.pop("tool_calls", None)))
        if theirs:
            delta["tool_calls"] = theirs
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:
            self._course.finish = finish
            self.finish_held = self._course.number_ours > 0
        if self._later:
            chunk |= {name: value for name, value in self.identity().items() if name in chunk}
            self._go_on(delta)
        finish = None if self.finish_held else finish
        if finish is None and not any(delta.values()):
            return b"", hidden
        return _event({**chunk, "choices": [{**choice, "delta": delta, "finish_reason": finish}]}), hidden

    def _go_on(self, delta: dict[str, Any]) -> None:
        """A later round goes on with the message of the first."""
        delta.pop("role", None)
        if self._spoke and _text(delta.get("content")):
            self._spoke = False
            delta["content"] = SEPARATOR + delta["content"]

    def _sorted(self, pieces: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """The pieces of the caller's calls, and the tokens in those of ours."""
        theirs: list[dict[str, Any]] = []
        hidden = 0
        for piece in pieces:
            call = self._call_of(piece)
            tokens = self._course.add(call, piece)
            if not call.named:
                call.waiting.append(piece)
            elif call.ours:
                hidden += tokens
            else:
                if call.place is None:
                    call.place, self._places = self._places, self._places + 1
                theirs += [{**each, "index": call.place} for each in (*call.waiting, piece)]
                call.waiting.clear()
        return theirs, hidden

    def _call_of(self, piece: dict[str, Any]) -> _Call:
        """The call that a piece belongs to. Some servers give every call the same index, and each an id of its own."""
        index, id = piece.get("index"), _text(piece.get("id"))
        index = index if isinstance(index, int) else 0
        known = self._open.get(index)
        if known is None or (id and known.id and id != known.id):
            known = self._open[index] = self._course.begin()
        return known

    def message(self) -> dict[str, Any]:
        """What the model said besides its calls, from all events. Read only when there is a next round to tell."""
        texts: dict[str, list[str]] = {}
        lists: dict[str, list[Any]] = {}
        for event in self._events:
            choice = _choice(_chunk(event) or {})
            delta = choice["delta"] if isinstance(choice.get("delta"), dict) else {}
            for name, value in delta.items():
                if isinstance(value, str) and name != "role":
                    texts.setdefault(name, []).append(value)
                elif isinstance(value, list) and name != "tool_calls":
                    lists.setdefault(name, []).extend(value)
            self._course.finish = self._course.finish or _text(choice.get("finish_reason")) or None
        return {**lists, **{name: "".join(pieces) for name, pieces in texts.items()}}


# What was kept, back in its place.


def digests(body: bytes, account: str) -> tuple[str, ...]:
    """The digests of the messages in a request that something may be kept for."""
    if b'"tool_calls"' not in body:
        return ()
    messages = _objects(msgspec.json.decode(json_fields.split(body)["messages"]))
    return tuple(name for _, name in _calling(messages, account))[-MOST_RESTORED:]


def restored(body: bytes, account: str, kept: Mapping[str, Kept]) -> bytes:
    """The request with what was kept in its place."""
    fields: dict[str, Any] = dict(json_fields.split(body))
    raw = msgspec.json.decode(fields["messages"], type=list[Raw])
    places = newest(_calling(_objects(msgspec.json.decode(fields["messages"])), account))
    messages: list[Raw] = []
    for place, message in enumerate(raw):
        found = kept.get(places.get(place, ""))
        messages += found.turns if found is not None and found.dialect == NAME else [message]
    return json_fields.join({**fields, "messages": messages})


def _calling(messages: list[dict[str, Any]], account: str) -> Iterator[tuple[int, str]]:
    """The places and digests of the messages that call tools."""
    for place, message in enumerate(messages):
        calls = _objects(message.get("tool_calls")) if message.get("role") == "assistant" else []
        if calls:
            functions = [(call.get("id"), call["function"]) for call in calls if isinstance(call.get("function"), dict)]
            told = [(_text(id), _text(each.get("name")), _text(each.get("arguments"))) for id, each in functions]
            yield place, digest(account, _shown(messages[max(place - 1, 0) : place]), told)


def _shown(messages: list[dict[str, Any]]) -> str:
    """A message by what it says, whatever else stands in it."""
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [_text(part.get("text")) for part in _objects(parts)]
        return f"{message.get('role')} {message.get('tool_call_id') or ''} {''.join(texts)}"
    return ""


# Pieces of JSON.


def _declared(fields: Mapping[str, Raw]) -> frozenset[str] | None:
    """The names of the caller's own tools; None when the request leaves no room for others."""
    given = {name: json_fields.plain(fields.get(name)) for name in ("n", "tool_choice", "functions", "tools")}
    if given["n"] not in (None, 1) or given["tool_choice"] not in (None, "auto") or given["functions"]:
        return None
    if given["tools"] is not None and not isinstance(given["tools"], list):
        return None
    functions = (tool.get("function") for tool in _objects(given["tools"]))
    return frozenset(_text(each.get("name")) for each in functions if isinstance(each, dict))


def _definition(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _array(raw: Any) -> Raw:
    return Raw(b"[]") if raw is None or bytes(raw).strip() == b"null" else raw


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The only choice; empty when there is none."""
    return next(iter(_objects(answer.get("choices"))), {})


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _chunk(event: bytes) -> dict[str, Any] | None:
    data = sse.data(event)
    try:
        value = None if data is None else msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + encoded(chunk) + b"\n\n"


def _usage(value: Any) -> TokenUsage | None:
    return None if value is None else read_usage(Raw(encoded(value)))


def _report(usage: TokenUsage) -> dict[str, Any]:
    written = {"cache_write_tokens": usage.cache_write} if usage.cache_write else {}
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input, **written},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
