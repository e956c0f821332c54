"""OpenAI chat completions: requests, plain answers and streams.

Bytes pass through. Read are the model, the output limit, the number of choices, whether to stream and to report usage,
and the presence of messages; replaced are the model's name, the answer's id, the output limit and the wish for usage.
What other servers add (DeepSeek's reasoning, vLLM's running usage, llama.cpp's timings, OpenRouter's comments, Azure's
filter results) passes as well. Tools, formats and sampling are between the caller and the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json

from penstock.dialects import Label, Plain, Step, Wish, json_fields, sse, stored, unread
from penstock.dialects.alike import Alike, is_plain, put_together
from penstock.dialects.json_fields import Fields
from penstock.dialects.usage import (
    TokenUsage,
    UsageReport,
    estimate_delta_tokens,
    estimate_deltas,
    estimate_tokens,
    read_usage,
)
from penstock.errors import InvalidRequest

NAME = "openai_chat"
PATH = "chat/completions"
FORWARDED: tuple[bytes, ...] = ()
DONE = b"data: [DONE]\n\n"
_DATA_AT = len(b"data:")  # where an event's JSON begins, usually; the blank and the line ends around it are JSON's own
LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
MOST_CHOICES = 128  # OpenAI's own limit for `n`
TEMPLATE_BYTES = 16  # four tokens a message: its role, and the marks where it begins and ends
# Names under which a field we read reaches an upstream that knows more of them: llama.cpp puts `n_predict` above
# `max_tokens` and `n_cmpl` above `n`, others have `max_new_tokens`, and vLLM made `best_of` answers of which it counted
# `n`.
_MEANT = json_fields.Meant(
    ("model", "messages", "stream", "stream_options", "n", *LIMIT_FIELDS),
    {
        "n_predict": LIMIT_FIELDS[1],
        "max_new_tokens": LIMIT_FIELDS[1],
        "best_of": "n",
        "n_cmpl": "n",
    },
)
_NOTHING: frozenset[str] = frozenset()
_ABSENT = Raw()  # a field that is not there
_TEXT_PARTS = frozenset({"text", "refusal", "thinking"})
_MEASURED = frozenset({"image_url", "input_image", "image", "input_audio"})  # kinds of parts; others may be anything
_PLAIN_BYTES = 24  # what JSON has around a text beside the bytes reckoned for a template: names, a role, marks
ESCAPED_SHARE = 16  # a text is written about so much longer, by a part of its size
_DEFINITIONS = ("tools", "functions")  # what is written into a prompt besides messages
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")  # the same under other names
_MEASURED_FIELDS = frozenset({"role", "content", "audio", *_THOUGHTS})
_LABELS = (("id", (b'"id":', b'"id": ')), ("model", (b'"model":', b'"model": ')))  # of what is replaced in events
_ID_PREFIXES = ("chatcmpl-", "cmpl-")


# The request.


class _Link(Struct, gc=False):
    url: str = ""


class _Part(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    image_url: _Link | str | None = None
    video_url: Raw = _ABSENT
    audio_url: Raw = _ABSENT
    file: Raw = _ABSENT
    file_id: Raw = _ABSENT


class _Message(Struct, gc=False):
    role: str
    content: str | list[_Part | str | None] | None = None
    audio: Raw = _ABSENT


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


_MESSAGES = json.Decoder(Annotated[list[_Message], Meta(min_length=1)])
_MESSAGE_FIELDS = json.Decoder(list[Fields])
_PARTS = json.Decoder(list[Raw])
_FLAG = json.Decoder(bool | None)
_LIMIT = json.Decoder(Annotated[int, Meta(ge=1)] | None)
_CHOICES = json.Decoder(Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None)
_CHOICES_SHAPE = f"a whole number from 1 to {MOST_CHOICES}"
_STREAM_OPTIONS = json.Decoder(_StreamOptions | None)


def peek(body: bytes, *, max_output_tokens: int) -> Wish:
    """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    json_fields.refuse_lookalikes(fields, _MEANT)
    messages = json_fields.read(fields, "messages", _MESSAGES, "a non-empty list of objects, each with a string 'role'")
    if messages is None:
        raise InvalidRequest("The 'messages' field is required.", param="messages")
    images, image_bytes, unmeasured, has_sound = _media(messages)
    options = None
    if "stream_options" in fields:
        options = json_fields.read(
            fields, "stream_options", _STREAM_OPTIONS, "an object with a boolean 'include_usage'"
        )
    return Wish(
        model=model,
        stream="stream" in fields and (json_fields.read(fields, "stream", _FLAG, "a boolean") or False),
        output_limit=_output_limit(fields, max_output_tokens),
        choices=(json_fields.read(fields, "n", _CHOICES, _CHOICES_SHAPE) or 1) if "n" in fields else 1,
        include_usage=options is not None and options.include_usage is True,
        input_bytes=len(body) - image_bytes,
        text_bytes=_prompt_size(fields, messages, image_bytes + _PLAIN_BYTES * (len(messages) + 2 * images)),
        images=images,
        fields=fields,
        needs=_needs(fields, images),
        unmeasured=unmeasured,
        stored=_stored(messages) if images or has_sound else None,
    )


