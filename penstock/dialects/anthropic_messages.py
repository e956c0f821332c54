"""Anthropic Messages: requests, plain answers and streams.

Bytes pass through. Read are the model, the output limit, whether to stream, and what there is in messages, system and
tools for a model to read; replaced are the model's name, and the output limit with the thinking that has to fit into
it. Tools of any kind, caching, containers, context management and whatever is new are between the caller and the model.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json
from msgspec.structs import replace

from penstock.dialects import Label, Plain, Step, Wish, json_fields, sse, stored, unread
from penstock.dialects.anthropic_events import (
    MESSAGE_STOP,
    SIGNATURE,
    block_stop,
    error_event,
    message_delta,
    message_start,
)
from penstock.dialects.anthropic_usage import UsageReport, read_report
from penstock.dialects.json_fields import Fields
from penstock.dialects.openai_chat import TEMPLATE_BYTES
from penstock.dialects.usage import TokenUsage, estimate_delta_tokens, estimate_deltas, estimate_tokens
from penstock.errors import InvalidRequest, UpstreamFailed

NAME = "anthropic_messages"
PATH = "messages"
FORWARDED: tuple[bytes, ...] = (b"anthropic-version", b"anthropic-beta")
LEAST_THINKING = 1_024  # Anthropic's own limit for `thinking.budget_tokens`
STOPS = {"length": "max_tokens"}  # what others call it, and Anthropic
# Under these names the limit reaches servers that speak Messages beside other dialects, or spoke an older one.
_MEANT = json_fields.Meant(
    ("model", "messages", "stream", "max_tokens", "thinking"),
    {
        "max_tokens_to_sample": "max_tokens",
        "max_completion_tokens": "max_tokens",
        "max_new_tokens": "max_tokens",
        "n_predict": "max_tokens",
    },
)
_FORMATS = ("output_config", "output_format")
# Content inside content that is looked into: a message's, a tool result's, a document's in it. What is deeper counts by
# its size, so that no body is read again and again.
_DEEPEST = 3


# The request.


class _Source(Struct, gc=False):
    type: str | None = None
    data: str | None = None
    url: str | None = None
    content: Raw = Raw()
    file_id: Raw = Raw()


class _Block(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    input: Raw = Raw()
    content: Raw = Raw()
    source: Raw = Raw()
    data: Raw = Raw()
    title: Raw = Raw()
    context: Raw = Raw()
    file_id: Raw = Raw()


class _Message(Struct, gc=False):
    role: str
    content: str | list[_Block]


class _Tool(Struct, gc=False):
    """An object."""


_MESSAGES = json.Decoder(Annotated[list[_Message], Meta(min_length=1)])
_SYSTEM = json.Decoder(str | list[_Block] | None)
_CONTENT = json.Decoder(str | list[_Block])
_SOURCE = json.Decoder(_Source)
_TOOLS = json.Decoder(list[_Tool] | None)
_FLAG = json.Decoder(bool | None)
_FIELDS = json.Decoder(list[Fields])
_LIMIT: json.Decoder[int | None] = json.Decoder(int | None)
_OUR_SIGNATURE = f'"{SIGNATURE}'.encode()
_MESSAGES_SHAPE = "a non-empty list of objects, each with a string 'role' and a 'content' of text or blocks"


class Weight:
    """What a prompt comes to: bytes of text that a model reads, parts that are not text, and inline image data."""

    __slots__ = ("blocks", "documents", "image_bytes", "images", "media", "stored", "text_bytes", "tools")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.blocks = 0
        self.tools = False
        self.media = 0
        self.images = 0
        self.documents = 0
        self.image_bytes = 0
        self.stored: str | None = None  # the first field that names what a provider keeps

    def __repr__(self) -> str:
        return f"Weight({self.text_bytes} bytes, {self.media} parts, {self.image_bytes} of images)"

    def add(self, content: str | list[_Block], depth: int = 1) -> None:
        """The content of a message, of a result or of a document."""
        if isinstance(content, str):
            self.text_bytes += _size(content)
            return
        self.blocks += len(content)
        json_fields.refuse_crowd(self.blocks, "messages")
        for block in content:
            self.text_bytes += _size(block.text) + _size(block.thinking) + len(bytes(block.input))
            self.text_bytes += sum(map(json_fields.given_size, (block.data, block.title, block.context)))
            if block.type in ("image", "document"):
                self._add_media(block.type, _source(block.source), depth)
            else:
                self.text_bytes += len(bytes(block.source))
                if stored.names_any(block.file_id):
                    self.stored = self.stored or "messages.content.file_id"
            self.add_raw(block.content, depth + 1)

    def add_raw(self, raw: Raw, depth: int) -> None:
        """Content within content; what is in no shape that we know counts by its size."""
        if not raw:
            return
        try:
            content = _CONTENT.decode(raw) if depth <= _DEEPEST else None
        except (ValueError, RecursionError):
            content = None
        if content is None:
            self.text_bytes += len(bytes(raw))
        else:
            self.add(content, depth)

    def _add_media(self, kind: str, source: _Source, depth: int) -> None:
        if kind == "document" and source.type in ("text", "content"):
            self.text_bytes += _size(source.data)
            self.add_raw(source.content, depth + 1)
            return
        self.media += 1
        if stored.names_any(source.file_id):
            self.stored = self.stored or "messages.content.source.file_id"
        elif stored.is_address(source.url):
            self.stored = self.stored or "messages.content.source.url"
        if kind == "document":
            self.documents += 1
        else:
            self.images += 1
            self.image_bytes += len(source.data or "")
            if source.url is not None and source.url.startswith("data:"):
                self.image_bytes += len(source.url)


def _source(raw: Raw) -> _Source:
    """Where an image or a document comes from, as far as it can be read."""
    try:
        return _SOURCE.decode(raw)
    except (ValueError, RecursionError):
        value = stored.read(raw)
        url = value.get("url") if isinstance(value, dict) else None
        return _Source(url=url if isinstance(url, str) else None, file_id=raw if stored.id_in(raw) else Raw())


def peek(body: bytes, *, max_output_tokens: int) -> Wish:
    """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    json_fields.refuse_lookalikes(fields, _MEANT)
    json_fields.refuse_many(fields)
    _refuse_thread(fields)
    weight = _weigh(fields)
    return Wish(
        model=model,
        stream=json_fields.read(fields, "stream", _FLAG, "a boolean") or False,
        output_limit=_output_limit(fields, max_output_tokens),
        choices=1,
        include_usage=True,  # there is no Messages answer without
        input_bytes=len(body) - weight.image_bytes,
        text_bytes=weight.text_bytes,
        images=weight.media,
        fields=fields,
        needs=_needs(fields, weight),
        unmeasured=weight.documents,
        stored=weight.stored,
    )


