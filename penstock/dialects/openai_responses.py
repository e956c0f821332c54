"""OpenAI Responses: requests, plain answers and streams.

Bytes pass through, as in `openai_chat`. Read are the model, the output limit, whether to stream, what the input is made
of and what would have an upstream remember anything; replaced are the model's name, the response's id, the output limit
and all that concerns memory. Conversations are kept here and not by an upstream (decision 0010): nothing is stored
there, no id of a response, an item, a conversation or a prompt stored there is taken from a caller, and what a caller
continues has been put into the input before it comes here (`penstock/relay/memory.py`). So nobody can continue what
another account began at the same key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json

from penstock.dialects import Label, Plain, Step, Wish, json_fields, response_object, sse, stored, unread
from penstock.dialects.json_fields import Fields
from penstock.dialects.openai_chat import ESCAPED_SHARE
from penstock.dialects.response_progress import Progress
from penstock.dialects.usage import Count, TokenUsage, count_of, estimate_delta_tokens, estimate_tokens
from penstock.errors import InvalidRequest, UpstreamFailed

NAME = "openai_responses"
PATH = "responses"
FORWARDED: tuple[bytes, ...] = (b"openai-beta",)

LIMIT_FIELD = "max_output_tokens"
ENCRYPTED = "reasoning.encrypted_content"
SEAL = (
    "penstock.1."  # begins reasoning that was sealed here (`pairs/responses_items.py`), and that no upstream can read
)
TEMPLATE_BYTES = 16  # as in openai_chat: what a template wraps around a message
# What an upstream would look up among things that all callers of its key share, and why we do not let it.
_SHARED = {
    "conversation": "conversations are not kept here; send 'previous_response_id', or the items",
    "prompt": "prompts kept at a provider are not served; send 'instructions' and 'input'",
}
_READ = (
    "model",
    "input",
    "stream",
    LIMIT_FIELD,
    "store",
    "previous_response_id",
    "background",
    "include",
    *_SHARED,
)
# Fields under other names, by which some servers would be told other than what we read.
_MEANT = json_fields.Meant(
    _READ,
    {
        "max_tokens": LIMIT_FIELD,
        "max_completion_tokens": LIMIT_FIELD,
        "max_new_tokens": LIMIT_FIELD,
        "n_predict": LIMIT_FIELD,
        "messages": "input",
    },
)
_MEASURED = frozenset({"input_image", "input_audio", "computer_screenshot"})  # kinds of parts; others may be anything
_PLAIN_BYTES = 64  # what JSON has around the texts of an item beside the bytes reckoned for a template
# Of an item: texts that are measured one by one, what it is called, and an image that was made before.
_MEASURED_FIELDS = frozenset({"type", "id", "call_id", "status", "role", "content", "summary", "result", "output"}) | {
    "arguments",
    "input",
}
_MEANT_IN_ITEMS = json_fields.Meant(("type", "id"))
_TEXT_PARTS = frozenset({"input_text", "output_text", "refusal", "summary_text", "reasoning_text", "text"})
# Items that make sense without an id. With one, an upstream that stores nothing looks for what it never kept.
_WITHOUT_ID = frozenset(
    {
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "local_shell_call_output",
    }
)


# The request.

_NOTHING = Raw()  # a field that is not there


class _Part(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    image_url: str | None = None
    file_id: Raw = _NOTHING
    file_url: Raw = _NOTHING


class _Item(Struct, gc=False):
    type: str | None = None
    role: str | None = None
    content: str | list[_Part | str] | None = None
    output: Any = None
    arguments: str | None = None
    input: str | None = None
    summary: list[_Part] | None = None
    result: Raw = _NOTHING


class _Format(Struct, gc=False):
    type: str | None = None


class _Tool(Struct, gc=False):
    """A tool; what it has beside its type may name what a provider keeps."""

    type: str | None = None
    vector_store_ids: Raw = _NOTHING
    container: Raw = _NOTHING
    environment: Raw = _NOTHING
    input_image_mask: Raw = _NOTHING
    skills: Raw = _NOTHING


class _Text(Struct, gc=False):
    format: _Format | None = None


_INPUT_SHAPE = "a string or a list of items"
_INPUT = json.Decoder(str | list[_Item])
_FLAG = json.Decoder(bool | None)
_STRING = json.Decoder(str | None)
_LIMIT = json.Decoder(Annotated[int, Meta(ge=1)] | None)
_TOOLS = json.Decoder(list[_Tool] | None)
_TEXT_OPTIONS = json.Decoder(_Text | None)
_STRINGS = json.Decoder(list[str] | None)
_RAW_ITEMS = json.Decoder(list[Fields])
_PARTS = json.Decoder(list[_Part | str])


def peek(body: bytes, *, max_output_tokens: int) -> Wish:
    """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    json_fields.refuse_lookalikes(fields, _MEANT)
    json_fields.refuse_many(fields)
    _refuse_shared(fields)
    items = json_fields.read(fields, "input", _INPUT, _INPUT_SHAPE)
    if items is None:
        raise InvalidRequest("The 'input' field is required.", param="input")
    tools = json_fields.read(fields, "tools", _TOOLS, "a list of objects, each with a string 'type'") or []
    images, image_bytes, unmeasured = _media([] if isinstance(items, str) else items)
    return Wish(
        model=model,
        stream=json_fields.read(fields, "stream", _FLAG, "a boolean") or False,
        output_limit=_output_limit(fields, max_output_tokens),
        choices=1,
        include_usage=True,
        input_bytes=len(body) - image_bytes,
        text_bytes=_text_size(fields, items, image_bytes),
        images=images,
        fields=fields,
        needs=_needs(fields, tools, images),
        unmeasured=unmeasured,
        stored=_stored_in_input([] if isinstance(items, str) else items) or _stored_in_tools(tools),
    )