def _needs(fields: Fields, images: int) -> frozenset[str]:
    """What a model must be able to do for these fields."""
    needs = []
    if "tools" in fields or "functions" in fields:
        needs.append("tools")
    if images:
        needs.append("images")
    if "response_format" in fields and b'"json_schema"' in bytes(fields["response_format"]):
        needs.append("json_schema")
    return frozenset(needs) if needs else _NOTHING


def _output_limit(fields: Fields, most: int) -> int | None:
    """The caller's output limit in tokens. Two that differ are refused: the upstream would take one, we the other."""
    found = None
    for name in LIMIT_FIELDS:
        if name not in fields:
            continue
        limit = json_fields.read(fields, name, _LIMIT, f"a whole number from 1 to {most}")
        if limit is None:
            continue
        if limit > most:
            raise InvalidRequest(f"'{name}' must be a whole number from 1 to {most}.", param=name)
        if found is not None and found != limit:
            raise InvalidRequest("'max_tokens' and 'max_completion_tokens' must not differ.", param="max_tokens")
        found = limit
    return found


def _media(messages: list[_Message]) -> tuple[int, int, int, bool]:
    """The number of parts that are not text, the bytes of inline image data among them, how many may be any size, and
    whether there are answers in sound.

    Only image data is left out of the prompt's size: audio becomes tokens in proportion to its size.
    """
    count = size = unmeasured = 0
    has_sound = False
    crowd = len(messages)
    json_fields.refuse_crowd(crowd, "messages")
    for message in messages:
        if message.audio:
            has_sound = True
        if type(message.content) is not list:
            continue
        crowd += len(message.content)
        json_fields.refuse_crowd(crowd, "messages")
        for part in message.content:
            if not isinstance(part, _Part) or (part.type in _TEXT_PARTS and part.image_url is None):
                continue
            count += 1
            unmeasured += part.type not in _MEASURED
            url = part.image_url.url if isinstance(part.image_url, _Link) else part.image_url
            if url is not None and url.startswith("data:image/"):
                size += len(url)
    return count, size, unmeasured, has_sound


def _stored(messages: list[_Message]) -> str | None:
    """The first field that names what a provider keeps: a file, an answer in sound."""
    for place, message in enumerate(messages):
        if stored.in_object(message.audio, "id"):
            return f"messages[{place}].audio.id"
        if type(message.content) is not list:
            continue
        for number, part in enumerate(message.content):
            if isinstance(part, _Part) and (name := _stored_in(part)) is not None:
                return f"messages[{place}].content[{number}].{name}"
    return None