def peek_prompt(body: bytes) -> Wish:
    """The same for a body whose prompt is only to be counted: it has no output limit and no stream."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    _refuse_thread(fields)
    weight = _weigh(fields)
    return Wish(
        model=model,
        stream=False,
        output_limit=None,
        choices=1,
        include_usage=True,
        input_bytes=len(body) - weight.image_bytes,
        text_bytes=weight.text_bytes,
        images=weight.media,
        fields=fields,
        needs=_needs(fields, weight),
        unmeasured=weight.documents,
        stored=weight.stored,
    )


def _refuse_thread(fields: Fields) -> None:
    """`InvalidRequest` for a conversation that an upstream would keep, or look up, for whoever has its key."""
    for name in fields:
        if name.casefold() == "thread" and json_fields.plain(fields[name]) is not None:
            raise InvalidRequest(f"'{name}' is not served: threads are not kept here; send the messages.", param=name)


def counted(input_tokens: int) -> bytes:
    """The answer to a request that has a prompt counted."""
    return json.encode({"input_tokens": input_tokens})


def _weigh(fields: Fields) -> Weight:
    """All that is in the prompt: messages, system and the definitions of tools."""
    messages = json_fields.read(fields, "messages", _MESSAGES, _MESSAGES_SHAPE)
    if messages is None:
        raise InvalidRequest("The 'messages' field is required.", param="messages")
    json_fields.refuse_crowd(len(messages), "messages")
    weight = Weight()
    for message in messages:
        weight.text_bytes += TEMPLATE_BYTES
        weight.add(message.content)
    system = json_fields.read(fields, "system", _SYSTEM, "text or a list of text blocks")
    if system:
        weight.text_bytes += TEMPLATE_BYTES
        weight.add(system)
    if json_fields.read(fields, "tools", _TOOLS, "a list of objects"):
        weight.tools = True
        weight.text_bytes += len(bytes(fields["tools"]))
    weight.text_bytes += sum(json_fields.schema_size(fields, name) for name in _FORMATS)
    if "container" in fields and _is_stored(fields["container"]):
        weight.stored = weight.stored or "container"
    return weight


def _is_stored(container: Raw) -> bool:
    """Whether a container is one that is there already, or has skills that an account has stored."""
    value = stored.read(container)
    if not isinstance(value, dict):
        return bool(value)
    skills = value.get("skills")
    theirs = isinstance(skills, list) and any(not isinstance(s, dict) or s.get("type") != "anthropic" for s in skills)
    return bool(value.get("id")) or theirs


def _needs(fields: Fields, weight: Weight) -> frozenset[str]:
    """What a model must be able to do for this."""
    needs = set()
    if weight.tools:
        needs.add("tools")
    if weight.images:
        needs.add("images")
    if any(b'"json_schema"' in bytes(fields.get(name, b"")) for name in _FORMATS):
        needs.add("json_schema")
    return frozenset(needs)


def _output_limit(fields: Fields, most: int) -> int:
    """The caller's output limit in tokens. Nothing at all is a limit, too: it has a prompt cached and not answered."""
    limit = json_fields.read(fields, "max_tokens", _LIMIT, f"a whole number up to {most}")
    if limit is None:
        raise InvalidRequest("The 'max_tokens' field is required.", param="max_tokens")
    if not 0 <= limit <= most:
        raise InvalidRequest(f"'max_tokens' must be a whole number up to {most}.", param="max_tokens")
    return limit


