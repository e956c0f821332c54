"""A chat upstream's answers as Anthropic Messages: plain ones and streams. `messages_to_chat.py` has what went up.

A message is a row of blocks, of which one at a time is written; a chat completion grows in all its parts at once. So
the part that came first is written as it comes, and what belongs to later ones waits until it is whole.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from msgspec import Raw, Struct, json

from penstock.dialects import Label, Plain, Step, json_fields, sse, unread
from penstock.dialects.anthropic_events import (
    MESSAGE_STOP,
    PING,
    SIGNATURE,
    block_delta,
    block_start,
    block_stop,
    error_event,
    message,
    message_delta,
    message_start,
)
from penstock.dialects.pairs.chat_pieces import (
    EXTRA,
    Kind,
    Piece,
    content_of,
    first_choice,
    pieces,
    size,
)
from penstock.dialects.pairs.growing_input import GrowingInput, is_object
from penstock.dialects.usage import (
    TokenUsage,
    estimate_delta_tokens,
    estimate_deltas,
    estimate_tokens,
    read_usage,
)
from penstock.errors import UpstreamFailed

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
INVALID = "INVALID_JSON"  # Anthropic's own name for an input that is none, in what it says of tools that stream


class Telling(Struct, frozen=True, gc=False):
    """What an answer depends on besides the upstream's words.

    `thinking` says whether the caller is to see any. `names` are those of tools whose function had to be called
    otherwise, by that. `context` says whether the caller wants to hear what was done about context.
    """

    input_estimate: int
    thinking: bool
    stop_sequences: tuple[str, ...]
    names: dict[str, str]
    context: bool


class Ending:
    """How an answer ended, put together from what its choice has said so far."""

    __slots__ = ("_called", "_reason", "_refusal", "_sequence", "_telling")

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self._reason: str | None = None
        self._sequence: str | None = None
        self._refusal: list[str] = []
        self._called = False

    def __repr__(self) -> str:
        return f"Ending({self._reason})"

    def read(self, choice: dict[str, Any]) -> str | None:
        """Take in a choice; the reason to finish that it gives, if it does."""
        content = content_of(choice)
        refusal = content.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._refusal.append(refusal)
        self._called = self._called or bool(content.get("tool_calls"))
        reason = choice.get("finish_reason")
        if not isinstance(reason, str) or not reason:
            return None
        self._reason = reason
        for name in ("stop_reason", "matched_stop"):  # what vLLM and SGLang call the sequence that they met
            if choice.get(name) in self._telling.stop_sequences:
                self._sequence = choice[name]
        return reason

    def told(self) -> dict[str, Any]:
        """What a message says of it."""
        stop: dict[str, Any] = {"stop_reason": self._stop_reason(), "stop_sequence": self._sequence}
        if self._refusal:
            stop["stop_details"] = {"type": "refusal", "category": None, "explanation": "".join(self._refusal)}
        return stop

    def _stop_reason(self) -> str:
        if self._refusal:
            return "refusal"
        if self._sequence is not None:
            return "stop_sequence"
        reason = STOP_REASONS.get(self._reason or "", "end_turn")
        # Several servers say that they just stopped when they call a tool that they were told to call.
        return "tool_use" if reason == "end_turn" and self._called else reason


# A plain answer.


def answer(body: bytes, *, label: Label, telling: Telling) -> Plain:
    """Read a chat completion and give it as a message. `UpstreamFailed` when it is none."""
    fields = json_fields.answer_fields(body)
    choice = first_choice(json_fields.plain(fields.get("choices")))
    if choice is None:
        raise UpstreamFailed("The provider's answer has no choices.", began=True)
    ending = Ending(telling)
    ending.read(choice)
    said = content_of(choice)
    found = pieces(said)
    reported = read_usage(fields.get("usage"))
    produced = estimate_tokens(size(found) + unread.in_chat(said)) if reported is None else reported.output
    usage = reported or TokenUsage(telling.input_estimate, produced)
    model = json_fields.plain(fields.get("model"))
    document = {
        **message(label, model if isinstance(model, str) else "", usage),
        "content": [
            _block(piece, place, label, telling) for place, piece in enumerate(found) if _shown(piece, telling)
        ],
        **ending.told(),
        **_about_context(telling),
    }
    return Plain(json_fields.join(document), reported, produced)


def _shown(piece: Piece, telling: Telling) -> bool:
    return telling.thinking or piece.kind != "thinking"


def _block(piece: Piece, place: int, label: Label, telling: Telling) -> dict[str, Any]:
    match piece.kind:
        case "text":
            return {"type": "text", "text": piece.text}
        case "thinking":
            return {"type": "thinking", "thinking": piece.text, "signature": SIGNATURE + piece.key}
        case "tool_use":
            return {**_tool_use(piece, place, label, telling), "input": _input(piece.text)}


def _tool_use(piece: Piece, place: int, label: Label, telling: Telling) -> dict[str, Any]:
    """A call without its input, under the name the caller knows. One that its server gave no id gets one."""
    id = piece.id
    if not id or id.startswith(EXTRA):
        id = f"toolu_{label.id.partition('_')[2]}_{place}{id}"
    return {"type": "tool_use", "id": id, "name": telling.names.get(piece.name, piece.name), "input": {}}


def _input(arguments: str) -> Any:
    """The object that a call's arguments are; what is none is handed over as it came, under a name that says so."""
    if not arguments.strip():
        return {}
    raw = arguments.encode("utf-8", "surrogatepass")
    return Raw(raw) if is_object(raw) else {} if raw.strip() == b"null" else {INVALID: arguments}