def _stored_in(part: _Part) -> str | None:
    """The same of a part."""
    if stored.in_object(part.file, "file_id"):
        return "file.file_id"
    if stored.names_any(part.file_id):
        return "file_id"
    if part.image_url is not None:
        url = part.image_url.url if isinstance(part.image_url, _Link) else part.image_url
        if stored.is_address(url):
            return "image_url"
    for name, raw in (("video_url", part.video_url), ("audio_url", part.audio_url)):
        if stored.has_address(raw):
            return name
    return None


def _prompt_size(fields: Fields, messages: list[_Message], beside: int) -> int:
    """About as many bytes of text as a model reads. Messages with more in them than their texts, and the bytes that are
    usual `beside` those, are looked at again."""
    size = sum(map(_text_size, messages))
    raw = fields["messages"]
    if len(raw) > size + size // ESCAPED_SHARE + beside:
        size = sum(map(_said_before, messages, _MESSAGE_FIELDS.decode(raw)))
    for name in _DEFINITIONS:
        if name in fields:
            size += len(bytes(fields[name]))
    return size + json_fields.schema_size(fields, "response_format") if "response_format" in fields else size


def _said_before(message: _Message, fields: Fields) -> int:
    """Bytes of a message with all that is in it: calls of tools, what was thought before, whatever is new. Media have
    counts of their own."""
    size = _text_size(message)
    if isinstance(message.content, list):
        for part, raw in zip(message.content, _PARTS.decode(fields["content"]), strict=True):
            if isinstance(part, str):
                size += _size(part)
            elif part is not None and part.type in _TEXT_PARTS and not part.text and part.image_url is None:
                size += len(bytes(raw))
    size += max(json_fields.given_size(fields.get(name)) for name in _THOUGHTS)
    return size + sum(json_fields.given_size(raw) for name, raw in fields.items() if name not in _MEASURED_FIELDS)


def _text_size(message: _Message) -> int:
    """Bytes of text in a message, and about what a chat template wraps around it."""
    content = message.content
    if isinstance(content, list):
        return TEMPLATE_BYTES + sum(_size(part.text) for part in content if isinstance(part, _Part))
    return TEMPLATE_BYTES + _size(content)


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream: `model` named, an output limit set if there is one, usage asked for when streaming."""
    fields: dict[str, Any] = {**wish.fields, "model": model}
    if output_limit is not None:
        # Only one spelling is left, so that an upstream that ignores the other one cannot run past the limit.
        for name in LIMIT_FIELDS:
            fields.pop(name, None)
        fields[limit_field] = output_limit
    if wish.stream and ask_usage:
        # Written anew even when it was asked for: twice in one object, or in other case, it could mean no to others.
        options = json_fields.plain(wish.fields.get("stream_options")) or {}
        others = {name: value for name, value in options.items() if name.casefold() != "include_usage"}
        fields["stream_options"] = {**others, "include_usage": True}
    return json_fields.join(fields)


# What comes back.


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, gc=False):
    function: _Function | None = None


class _Text(Struct, gc=False):
    """What a model produced: a `delta` or a whole `message`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None

    def size(self) -> int:
        """Bytes of UTF-8."""
        size = _size(self.content) if self.content else 0
        if self.reasoning_content or self.reasoning:
            # Servers that moved from one name to the other send the same text under both.
            size += max(_size(self.reasoning_content), _size(self.reasoning))
        if self.refusal:
            size += _size(self.refusal)
        if self.tool_calls:
            size += sum(_function_size(call.function) for call in self.tool_calls)
        if self.function_call:
            size += _function_size(self.function_call)
        return size


class _Choice(Struct, gc=False):
    index: Annotated[int, Meta(ge=0, lt=MOST_CHOICES)] = 0
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: UsageReport | None = None
    error: Any = None