def _refuse_shared(fields: Fields) -> None:
    """`InvalidRequest` for what an upstream would keep, or look up, for whoever has its key."""
    if json_fields.read(fields, "background", _FLAG, "a boolean"):
        raise InvalidRequest(
            "'background' responses are not served; stream, or wait for the answer.", param="background"
        )
    for name, why in _SHARED.items():
        if json_fields.plain(fields.get(name)) is not None:
            raise InvalidRequest(f"'{name}' is not served: {why}.", param=name)
    json_fields.read(fields, "store", _FLAG, "a boolean")
    json_fields.read(fields, "previous_response_id", _STRING, "a string")
    json_fields.read(fields, "include", _STRINGS, "a list of strings")


def _output_limit(fields: Fields, most: int) -> int | None:
    limit = json_fields.read(fields, LIMIT_FIELD, _LIMIT, f"a whole number from 1 to {most}")
    if limit is not None and limit > most:
        raise InvalidRequest(f"'{LIMIT_FIELD}' must be a whole number from 1 to {most}.", param=LIMIT_FIELD)
    return limit


def _media(items: list[_Item]) -> tuple[int, int, int]:
    """The number of parts that are not text, bytes of inline image data among them, and how many may be of any size."""
    count = size = unmeasured = 0
    crowd = len(items)
    json_fields.refuse_crowd(crowd, "input")
    for place, item in enumerate(items):
        crowd += sum(len(parts) for parts in (item.content, item.output, item.summary) if isinstance(parts, list))
        json_fields.refuse_crowd(crowd, "input")
        if item.type == "item_reference" or (item.type is None and item.role is None):
            raise InvalidRequest(
                f"'input[{place}]' names an item that is not kept here, or has no type.", param=f"input[{place}]"
            )
        for part in _parts(item):
            if isinstance(part, str) or (part.type in _TEXT_PARTS and part.image_url is None):
                continue
            count += 1
            unmeasured += part.type not in _MEASURED
            if part.image_url is not None and part.image_url.startswith("data:image/"):
                size += len(part.image_url)
    return count, size, unmeasured


def _parts(item: _Item) -> list[_Part | str]:
    """The parts of a message, or of a tool's output."""
    content = item.content if isinstance(item.content, list) else []
    if not isinstance(item.output, list):
        return content
    try:
        output = _PARTS.decode(json.encode(item.output))
        return content + [part for part in output if isinstance(part, str) or part.type is not None]
    except ValueError:
        return content