def _about_context(telling: Telling) -> dict[str, Any]:
    """To a caller who asked for context to be cleared: nothing was."""
    return {"context_management": {"applied_edits": []}} if telling.context else {}


# A stream.


class _Block:
    """A block in the making. What is yet to be written of it waits in `texts`."""

    __slots__ = ("id", "input", "key", "kind", "name", "opened", "texts")

    def __init__(self, piece: Piece) -> None:
        self.kind = piece.kind
        self.key = piece.key
        self.id = piece.id
        self.name = piece.name
        self.texts: list[str] = []
        self.opened = False
        self.input = GrowingInput()  # a tool's, as far as it is written

    def __repr__(self) -> str:
        return f"_Block({self.kind} {self.key}, opened={self.opened})"

    def add(self, piece: Piece) -> None:
        if piece.text:
            self.texts.append(piece.text)
        self.id = self.id or piece.id
        if not self.opened:
            self.name = self.name or piece.name

    def whole(self) -> bool:
        """Whether nothing more can come, once something else has begun. Tools' inputs may grow at the same time."""
        return self.kind != "tool_use" or self.input.is_whole()


class _Blocks:
    """The blocks of a message: the first of the queue is written as it grows, the others wait for their turn."""

    __slots__ = ("_calls", "_done", "_index", "_label", "_queue", "_telling")

    def __init__(self, label: Label, telling: Telling) -> None:
        self._label = label
        self._telling = telling
        self._index = 0
        self._queue: deque[_Block] = deque()
        self._calls: dict[str, _Block] = {}  # the tools among them by place; of several at one the last
        self._done: set[str] = set()  # places of tools whose block is written

    def __repr__(self) -> str:
        return f"_Blocks({self._index} written, {list(self._queue)})"

    @property
    def open(self) -> int | None:
        """The index of the block that has been begun and not ended."""
        return self._index if self._queue and self._queue[0].opened else None

    @property
    def growing_text(self) -> int | None:
        """The index of the block that more text would go on in at once."""
        return self.open if len(self._queue) == 1 and self._queue[0].kind == "text" else None

    def add(self, piece: Piece) -> bytes:
        """The events that a piece comes to."""
        block = self._find(piece)
        if block is None:
            if piece.kind == "tool_use" and not (piece.name or piece.id) and piece.key in self._done:
                return b""  # blanks behind an input that is whole
            block = _Block(piece)
            self._queue.append(block)
            if block.kind == "tool_use":
                self._calls[block.key] = block
        block.add(piece)
        return self._written()

    def _find(self, piece: Piece) -> _Block | None:
        """The block that a piece belongs to. Some servers give all calls the same place, and tell them by id."""
        if piece.kind != "tool_use":
            last = self._queue[-1] if self._queue else None
            return last if last is not None and last.kind == piece.kind else None
        block = self._calls.get(piece.key)
        if block is None or (piece.id and piece.name and block.id and piece.id != block.id):
            return None
        return block

    def _written(self) -> bytes:
        """What can be written now."""
        out = []
        while self._queue and (self._queue[0].name or self._queue[0].kind != "tool_use"):
            out.append(self._grown(self._queue[0]))
            if len(self._queue) == 1 or not self._queue[0].whole():
                break
            out.append(self._end())
        return b"".join(out)

    def _grown(self, block: _Block) -> bytes:
        """A block with what has come of it."""
        out = b""
        if not block.opened:
            block.opened = True
            out = block_start(self._index, self._beginning(block))
        if block.texts:
            text = "".join(block.texts)
            block.texts.clear()
            out += block_delta(self._index, _delta(block.kind, text))
            if block.kind == "tool_use":
                block.input.add(text)
        return out

    def _beginning(self, block: _Block) -> dict[str, Any]:
        match block.kind:
            case "text":
                return {"type": "text", "text": ""}
            case "thinking":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "tool_use":
                piece = Piece(block.kind, block.key, "", block.id, block.name)
                return _tool_use(piece, self._index, self._label, self._telling)

    def _end(self) -> bytes:
        """End the first block of the queue."""
        block = self._queue.popleft()
        out = b""
        if block.kind == "thinking":
            out = block_delta(self._index, {"type": "signature_delta", "signature": SIGNATURE + block.key})
        elif block.kind == "tool_use":
            self._done.add(block.key)
            if self._calls.get(block.key) is block:
                del self._calls[block.key]
        out += block_stop(self._index)
        self._index += 1
        return out

    def end(self) -> bytes:
        """Write and end all there is."""
        out = []
        while self._queue:
            out += [self._grown(self._queue[0]), self._end()]
        return b"".join(out)