# What follows the head of an event that adds text to the only choice and nothing else, as most servers write it. It has
# no escapes: so the text is as long as it looks. The second group is what OpenAI pads its events with.
_TEXT = re.compile(
    rb'"choices":\[\{"index":0,"delta":\{"content":"([^"\\\x00-\x1f]*)"\}(?:,"logprobs":null)?,"finish_reason":null\}\]'
    rb'(?:,"usage":null)?(?:,"obfuscation":"([^"\\\x00-\x1f]*)")?\}\n\n'
)
_NO_FRAME = b"\0", b"\0", b""  # which nothing has that comes: an event ends with the end of a line
_SHORT_TEXT = 256  # bytes; a longer one is not worth looking at twice
_CHOICE_LIST = json.Decoder(list[_Choice] | None)
_CHUNK = json.Decoder(_Chunk)


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's answer and name the model in it. `UpstreamFailed` when it is none."""
    model, id_prefix = label.model, label.id_prefix
    fields = json_fields.answer_fields(body)
    usage = read_usage(fields.get("usage"))
    if model is not None or id_prefix is not None:
        body = json_fields.join(renamed_answer(fields, model, id_prefix))
    return Plain(body, usage, _estimated(fields, body) if usage is None else usage.output)


def open_stream(*, wish: Wish, label: Label) -> ChatStream:
    """Begin reading a streamed answer."""
    return ChatStream(model=label.model, id_prefix=label.id_prefix, include_usage=wish.include_usage)


def _estimated(fields: Fields, body: bytes) -> int:
    """An estimate of the tokens in all choices."""
    choices = _choices(fields.get("choices"))
    if choices is None:
        return estimate_tokens(len(bytes(fields["choices"])))
    return sum(estimate_tokens(choice.message.size()) for choice in choices if choice.message) + _unread(body)


def _unread(data: bytes) -> int:
    """Tokens in what has no text that is read here. What cannot be read at all counts as a whole."""
    try:
        return unread.in_chunk(data)
    except (ValueError, RecursionError):
        return estimate_tokens(len(data))


def _choices(raw: Raw | None) -> list[_Choice] | None:
    """The choices, none when absent or null; None when they are not in the usual types."""
    try:
        return [] if raw is None else _CHOICE_LIST.decode(raw) or []
    except (ValueError, RecursionError):
        return None


def renamed_answer(fields: Fields, model: str | None, id_prefix: str | None) -> dict[str, Any]:
    """The fields with our name for the model and, when there is a prefix, an id that begins with it."""
    renamed: dict[str, Any] = dict(fields)
    if model is not None and ("model" in fields or "choices" in fields):
        renamed["model"] = model
    id = json_fields.plain(fields.get("id")) if id_prefix is not None else None
    if isinstance(id, str) and id:
        renamed["id"] = f"{id_prefix}{_bare(id)}"
    return renamed


def _bare(id: str) -> str:
    for prefix in _ID_PREFIXES:
        if id.startswith(prefix):
            return id[len(prefix) :]
    return id


