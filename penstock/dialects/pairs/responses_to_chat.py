"""From OpenAI Responses to chat completions and back.

    instructions, input            system message, messages           `responses_items.py`
    tools, tool_choice             functions, tool_choice             `responses_tools.py`
    text, reasoning.effort         response_format, verbosity, reasoning_effort
    reasoning in the answer        a reasoning item: a summary when one was asked for, else its text

What has a meaning only where a response is kept (`store`, `previous_response_id`, `metadata`) stays here and is not
sent. Everything else that chat has no word for is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, Struct, json

from penstock.dialects import Label, Plain, Step, Wish, json_fields, response_object, sse, unread
from penstock.dialects.json_fields import plain
from penstock.dialects.pairs.responses_items import messages, sealed
from penstock.dialects.pairs.responses_tools import LOCAL_SHELL, Tool, Tools, action_of, input_of, new_call
from penstock.dialects.response_progress import Progress
from penstock.dialects.usage import TokenUsage, estimate_delta_tokens, estimate_tokens, read_usage
from penstock.errors import InvalidRequest, UpstreamFailed

PATH = "chat/completions"

_SAME = (  # fields that both have, and mean the same by
    "temperature",
    "top_p",
    "user",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
)
_TRANSLATED = frozenset(
    {"model", "input", "instructions", "stream", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls"}
    | {"text", "reasoning", "top_logprobs", "include"}
)
# Without meaning upstream: about what is kept here, about tools nobody has, or about the shape of our own stream.
_OURS = frozenset(
    {"store", "previous_response_id", "metadata", "background", "max_tool_calls", "stream_options", "client_metadata"}
)
_INCLUDED = frozenset(  # only encrypted reasoning and logprobs exist here; the rest is of tools that nobody has
    {
        "reasoning.encrypted_content",
        "message.output_text.logprobs",
        "message.input_image.image_url",
        "file_search_call.results",
        "web_search_call.action.sources",
        "web_search_call.results",
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
    }
)
_LOGPROBS = "message.output_text.logprobs"


# The request.


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream. `InvalidRequest` names a field that chat has nothing for."""
    fields = wish.fields
    _refuse_unknown(fields)
    body: dict[str, Any] = {"model": model, "messages": _messages(fields)}
    body |= {name: fields[name] for name in _SAME if _is_given(fields, name)}
    body |= _options(fields)
    tools, choice = Tools(fields).choice(fields)
    if tools:
        body["tools"] = tools
        if _is_given(fields, "parallel_tool_calls"):
            body["parallel_tool_calls"] = fields["parallel_tool_calls"]
    if choice is not None:
        body["tool_choice"] = choice
    limit = wish.output_limit if output_limit is None else output_limit
    if limit is not None:
        body[limit_field] = limit
    if wish.stream:
        body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if ask_usage else {})
    return json_fields.join(body)


def _refuse_unknown(fields: Mapping[str, Raw]) -> None:
    for name in fields:
        if name not in _TRANSLATED and name not in _OURS and name not in _SAME and _is_given(fields, name):
            if name == "truncation" and plain(fields[name]) == "disabled":
                continue
            shown = name[:50]
            raise InvalidRequest(f"'{shown}' cannot be carried to the provider of this model.", param=shown)


def _is_given(fields: Mapping[str, Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]).strip() != b"null"


def _messages(fields: Mapping[str, Raw]) -> list[dict[str, Any]]:
    instructions = plain(fields.get("instructions"))
    if instructions is not None and not isinstance(instructions, str):
        raise InvalidRequest("'instructions' must be a string.", param="instructions")
    input = plain(fields["input"])
    if input is None:  # a number beyond all bounds, or too deep, where `peek` does not look
        raise InvalidRequest("'input' cannot be read.", param="input")
    return messages(instructions, input)


def _options(fields: Mapping[str, Raw]) -> dict[str, Any]:
    """How to answer: format, verbosity, effort, log probabilities."""
    options: dict[str, Any] = {}
    text = _object(fields, "text", ("format", "verbosity"))
    format = _response_format(text.get("format"))
    if format is not None:
        options["response_format"] = format
    if text.get("verbosity") is not None:
        options["verbosity"] = text["verbosity"]
    effort = _object(fields, "reasoning", ("effort", "summary", "generate_summary")).get("effort")
    if effort is not None:
        options["reasoning_effort"] = effort
    included = plain(fields.get("include")) or []
    unknown = next((each for each in included if each not in _INCLUDED), None)
    if unknown is not None:
        raise InvalidRequest(f"'include' has '{unknown[:50]}', which is not served here.", param="include")
    top = plain(fields.get("top_logprobs"))
    if top or _LOGPROBS in included:
        options["logprobs"] = True
        options |= {"top_logprobs": top} if top else {}
    return options