def _size(text: str | None) -> int:
    """Bytes of UTF-8."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream: `model` named, the output limit set if there is one. Usage comes unasked."""
    fields: dict[str, Any] = {**wish.fields, "model": model}
    if _OUR_SIGNATURE in bytes(fields["messages"]):
        fields["messages"] = _without_ours(fields["messages"])
    if output_limit is not None:
        fields["max_tokens"] = output_limit
        if "thinking" in fields and wish.output_limit is not None:
            fields["thinking"] = _fitted(fields["thinking"], wish.output_limit, output_limit)
    return json_fields.join(fields)


def _fitted(raw: Raw, asked: int, limit: int) -> Any:
    """Thinking that leaves as much of a lower limit to the answer as the caller left, in proportion.

    A budget has to be less than the limit, so where there is no room for the least one, there is no thinking. One that
    was not less to begin with is of a caller who interleaves thinking and tools, for whom that rule is not made.
    """
    thinking = json_fields.plain(raw)
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if not isinstance(budget, int) or not limit <= budget < asked:
        return raw
    if limit <= LEAST_THINKING:
        return {"type": "disabled"}
    return {**thinking, "budget_tokens": max(budget * limit // asked, LEAST_THINKING)}


def _without_ours(raw: Raw) -> list[dict[str, Any]]:
    """The messages without thinking that another upstream did: it has no signature that Anthropic would know."""
    kept: list[dict[str, Any]] = []
    for message in _FIELDS.decode(raw):
        content = bytes(message["content"])
        if _OUR_SIGNATURE not in content or not content.startswith(b"["):
            kept.append({**message})
        elif blocks := [block for block in _FIELDS.decode(content) if not _is_ours(block)]:
            kept.append({**message, "content": blocks})
    return kept


def _is_ours(block: Fields) -> bool:
    signature = json_fields.plain(block.get("signature"))
    return isinstance(signature, str) and signature.startswith(SIGNATURE)


# What comes back.


class _Content(Struct, gc=False):
    """A content block, or what a delta adds to one: whatever of it a model has produced."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    data: str | None = None
    input: Raw = Raw()

    def size(self) -> int:
        """Bytes of UTF-8. An input that is empty in a stream's first event comes in the ones that follow."""
        input = bytes(self.input)
        texts = (self.text, self.thinking, self.partial_json, self.name, self.data)
        return sum(map(_size, texts)) + (0 if input == b"{}" else len(input))


class _Stop(Struct, gc=False):
    stop_reason: str | None = None


class _Event(Struct, gc=False):
    type: str | None = None
    index: int | None = None
    message: Raw = Raw()
    content_block: Raw = Raw()
    delta: Raw = Raw()
    usage: Raw = Raw()


_EVENT = json.Decoder(_Event)
_CONTENT_OF = json.Decoder(_Content)
_STOP = json.Decoder(_Stop)
_BLOCKS = json.Decoder(list[Raw])
_OBJECT = json.Decoder(dict[str, Any])
MOST_OPEN = 128  # blocks that are begun and not ended: the API has one at a time, and what is free has to have an end
_DELTA_HEAD = b"event: content_block_delta\ndata: "
# An event that adds text or thinking to a block and nothing else, as most servers write it (Anthropic fills it up with
# blanks). It has no escapes: so the text is as long as it looks.
_TEXT_EVENT = (
    rb'(?:event: content_block_delta\n)?data: ?\{"type": ?"content_block_delta", ?"index": ?(?:0|[1-9][0-9]{0,5}), ?'
    rb'"delta": ?\{"type": ?"(?:text|thinking)_delta", ?"(?:text|thinking)": ?"%b"\} *\} *\n\n'
)
_TEXT = re.compile(_TEXT_EVENT % rb'([^"\\\x00-\x1f]*)')
_TEXT_EVENTS = re.compile(b"(?:%b)+" % (_TEXT_EVENT % rb'[^"\\\x00-\x1f]*'))


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's answer and name the model in it. `UpstreamFailed` when it is none."""
    fields = message_fields(body)
    usage = read_report(fields.get("usage")).counted()
    produced = estimate_content(fields.get("content")) if usage is None else usage.output
    if label.model is not None:
        body = json_fields.join({**fields, "model": label.model})
    return Plain(body, usage, produced)


def message_fields(body: bytes) -> Fields:
    """The fields of an upstream's message; `UpstreamFailed` when it is no JSON object, none, or an error."""
    try:
        fields = json_fields.split(body)
    except (ValueError, RecursionError):
        raise UpstreamFailed("The provider's answer is not a JSON object.", began=True) from None
    if "content" not in fields:
        words = json_fields.error_message(fields) or "The provider's answer is not a message."
        raise UpstreamFailed(words, began=True)
    return fields


def estimate_content(raw: Raw | None) -> int:
    """An estimate of the output tokens in the content of a message."""
    try:
        return sum(estimate_tokens(_size_of(block)) for block in _BLOCKS.decode(raw or b"[]"))
    except (ValueError, RecursionError):
        return estimate_tokens(len(bytes(raw or b"")))


def _size_of(content: Raw) -> int:
    """Bytes of what a model has produced in a block, or in a delta. ValueError and RecursionError when it is none."""
    return _CONTENT_OF.decode(content).size() or unread.in_block(_OBJECT.decode(content))


def open_stream(*, wish: Wish, label: Label) -> MessagesStream:
    """Begin reading a streamed answer."""
    return MessagesStream(label)


class MessagesStream:
    """One streamed message. Only its first event names the model; all others pass as they are."""

    __slots__ = ("_cut", "_failed", "_label", "_open", "_opened", "_report", "_started", "_stop", "_usage")

    def __init__(self, label: Label) -> None:
        self._label = label
        self._started = False
        self._open: set[int] = set()
        self._opened: int | None = None  # the block that the latest event has opened, if it has
        self._report = UsageReport()
        self._usage = TokenUsage(0, 0)
        self._cut: tuple[str, str] | None = None  # how and why we ended the message
        self._failed = False
        self._stop = MESSAGE_STOP

    def __repr__(self) -> str:
        return f"MessagesStream({self._label.id}, open={sorted(self._open)}, cut={self._cut})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood passes, counted by size."""
        self._opened = None
        data = event[len(_DELTA_HEAD) :] if event.startswith(_DELTA_HEAD) else sse.data(event)
        if data is None:
            return Step(event)
        try:
            return self._read(event, data, _EVENT.decode(data))
        except (ValueError, RecursionError):
            return self._unusual(event, data)

    def _read(self, event: bytes, data: bytes, read: _Event) -> Step:
        match read.type:
            case "content_block_delta":
                return Step(event, estimate_delta_tokens(_size_of(read.delta)))
            case "content_block_start":
                return self._begin_block(event, read)
            case "content_block_stop":
                self._open.discard(read.index or 0)
                return Step(event)
            case "message_start":
                return self._begin(event, data, read.message)
            case "message_delta":
                stop = _STOP.decode(read.delta) if read.delta else _Stop()
                return Step(event, usage=self._count(read.usage), finish_reason=stop.stop_reason or None)
            case "message_stop":
                self._stop = event
                return Step(b"", done=True)
            case "ping":
                return Step(event)
        return self._unusual(event, data)

    def _begin_block(self, event: bytes, read: _Event) -> Step:
        """A block that may have content already. If it has, the event may be held back for money."""
        index = read.index or 0
        is_new = index not in self._open and len(self._open) < MOST_OPEN
        if is_new:
            self._open.add(index)
        produced = estimate_delta_tokens(_size_of(read.content_block))
        self._opened = index if produced and is_new else None
        return Step(event, produced)

    def _begin(self, event: bytes, data: bytes, message: Raw) -> Step:
        """The first event, with our name for the model."""
        self._started = True
        fields = json_fields.split(message)
        usage = self._count(fields.get("usage"))
        if usage is not None and not usage.input:  # there is no prompt of nothing: it has not been counted yet
            self._report, usage = UsageReport(), None
        if usage is not None:  # what it counts of the output comes in the events that follow, and is counted there
            usage = replace(usage, output=0, reasoning=0, total=usage.input)
        if self._label.model is None:
            return Step(event, usage=usage)
        named: dict[str, Any] = {**json_fields.split(data)}
        named["message"] = {**fields, "model": self._label.model}
        return Step(sse.with_data(event, json_fields.join(named)), usage=usage)

    def _count(self, raw: Raw | None) -> TokenUsage | None:
        """The running total with this report. None when it counts no output anew: what has come since is not in it."""
        report = read_report(raw)
        self._report = report.after(self._report)
        usage = None if report.output_tokens is None else self._report.counted()
        if usage is not None:
            self._usage = usage
        return usage

    def _unusual(self, event: bytes, data: bytes) -> Step:
        """An error, the end as OpenAI writes it, or something of a server's own."""
        if data.strip() == b"[DONE]":
            return Step(b"", done=True)
        try:
            error = json_fields.error_message(json_fields.split(data))
        except (ValueError, RecursionError):
            error = None
        if error is not None:
            return Step(b"", error=error)
        return Step(event, estimate_tokens(len(data)))

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """`(what to send on, tokens produced, where they end)` of the plain text events that follow from `start`."""
        plain = _TEXT_EVENTS.match(block, start)
        if plain is None:
            return b"", 0, start
        end = plain.end()
        return block[start:end], estimate_deltas(_TEXT.findall(block, start, end)), end

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """End every open block. The rest of the ending is `terminator`, which also says what was used."""
        self._cut = STOPS.get(finish_reason, "end_turn"), reason
        began = b"" if self._started else message_start(self._label, "", self._usage)
        if self._opened is not None:  # by the event that was not sent
            self._open.discard(self._opened)
        return began + b"".join(map(block_stop, sorted(self._open)))

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """Nothing yet: it is told when the message ends."""
        self._usage = usage
        return b""

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began, in Anthropic's envelope. Nothing comes after it."""
        self._failed = True
        return error_event(code or type, message, self._label.id)

    def terminator(self) -> bytes:
        """The last bytes of a stream; of one that we ended, how and why as well."""
        if self._failed:
            return b""
        if self._cut is None:
            return self._stop
        stop_reason, reason = self._cut
        stop = {"stop_reason": stop_reason, "stop_sequence": None}
        return message_delta(stop, self._usage, reason) + MESSAGE_STOP