def _size(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _function_size(function: _Function | None) -> int:
    return _size(function.name) + _size(function.arguments) if function is not None else 0


class ChatStream:
    """One streamed chat completion.

    Model and id are swapped without taking events apart: events of a stream begin alike up to `"choices"`, so the first
    one is taken apart, the beginning before and after the swap is remembered, and every event with the same beginning
    gets the other one. An event that begins otherwise is taken apart again. Of an event that came alone its frame, all
    but the text, is remembered in the same way.
    """

    __slots__ = (
        "_alike",
        "_ended",
        "_frame",
        "_head",
        "_id_prefix",
        "_identity",
        "_include_usage",
        "_model",
        "_open",
        "_swapped_head",
    )

    def __init__(self, *, model: str | None, id_prefix: str | None, include_usage: bool) -> None:
        self._model = model
        self._id_prefix = id_prefix
        self._include_usage = include_usage
        self._head = b"\n"  # no event begins like this, so the first one is taken apart
        self._swapped_head = b""
        self._frame = _NO_FRAME  # before the text and behind it, and what is sent on before it
        self._alike = Alike()
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self._identity: dict[str, Any] = {
            "id": f"{_ID_PREFIXES[0] if id_prefix is None else id_prefix}0",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model or "",
        }

    def __repr__(self) -> str:
        return f"ChatStream({self._identity['id']}, open={sorted(self._open)}, ended={sorted(self._ended)})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood passes, counted by size."""
        if event == DONE:
            return Step(b"", done=True)
        if not event.startswith(b"data:"):
            return self._unusual(event)
        try:
            data = event[_DATA_AT:]
            chunk = _CHUNK.decode(data)
            usage = None if chunk.usage is None else chunk.usage.counted()
            if chunk.error or not chunk.choices:
                return self._without_choices(event, _DATA_AT, usage)
            produced, finish_reason = self._count(chunk.choices, data)
            return Step(self._swap(event, _DATA_AT), produced, usage, finish_reason)
        except (ValueError, RecursionError):  # also of a name that is no UTF-8: it is looked at only when it is split
            return self._unusual(event)

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """`(what to send on, tokens produced, where they end)` of the plain text events that follow from `start`."""
        lead, tail, swapped_lead = self._frame
        text_at, size = start + len(lead), len(block) - start - len(lead) - len(tail)
        if 0 <= size <= _SHORT_TEXT and block.startswith(lead, start) and block.endswith(tail):
            text = block[text_at : text_at + size]
            if is_plain(text):
                return swapped_lead + text + tail, estimate_delta_tokens(size), len(block)
        head = self._head
        if not block.startswith(head, start):
            return b"", 0, start
        first = _TEXT.match(block, start + len(head))
        if first is None:
            return b"", 0, start
        self._open.add(0)
        text_at, text_end, end = first.start(1), first.end(first.lastindex or 1), first.end()
        swapped_lead = self._swapped_head + block[start + len(head) : text_at]
        if end == len(block):  # most events come alone
            if first.lastindex == 1:
                self._frame = block[start:text_at], block[text_end:end], swapped_lead
            return swapped_lead + block[text_at:], estimate_delta_tokens(first.end(1) - text_at), end
        texts, fillings, last = self._alike.find(block, start, first)
        if self._swapped_head == head:
            return block[start:last], estimate_deltas(texts), last
        return put_together(swapped_lead, fillings, block[text_end:end]), estimate_deltas(texts), last

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """An event that ends every choice still open; `penstock.reason` in it says to machines why we ended it."""
        indexes = sorted(self._open - self._ended or self._ended or {0})
        choices = [{"index": index, "delta": {}, "finish_reason": finish_reason} for index in indexes]
        return _event({**self._identity, "choices": choices, "penstock": {"reason": reason}})

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """The usage event a caller gets who asked for one."""
        report = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.total,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        }
        return _event({**self._identity, "choices": [], "usage": report})

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began, in OpenAI's envelope."""
        return error_event(type=type, code=code, message=message, param=param)

    def terminator(self) -> bytes:
        """The last bytes of a stream."""
        return DONE

    def _count(self, choices: Iterable[_Choice], data: bytes) -> tuple[int, str | None]:
        """Tokens in the choices of one event, and how the last of them ended once all choices that were seen have."""
        produced = 0
        finish_reason = None
        for choice in choices:
            if choice.delta is not None:
                produced += estimate_delta_tokens(choice.delta.size())
            if choice.message is not None:
                produced += estimate_delta_tokens(choice.message.size())
            if choice.finish_reason:
                finish_reason = choice.finish_reason
                self._ended.add(choice.index)
            else:
                self._open.add(choice.index)
        if finish_reason is not None and not self._open <= self._ended:
            finish_reason = None
        if not produced or len(data) > unread.LONG_EVENT:
            produced += _unread(data)
        return produced, finish_reason

    def _without_choices(self, event: bytes, data_at: int, usage: TokenUsage | None) -> Step:
        """An event that reports an error, the usage, or something of a server's own such as Azure's filter results."""
        error = json_fields.error_message(json_fields.split(event[data_at:]))
        if error is not None:
            return Step(b"", usage=usage, error=error)
        if usage is not None and not self._include_usage:
            return Step(b"", usage=usage)
        return Step(self._swap(event, data_at), usage=usage)

    def _unusual(self, event: bytes) -> Step:
        """An event that is not one line of data with a chunk in the usual types."""
        data = sse.data(event)
        if data is None:
            return Step(event)
        if data.strip() == b"[DONE]":
            return Step(b"", done=True)
        try:
            fields = json_fields.split(data)
        except (ValueError, RecursionError):
            return Step(self._swap_known(event) or event, estimate_tokens(len(data)))
        data = data.replace(b"\n", b" ")
        event = sse.with_data(event, data)
        return self._untyped(event, event.rindex(data), fields)  # the last: other lines may say the same

    def _untyped(self, event: bytes, data_at: int, fields: Fields) -> Step:
        """An event with a JSON object on one line, some of whose values may be of types we do not expect."""
        usage = read_usage(fields.get("usage"))
        choices = _choices(fields.get("choices"))
        if choices == [] or json_fields.error_message(fields) is not None:
            return self._without_choices(event, data_at, usage)
        if choices is None:
            return Step(self._swap(event, data_at), estimate_tokens(len(bytes(fields["choices"]))), usage)
        produced, finish_reason = self._count(choices, event[data_at:])
        return Step(self._swap(event, data_at), produced, usage, finish_reason)

    def _swap(self, event: bytes, data_at: int) -> bytes:
        """The event with our model and id."""
        known = self._swap_known(event)
        if known and event.find(b'"model"', len(self._head)) < 0:  # a name may come again behind the choices
            return known
        fields = json_fields.split(event[data_at:])
        renamed = renamed_answer(fields, self._model, self._id_prefix)
        self._remember(renamed)
        repeats_to = max(event.find(b'"choices"', data_at), data_at)
        old = event[data_at:repeats_to]
        new = _swapped(old, fields, renamed)
        if new:
            swapped = event[:data_at] + new + event[repeats_to:]
            if _is_plain_to_see(event, old) or (
                json_fields.split(swapped[data_at:]) == json_fields.split(json_fields.join(renamed))
            ):
                self._head, self._swapped_head = event[:repeats_to], event[:data_at] + new
                self._frame = _NO_FRAME
                return swapped
        return event[:data_at] + json_fields.join(renamed) + b"\n\n"

    def _swap_known(self, event: bytes) -> bytes:
        """The event with our model and id when it begins like the one before; empty when it does not."""
        return self._swapped_head + event[len(self._head) :] if event.startswith(self._head) else b""

    def _remember(self, renamed: dict[str, Any]) -> None:
        identity = self._identity
        for name in identity:
            value = renamed.get(name)
            if type(value) is Raw:
                value = json_fields.plain(value)  # an upstream's word for it may be no text, and ours has to be
            if value is not None and value != "":
                identity[name] = value