def _stored_in_input(items: list[_Item]) -> str | None:
    """The first field of the input that names what a provider keeps: a file, or an image that it made before."""
    for place, item in enumerate(items):
        if item.type == "image_generation_call" and not stored.names_any(item.result):
            return f"input[{place}].id"
        if isinstance(item.output, dict) and item.output.get("file_id"):
            return f"input[{place}].output.file_id"
        for number, part in enumerate(item.content if isinstance(item.content, list) else ()):
            if isinstance(part, _Part) and (name := _stored_in_part(part)) is not None:
                return f"input[{place}].content[{number}].{name}"
        for number, shown in enumerate(item.output if isinstance(item.output, list) else ()):
            if isinstance(shown, dict) and (name := _stored_in_output(shown)) is not None:
                return f"input[{place}].output[{number}].{name}"
    return None


def _stored_in_part(part: _Part) -> str | None:
    """The same of a part of a message."""
    if stored.names_any(part.file_id):
        return "file_id"
    if stored.is_address(part.image_url):
        return "image_url"
    return "file_url" if stored.has_address(part.file_url) else None


def _stored_in_output(part: dict[str, Any]) -> str | None:
    """The same of a part of what a tool has put out."""
    if part.get("file_id"):
        return "file_id"
    return next((name for name in ("image_url", "file_url") if stored.is_address(part.get(name))), None)


def _stored_in_tools(tools: list[_Tool]) -> str | None:
    """The same of the tools that a provider runs. A caller's own have none of these fields."""
    for place, tool in enumerate(tools):
        if tool.container and bytes(tool.container).startswith(b'"'):
            return f"tools[{place}].container"
        if stored.names_any(tool.vector_store_ids):
            return f"tools[{place}].vector_store_ids"
        for name in ("container", "environment", "input_image_mask", "skills"):
            if stored.id_in(getattr(tool, name)):
                return f"tools[{place}].{name}"
    return None


def _text_size(fields: Fields, items: str | list[_Item], image_bytes: int) -> int:
    """Bytes of text that a model reads: input, instructions, tools, format; and about what a template wraps around
    them. Items with more in them than texts are looked at again."""
    size = sum(len(bytes(fields[name])) for name in ("instructions", "tools") if name in fields)
    size += json_fields.schema_size(fields, "text")
    if isinstance(items, str):
        return size + TEMPLATE_BYTES + _size(items)
    texts = sum(map(_item_size, items))
    raw = fields["input"]
    if len(raw) > texts + texts // ESCAPED_SHARE + _PLAIN_BYTES * len(items) + image_bytes:
        texts = sum(map(_whole_item_size, items, _RAW_ITEMS.decode(raw)))
    return size + texts


def _item_size(item: _Item) -> int:
    """Bytes of text in an item."""
    size = TEMPLATE_BYTES + _size(item.arguments) + _size(item.input)
    size += sum(_size(text) for text in (item.content, item.output) if isinstance(text, str))
    size += sum(_size(part if isinstance(part, str) else part.text) for part in _parts(item))
    return size + sum(_size(part.text) for part in item.summary or ())


def _whole_item_size(item: _Item, fields: Fields) -> int:
    """Bytes of an item with all that is in it: actions, patches, outputs that are objects, whatever is new. Media have
    counts of their own."""
    size = _item_size(item)
    if item.type == "reasoning":  # what it has encrypted is the same thought
        return max(size, TEMPLATE_BYTES + json_fields.given_size(fields.get("encrypted_content")))
    size += sum(json_fields.given_size(raw) for name, raw in fields.items() if name not in _MEASURED_FIELDS)
    if isinstance(item.output, dict) and item.output.get("type") not in _MEASURED:
        size += len(bytes(fields["output"]))
    content = fields.get("content", _NOTHING)
    for parts in (item.output, json_fields.plain(content) if b'"refusal"' in bytes(content) else None):
        if isinstance(parts, list):
            size += sum(len(json.encode(part)) for part in parts if _has_other_text(part))
    return size


def _has_other_text(part: Any) -> bool:
    """Whether a part has its text elsewhere: a refusal, and what a shell put out, which has no type."""
    return isinstance(part, dict) and "text" not in part and part.get("type") in (None, "refusal")