def _object(fields: Mapping[str, Raw], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """An object among the fields, with nothing in it but what is `known`."""
    value = plain(fields.get(name))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{name}' must be an object.", param=name)
    unknown = next((each for each in value if each not in known and value[each] is not None), None)
    if unknown is not None:
        where = f"{name}.{unknown[:50]}"
        raise InvalidRequest(f"'{where}' cannot be carried to the provider of this model.", param=where)
    return value


def _response_format(format: Any) -> dict[str, Any] | None:
    kind = format.get("type") if isinstance(format, dict) else None
    if format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        schema = {name: value for name, value in format.items() if name != "type" and value is not None}
        return {"type": "json_schema", "json_schema": schema}
    raise InvalidRequest("'text.format' is of a type that cannot be carried here.", param="text.format")


# What comes back.


class _Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Logprobs(Struct, gc=False):
    content: list[Any] | None = None


class _Said(Struct, gc=False):
    """What a model produced: a `delta` or a whole `message`."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    annotations: list[Any] | None = None

    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Raw = Raw()
    error: Any = None


_CHUNK = json.Decoder(_Chunk)
_CHOICES = json.Decoder(list[_Choice])


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's chat completion and give it as a response. `UpstreamFailed` when it is none."""
    fields = json_fields.answer_fields(body)
    try:
        choices = _CHOICES.decode(fields.get("choices", b"[]"))
    except (ValueError, RecursionError):
        choices = []
    if not choices or choices[0].message is None:
        raise UpstreamFailed("The provider's answer has no message.", began=True)
    usage = read_usage(fields.get("usage"))
    writer = _Writer(wish, label)
    said, reason = choices[0].message, choices[0].finish_reason
    writer.add(said, choices[0].logprobs)
    writer.end(reason)
    produced = estimate_tokens(_size_of(said)) + unread.in_chunk(body) if usage is None else usage.output
    response = response_object.ended(writer.begun, writer.output(), usage, reason)
    return Plain(json_fields.join(response), usage, produced)


def open_stream(*, wish: Wish, label: Label) -> ResponseOfChat:
    """Begin reading a streamed chat completion."""
    return ResponseOfChat(wish, label)


class ResponseOfChat:
    """A streamed chat completion, given as a streamed response."""

    __slots__ = ("_failure", "_finish_reason", "_had_started", "_reason", "_started", "_usage", "_writer")

    def __init__(self, wish: Wish, label: Label) -> None:
        self._writer = _Writer(wish, label)
        self._started = False
        self._had_started = False  # before the event that was fed last
        self._usage: TokenUsage | None = None
        self._finish_reason: str | None = None
        self._reason: str | None = None
        self._failure: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"ResponseOfChat({self._writer!r}, finish_reason={self._finish_reason})"

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood is counted by size."""
        self.mark()
        return self.read(event)

    def mark(self) -> None:
        """What is read from now on may not be sent: `final_chunk` takes it back."""
        self._had_started = self._started
        self._writer.mark()

    def read(self, event: bytes) -> Step:
        """`feed`, where more than one event may have to be taken back."""
        data = sse.data(event)
        if data is None:
            return Step(event)  # a comment keeps a connection alive in any dialect
        if data.strip() == b"[DONE]":
            return Step(b"", done=True)
        try:
            chunk = _CHUNK.decode(data)
            if chunk.error or not chunk.choices:
                return self._without_choices(data, chunk)
            return self._step(chunk.choices[0], chunk.usage, data)
        except (ValueError, RecursionError):
            return Step(b"", estimate_tokens(len(data)))

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """Nothing is cut short here."""
        return b"", 0, start

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """The events that end what is open; `reason` is in the response that ends the stream, as `penstock.reason`."""
        self._reason = reason
        self._finish_reason = finish_reason
        self._started = self._had_started
        self._writer.take_back()
        return self._begin() + self._writer.end(finish_reason)

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """Nothing: the event that ends the stream carries the usage."""
        self._usage = usage
        return b""

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began. The response that failed follows as the terminator."""
        self._failure = {"code": "server_error", "message": message}
        return self._begin() + self._writer.progress.event("error", code=code, message=message, param=param)

    def terminator(self) -> bytes:
        """The event that ends the response, and before it those that end what is still open."""
        writer = self._writer
        if self._failure is not None:
            failed = {**writer.begun, "status": "failed", "error": self._failure, "output": writer.output()}
            if self._usage is not None:
                failed["usage"] = response_object.usage_object(self._usage)
            return writer.progress.event("response.failed", response=failed)
        rest = self._begin() + writer.end(self._finish_reason)
        response = response_object.ended(writer.begun, writer.output(), self._usage, self._finish_reason)
        if self._reason is not None:
            response["penstock"] = {"reason": self._reason}
        return rest + writer.progress.event(f"response.{response['status']}", response=response)

    def _begin(self) -> bytes:
        """The events that every stream begins with, once."""
        if self._started:
            return b""
        self._started = True
        event, begun = self._writer.progress.event, self._writer.begun
        return event("response.created", response=begun) + event("response.in_progress", response=begun)

    def _step(self, choice: _Choice, report: Raw, data: bytes) -> Step:
        out, produced = [self._begin()], 0
        for said in (choice.delta, choice.message):
            if said is not None:
                produced += estimate_delta_tokens(_size_of(said))
                out.append(self._writer.add(said, choice.logprobs))
        if not produced or len(data) > unread.LONG_EVENT:
            produced += unread.in_chunk(data)
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            out.append(self._writer.end(choice.finish_reason))
        return Step(b"".join(out), produced, self._count(report), choice.finish_reason or None)

    def _without_choices(self, data: bytes, chunk: _Chunk) -> Step:
        """A chunk with the usage, an error, or something of a server's own, which is not passed on."""
        error = json_fields.error_message(json_fields.split(data))
        return Step(b"" if error else self._begin(), usage=self._count(chunk.usage), error=error)

    def _count(self, report: Raw) -> TokenUsage | None:
        usage = read_usage(report) if report else None
        self._usage = usage or self._usage
        return usage


class _Writer:
    """Writes a response out of what a model says: one item after another, calls side by side."""

    __slots__ = (
        "_asks_summary",
        "_calls",
        "_details",
        "_items",
        "_label",
        "_marked",
        "_speaking",
        "_tools",
        "begun",
        "progress",
    )

    def __init__(self, wish: Wish, label: Label) -> None:
        self.progress = Progress()
        self._tools = Tools(wish.fields)
        self.begun = response_object.envelope(wish.fields, label) | {"tools": self._tools.given}
        self._label = label
        reasoning = plain(wish.fields.get("reasoning"))
        given = reasoning if isinstance(reasoning, dict) else {}
        self._asks_summary = bool(given.get("summary") or given.get("generate_summary"))
        self._items = 0
        self._speaking: tuple[str, int, int] | None = None  # the kind of part that is open, its item and place
        self._calls: dict[int, tuple[int, Tool, list[str]]] = {}  # by chat's index: item, tool, arguments
        self._details: list[Any] = []
        self._marked: tuple[int, tuple[str, int, int] | None, list[Any]] = (0, None, self._details)

    def __repr__(self) -> str:
        return f"_Writer({self.begun['id']}, {self.progress!r})"

    def output(self) -> list[Any]:
        return self.progress.output()

    def mark(self) -> None:
        """What happens from now on may be taken back."""
        self.progress.mark()
        self._marked = (self._items, self._speaking, self._details)

    def take_back(self) -> None:
        """Be as at the last `mark`."""
        self.progress.take_back()
        self._items, self._speaking, self._details = self._marked

    def add(self, said: _Said, logprobs: _Logprobs | None) -> bytes:
        """The events of some more that the model said."""
        out = []
        if said.reasoning_details:
            self.progress.extend(self._details, said.reasoning_details)
        if said.thought() or said.reasoning_details:
            kind = "summary_text" if self._asks_summary else "reasoning_text"
            out.append(self._speak(kind, said.thought()))
        if said.content:
            probabilities = logprobs.content or [] if logprobs is not None else []
            out.append(self._speak("output_text", said.content, logprobs=probabilities))
        for annotation in said.annotations or ():
            out.append(self._annotate(annotation))
        if said.refusal:
            out.append(self._speak("refusal", said.refusal))
        for place, call in enumerate(said.tool_calls or ()):
            out.append(self._call(place if call.index is None else call.index, call))
        return b"".join(out)

    def end(self, finish_reason: str | None) -> bytes:
        """The events that end everything that is open."""
        status = response_object.ENDS.get(finish_reason or "", ("completed", None))[0]
        out = [self._fall_silent(status)]
        for index, tool, arguments in self._calls.values():
            if self.progress.is_open(index):
                out.append(self._finish_call(index, tool, "".join(arguments)))
                out.append(self.progress.end(index, status))
        return b"".join(out)

    def _speak(self, kind: str, text: str, **more: Any) -> bytes:
        """Text of a kind; an item of that kind is opened when none is."""
        out = []
        if self._speaking is None or not self._continues(kind):
            out.append(self._fall_silent("completed"))
            index, event = self.progress.begin(self._new_item(kind))
            place, part = self.progress.begin_part(index, _new_part(kind))
            out += [event, part]
            self._speaking = kind, index, place
        elif self._speaking[0] != kind:  # a refusal after text, in one message
            index = self._speaking[1]
            place, part = self.progress.begin_part(index, _new_part(kind))
            out.append(part)
            self._speaking = kind, index, place
        _, index, place = self._speaking
        if more.get("logprobs"):
            self.progress.add_logprobs(index, place, more["logprobs"])
        if text:
            out.append(self.progress.grow_part(index, place, kind, text, **more))
        return b"".join(out)

    def _continues(self, kind: str) -> bool:
        """Whether the open item is one that text of this kind belongs to."""
        spoken = {"output_text", "refusal"}
        return self._speaking is not None and (self._speaking[0] == kind or {self._speaking[0], kind} == spoken)

    def _new_item(self, kind: str) -> dict[str, Any]:
        if kind in ("output_text", "refusal"):
            return {
                "id": self._id("msg"),
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
        return {"id": self._id("rs"), "type": "reasoning", "summary": [], "encrypted_content": None}

    def _fall_silent(self, status: str) -> bytes:
        """The events that end the item that is being spoken."""
        if self._speaking is None:
            return b""
        kind, index, _ = self._speaking
        self._speaking = None
        if kind in ("summary_text", "reasoning_text") and self._details:
            self.progress.change(index, encrypted_content=sealed(self._details))
            self._details = []
        return self.progress.end(index, status)

    def _annotate(self, annotation: Any) -> bytes:
        cited = annotation.get("url_citation") if isinstance(annotation, dict) else None
        if not isinstance(cited, dict):
            return b""
        out = self._speak("output_text", "")
        if self._speaking is None:
            return out
        _, index, place = self._speaking
        citation = {"start_index": 0, "end_index": 0, "title": "", "url": "", **cited, "type": "url_citation"}
        return out + self.progress.annotate(index, place, citation)

    def _call(self, place: int, call: _Call) -> bytes:
        """Some more of a call. A function's arguments pass as they come, other tools' input when it is whole."""
        function = call.function or _Function()
        out = []
        if place not in self._calls:
            out.append(self._fall_silent("completed"))
            tool = self._tools.named(function.name or "")
            id = self._id(tool.prefix)
            index, event = self.progress.begin(new_call(tool, id=id, call_id=call.id or f"call_{id}"))
            self.progress.put(self._calls, place, (index, tool, []))
            out.append(event)
        index, tool, arguments = self._calls[place]
        if function.arguments and self.progress.is_open(index):
            self.progress.extend(arguments, [function.arguments])
            if tool.kind == "function":
                out.append(self.progress.grow_call(index, function.arguments))
        return b"".join(out)

    def _finish_call(self, index: int, tool: Tool, arguments: str) -> bytes:
        if tool.kind == "custom":
            text = input_of(arguments)
            return self.progress.grow_call(index, text) if text else b""
        if tool.kind == LOCAL_SHELL:
            self.progress.change(index, action=action_of(arguments), status="completed")
        return b""

    def _id(self, prefix: str) -> str:
        self._items += 1
        return response_object.item_id(prefix, self._label, self._items)


def _new_part(kind: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": ""}
    extras: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": "", **extras}


def _size_of(said: _Said) -> int:
    """Bytes of UTF-8 that a model produced."""
    texts = [said.content, said.refusal, max(said.reasoning_content or "", said.reasoning or "", key=len)]
    for call in said.tool_calls or ():
        if call.function is not None:
            texts += [call.function.name, call.function.arguments]
    return sum(len(text.encode(errors="surrogatepass")) for text in texts if text)