def _delta(kind: Kind, text: str) -> dict[str, Any]:
    match kind:
        case "text":
            return {"type": "text_delta", "text": text}
        case "thinking":
            return {"type": "thinking_delta", "thinking": text}
        case "tool_use":
            return {"type": "input_json_delta", "partial_json": text}


class _Chunk(Struct, gc=False):
    choices: Any = None
    usage: Raw = Raw()
    error: Any = None
    model: Any = None
    object: Any = None


_CHUNK = json.Decoder(_Chunk)
# What follows the head of an event that adds text to the only choice and nothing else, as most servers write it. It has
# no escapes, so it can be handed on as it is written.
_TEXT_TAIL = re.compile(
    rb'"choices":\[\{"index":0,"delta":\{"content":"([^"\\\x00-\x1f]*)"\}(?:,"logprobs":null)?,"finish_reason":null\}\]'
    rb'(?:,"usage":null)?(?:,"obfuscation":"[^"\\\x00-\x1f]*")?\}\n\n'
)
_DATA_AT = len(b"data:")


def _is_text(raw: bytes) -> bool:
    try:
        str(raw, "utf-8")
        return True
    except UnicodeDecodeError:
        return False


class ChatAsMessages:
    """One streamed chat completion, as a message. Its ending waits for `terminator`: only then is it known what was
    used."""

    __slots__ = (
        "_blocks",
        "_cut",
        "_ending",
        "_failed",
        "_head",
        "_label",
        "_model",
        "_sent",
        "_started",
        "_telling",
        "_usage",
    )

    def __init__(self, label: Label, telling: Telling) -> None:
        self._label = label
        self._telling = telling
        self._blocks = _Blocks(label, telling)
        self._ending = Ending(telling)
        self._usage = TokenUsage(telling.input_estimate, 0)
        self._model = ""
        self._started = False
        self._head = b"\n"  # how the latest event began; no event begins like this
        self._sent: tuple[bool, int | None] = False, None  # whether the message, and which block, had been begun
        self._cut: tuple[str, str] | None = None
        self._failed = False

    def __repr__(self) -> str:
        return f"ChatAsMessages({self._label.id}, {self._blocks!r}, {self._ending!r})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises; what is no chunk at all is an error of the stream."""
        self._sent = self._started, self._blocks.open
        data = (
            event[_DATA_AT:] if event.startswith(b"data:") and event.find(b"\n") >= len(event) - 2 else sse.data(event)
        )
        if data is None:
            return Step(event if event.startswith(b":") else b"")
        if data.strip() == b"[DONE]":
            return Step(b"", done=True)
        try:
            chunk = _CHUNK.decode(data)
            if chunk.error or chunk.object == "error":
                return Step(b"", error=json_fields.error_message(json_fields.split(data)))
            return self._read(event, chunk)
        except (ValueError, RecursionError):
            return Step(b"", error="The provider sent an event that is no chat completion chunk.")

    def _read(self, event: bytes, chunk: _Chunk) -> Step:
        usage = read_usage(chunk.usage) if bytes(chunk.usage) not in (b"", b"null") else None
        if usage is not None:
            self._usage = usage
        out = self._begin(chunk.model)
        choice = first_choice(chunk.choices)
        if choice is None:
            self._sent = True, self._blocks.open
            return Step(out, usage=usage)
        said = content_of(choice)
        found = pieces(said)
        out += b"".join(self._blocks.add(piece) for piece in found if _shown(piece, self._telling))
        finish_reason = self._ending.read(choice)
        if finish_reason is not None:
            out += self._blocks.end()
        produced = estimate_delta_tokens(size(found))
        if not produced or len(event) > unread.LONG_EVENT:
            produced += estimate_delta_tokens(unread.in_chat(said))
        if usage is None:
            self._head = event[: event.find(b'"choices"')] or self._head
        if not produced:  # then it is not held back for money
            self._sent = self._started, self._blocks.open
        return Step(out, produced, usage, finish_reason)

    def _begin(self, model: Any) -> bytes:
        """The message's first events, once."""
        if self._started:
            return b""
        self._started = True
        self._model = model if isinstance(model, str) else ""
        return message_start(self._label, self._model, self._usage) + PING

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """`(what to send on, tokens produced, where they end)` of the plain text events that follow from `start`: those
        that begin like the one before, while text is being written."""
        index, head = self._blocks.growing_text, self._head
        texts, end = [], start
        while index is not None and block.startswith(head, end):
            tail = _TEXT_TAIL.match(block, end + len(head))
            if tail is None:
                break
            texts.append(tail[1])
            end = tail.end()
        if not texts or not _is_text(b"".join(texts)):
            return b"", 0, start
        before, after = block_delta(index or 0, {"type": "text_delta", "text": "|"}).split(b"|")
        return b"".join([before + text + after for text in texts if text]), estimate_deltas(texts), end

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """End the block that is being written. What waits for its turn is left out: none of it is whole."""
        self._cut = STOP_REASONS.get(finish_reason, "end_turn"), reason
        began, open = self._sent  # what the latest event comes to was not sent
        self._started = True
        self._blocks = _Blocks(self._label, self._telling)
        out = b"" if began else message_start(self._label, self._model, self._usage) + PING
        return out if open is None else out + block_stop(open)

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """Nothing yet: it is told when the message ends."""
        self._usage = usage
        return b""

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began, in Anthropic's envelope. Nothing comes after it."""
        self._failed = True
        return error_event(code or type, message, self._label.id)

    def terminator(self) -> bytes:
        """How the message ended, what it used, and that this is all."""
        if self._failed:
            return b""
        stop, reason = self._ending.told(), None
        if self._cut is not None:
            stop_reason, reason = self._cut
            stop = {"stop_reason": stop_reason, "stop_sequence": None}
        ended = message_delta(stop, self._usage, reason, _about_context(self._telling))
        return self._begin(None) + self._blocks.end() + ended + MESSAGE_STOP