def _needs(fields: Fields, tools: list[_Tool], images: int) -> frozenset[str]:
    """What a model must be able to do to serve this."""
    needs = set()
    if tools:
        needs.add("tools")
    if images:
        needs.add("images")
    text = json_fields.read(fields, "text", _TEXT_OPTIONS, "an object whose 'format' is an object")
    if text is not None and text.format is not None and text.format.type == "json_schema":
        needs.add("json_schema")
    return frozenset(needs)


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream: `model` named, an output limit set if there is one, and nothing to be remembered.

    Usage comes unasked for, and the limit has one name only: `limit_field` and `ask_usage` are for chat.
    """
    fields: dict[str, Any] = {**wish.fields, "model": model, "store": False}
    fields.pop("previous_response_id", None)  # what it names is in the input by now
    if output_limit is not None:
        fields[LIMIT_FIELD] = output_limit
    fields["input"] = _stateless(wish.fields["input"])
    if is_kept(wish.fields) and json_fields.plain(wish.fields.get("reasoning")):
        included = json_fields.plain(wish.fields.get("include")) or []
        if ENCRYPTED not in included:  # or the next turn could not have the thoughts of this one
            fields["include"] = [*included, ENCRYPTED]
    return json_fields.join(fields)


def is_kept(fields: Mapping[str, Raw]) -> bool:
    """Whether a request asks for its response to be kept, which is so unless it says otherwise."""
    return json_fields.plain(fields.get("store")) is not False


def _stateless(input: Raw) -> Raw | list[Fields]:
    """The input for an upstream that stores nothing: without ids that it would look up, and without reasoning that it
    cannot read. Items are written anew, so that a type that was given twice is for the upstream what it is here."""
    if not bytes(input).lstrip().startswith(b"["):
        return input
    try:
        given = _RAW_ITEMS.decode(input)
    except RecursionError:  # `peek` is called from less deep
        raise InvalidRequest("The request body is nested too deep.", param="input") from None
    items = []
    for item in given:
        json_fields.refuse_lookalikes(item, _MEANT_IN_ITEMS)
        kind = json_fields.plain(item.get("type")) or "message"
        if kind == "reasoning" and not _is_readable(item):
            continue
        if kind in _WITHOUT_ID:
            item.pop("id", None)
        items.append(item)
    return items


def _is_readable(reasoning: Fields) -> bool:
    """Whether reasoning is more than the id of something that was never stored, or sealed here."""
    encrypted = json_fields.plain(reasoning.get("encrypted_content"))
    if isinstance(encrypted, str):
        return not encrypted.startswith(SEAL)
    return bool(json_fields.plain(reasoning.get("content")))


# What comes back.


class _InputDetails(Struct, gc=False):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class _OutputDetails(Struct, gc=False):
    reasoning_tokens: Count | None = None


class _Usage(Struct, gc=False):
    input_tokens: Count
    output_tokens: Count
    total_tokens: Count | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


_USAGE = json.Decoder(_Usage)


def read_usage(raw: Raw | None) -> TokenUsage | None:
    """The usage of a response; None when there is none, or it does not say how many tokens went in and came out."""
    if raw is None:
        return None
    try:
        report: _Usage | None = _USAGE.decode(raw)
    except (ValueError, RecursionError):
        report = _salvaged(json_fields.plain(raw))
    if report is None:
        return None
    before, after = report.input_tokens_details, report.output_tokens_details
    cached = (before.cached_tokens if before else None) or 0
    written = (before.cache_write_tokens if before else None) or 0
    reasoning = (after.reasoning_tokens if after else None) or 0
    return TokenUsage(
        input=report.input_tokens,
        output=report.output_tokens,
        cached_input=min(cached, report.input_tokens),
        reasoning=min(reasoning, report.output_tokens),
        total=report.input_tokens + report.output_tokens if report.total_tokens is None else report.total_tokens,
        cache_write=min(written, max(report.input_tokens - cached, 0)),
    )


def _salvaged(value: Any) -> _Usage | None:
    """The counts of a report that has something else among them."""
    report = value if isinstance(value, dict) else {}
    before, after = report.get("input_tokens_details"), report.get("output_tokens_details")
    before, after = (each if isinstance(each, dict) else {} for each in (before, after))
    input, output = count_of(report.get("input_tokens")), count_of(report.get("output_tokens"))
    if input is None or output is None:
        return None
    return _Usage(
        input,
        output,
        count_of(report.get("total_tokens")),
        _InputDetails(count_of(before.get("cached_tokens")), count_of(before.get("cache_write_tokens"))),
        _OutputDetails(count_of(after.get("reasoning_tokens"))),
    )


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's answer and put our names in it. `UpstreamFailed` when it is none, or says that it failed."""
    fields = json_fields.answer_fields(body)
    if "output" not in fields:
        raise UpstreamFailed("The provider's answer has no output.", began=True)
    if json_fields.plain(fields.get("status")) == "failed":
        raise UpstreamFailed(json_fields.error_message(fields) or "The provider failed.", began=True)
    usage = read_usage(fields.get("usage"))
    produced = estimate_tokens(len(bytes(fields["output"]))) if usage is None else usage.output
    return Plain(json_fields.join(_ours(fields, wish, label)), usage, produced)