def error_event(*, type: str, code: str | None, message: str, param: str | None) -> bytes:
    """An error in an open stream: a data frame with OpenAI's envelope."""
    return _event({"error": {"message": message, "type": type, "code": code, "param": param}})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json_fields.join(value) + b"\n\n"


def _is_plain_to_see(event: bytes, beginning: bytes) -> bool:
    """Whether what looks like the id and the model in an event's beginning are those of the event: nothing is nested
    there, nothing quoted, and neither name comes again. The other way to know is to read the event."""
    once = event.count(b'"id"') == event.count(b'"model"') == 1
    return once and b"\\" not in event and beginning.count(b"{") == 1


def _swapped(beginning: bytes, fields: Fields, renamed: dict[str, Any]) -> bytes:
    """The beginning of an event's JSON with the first of each renamed field replaced; empty when one is missing."""
    for name, labels in _LABELS:
        value = renamed.get(name)
        if value is fields.get(name):
            continue
        old = bytes(fields.get(name, b""))
        for label in labels:
            at = beginning.find(label + old)
            if at >= 0:
                break
        # A number could be the beginning of a longer one; a string ends where it ends.
        if at < 0 or not old.startswith(b'"'):
            return b""
        at += len(label)
        beginning = beginning[:at] + json_fields.join(value) + beginning[at + len(old) :]
    return beginning