def open_stream(*, wish: Wish, label: Label) -> ResponseStream:
    """Begin reading a streamed answer."""
    return ResponseStream(wish, label)


def _ours(response: Mapping[str, Any], wish: Wish, label: Label) -> dict[str, Any]:
    """An upstream's response under our id and name, and with what we remember in place of what it does."""
    named = {"id": response_object.response_id(label)}
    if label.model is not None:
        named["model"] = label.model
    memory = {"store": is_kept(wish.fields), "previous_response_id": wish.fields.get("previous_response_id")}
    return {**response, **named, **memory}


def _finish_reason(response: Mapping[str, Raw]) -> str:
    """How a response ended, in the words of a chat completion."""
    details = json_fields.plain(response.get("incomplete_details"))
    reason = details.get("reason") if isinstance(details, dict) else None
    if json_fields.plain(response.get("status")) != "incomplete" and reason is None:
        return "stop"
    return "content_filter" if reason == "content_filter" else "length"


class _Event(Struct, gc=False):
    type: str = ""
    sequence_number: int | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    item_id: Any = None
    delta: Any = None
    item: Raw = _NOTHING
    part: Raw = _NOTHING
    response: Raw = _NOTHING


class _Done(Struct, gc=False):
    """An item that is done."""

    type: str | None = None
    id: Any = None
    call_id: Any = None


_EVENT = json.Decoder(_Event)
_ITEM = json.Decoder(_Done)
_OBJECT = json.Decoder(dict[str, Any])
_ENDS = frozenset({"response.completed", "response.incomplete"})
_ENDED_BADLY = frozenset({"response.failed", "error"})
_LONGEST_CODE = 64


class ResponseStream:
    """One streamed response. Events pass as they came but for those that carry the response, which get our names.

    The event that ends a response is its terminator: it is kept back until what it cost is written down.
    """

    __slots__ = ("_counted", "_failure", "_label", "_last", "_progress", "_reason", "_response", "_usage", "_wish")

    def __init__(self, wish: Wish, label: Label) -> None:
        self._wish = wish
        self._label = label
        self._progress = Progress()
        self._counted: set[int | str | None] = set()  # items whose deltas have been counted, by place or by name
        self._response: dict[str, Any] | None = None  # as it was last seen
        self._last: tuple[str, dict[str, Any]] | None = None  # the upstream's own end: the event's fields
        self._usage: TokenUsage | None = None
        self._reason: str | None = None  # why we ended it
        self._failure: dict[str, Any] = {"code": "server_error", "message": "The response failed."}

    def __repr__(self) -> str:
        return f"ResponseStream({response_object.response_id(self._label)}, {self._progress!r})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood passes, counted by size."""
        data = sse.data(event)
        if data is None:
            return Step(event)
        if data.strip() == b"[DONE]":
            return Step(b"", done=True)
        try:
            seen = _EVENT.decode(data)
            if seen.type in _ENDED_BADLY or not seen.type:
                return self._failed(event, json_fields.split(data))
            self._progress.mark()
            self._progress.next_number = max(self._progress.next_number, (seen.sequence_number or 0) + 1)
            if seen.response:
                return self._about_response(event, seen, json_fields.split(data))
            return Step(event, self._about_item(seen))
        except (ValueError, RecursionError):
            return Step(event, estimate_tokens(len(data)))

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """Nothing is cut short here."""
        return b"", 0, start

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """The events that end what is open; `reason` is in the response that ends the stream, as `penstock.reason`."""
        self._reason = reason
        self._progress.take_back()
        return self._progress.end_all("incomplete")

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """Nothing: the event that ends the stream carries the usage."""
        self._usage = usage
        return b""

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began. The response that failed follows as the terminator."""
        self._failure["message"] = message
        self._last = None
        self._reason = None
        return self._progress.event("error", code=code, message=message, param=param)

    def terminator(self) -> bytes:
        """The event that ends the response: the upstream's own, or ours where we ended it."""
        if self._last is not None:
            type, fields = self._last
            response = fields["response"]
            if json_fields.plain(response.get("usage")) is None and self._usage is not None:
                response["usage"] = response_object.usage_object(self._usage)
            return b"event: " + type.encode() + b"\ndata: " + json_fields.join(fields) + b"\n\n"
        response = {**self._begun(), "output": self._progress.output()}
        if self._usage is not None:
            response["usage"] = response_object.usage_object(self._usage)
        if self._reason is None:
            return self._progress.event(
                "response.failed", response={**response, "status": "failed", "error": self._failure}
            )
        details = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return self._progress.event(
            "response.incomplete", response={**response, **details, "penstock": {"reason": self._reason}}
        )

    def _begun(self) -> dict[str, Any]:
        return self._response or response_object.envelope(self._wish.fields, self._label)

    def _about_response(self, event: bytes, seen: _Event, fields: Fields) -> Step:
        """An event that carries the whole response."""
        upstreams = json_fields.split(fields["response"])
        response = _ours(upstreams, self._wish, self._label)
        usage = read_usage(upstreams.get("usage"))
        self._usage = usage or self._usage
        renamed = {**fields, "response": response}
        if seen.type in _ENDS:
            self._last = seen.type, renamed
            return Step(b"", usage=usage, finish_reason=_finish_reason(upstreams), done=True)
        self._response = response
        return Step(sse.with_data(event, json_fields.join(renamed)), usage=usage)

    def _about_item(self, seen: _Event) -> int:
        """Tokens in an event about an item of the output; `Progress` is told of it. ValueError for an item that is done
        and cannot be read."""
        done = _ITEM.decode(seen.item) if seen.type == "response.output_item.done" else None
        name = seen.item_id if done is None else done.id or done.call_id
        name = name if isinstance(name, str) and name else None
        index = self._place(seen.type, name) if seen.output_index is None else seen.output_index
        place = seen.summary_index if seen.content_index is None else seen.content_index
        delta = seen.delta if isinstance(seen.delta, str) else None
        if index is not None:
            self._progress.saw(seen.type, index, place or 0, delta, seen.part or seen.item)
        if seen.type.endswith(".delta"):
            self._counted.add(name if index is None else index)
            size = len(json.encode(seen.delta)) if delta is None and seen.delta else _size(delta)
            return estimate_delta_tokens(size)
        if seen.type == "response.output_item.added" and not self._progress.has_room(len(bytes(seen.item))):
            return estimate_tokens(len(bytes(seen.item)))
        if done is not None and self._counted.isdisjoint((index, name)):
            return estimate_tokens(unread.in_item(_OBJECT.decode(seen.item)))
        return 0

    def _place(self, type: str, name: str | None) -> int | None:
        """The place of the item that an event without one is about. None when no item of that name is open."""
        if type == "response.output_item.added":
            return self._progress.next_index
        index = self._progress.place_of(name)
        return self._progress.next_index if index is None and type == "response.output_item.done" else index

    def _failed(self, event: bytes, fields: Fields) -> Step:
        """An event by which the upstream says that it failed; or one that has no type at all."""
        response = json_fields.plain(fields.get("response"))
        error = response.get("error") if isinstance(response, dict) else None
        if "type" not in fields and "error" not in fields:
            return Step(event, estimate_tokens(len(event)))
        error = error or json_fields.plain(fields.get("error"))
        error = error or {name: json_fields.plain(fields.get(name)) for name in ("code", "message")}
        code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, error)
        if isinstance(code, str) and code.isidentifier() and len(code) <= _LONGEST_CODE:
            self._failure["code"] = code
        words = message if isinstance(message, str) and message else "The provider reported an error."
        upstreams = json_fields.split(fields["response"]) if isinstance(response, dict) else {}
        return Step(b"", usage=read_usage(upstreams.get("usage")), error=words)


def _size(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
