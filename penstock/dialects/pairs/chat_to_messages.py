"""A chat caller at a Messages upstream: the request, from OpenAI's words into Anthropic's.

What the Messages API cannot carry is `InvalidRequest` naming the field, unless its value means that nothing is asked
(`n` of 1, a penalty of 0). Values pass as they came: schemas, arguments and image data are not taken apart. What comes
back is `messages_as_chat.py`. Which model is asked, and whether there is money, is decided elsewhere.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NoReturn

from msgspec import Meta, Raw, Struct, json

from penstock.dialects import Wish, json_fields
from penstock.dialects.pairs.messages_as_chat import answer, open_stream
from penstock.errors import InvalidRequest

__all__ = ["PATH", "answer", "open_stream", "request"]

PATH = "messages"
# A Messages request must name a limit, a chat request need not. Every model on sale since Claude 4 goes this far; the
# caller's money ends a stream sooner.
DEFAULT_LIMIT = 32_000
LEAST_BUDGET = 1_024  # the API's own least number of thinking tokens
BUDGETS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "xhigh": 32_768, "max": 32_768}
EFFORTS = {"minimal": "low"}  # the one word for it that Messages does not have
# Models that think within a budget of tokens; all that came later decide by themselves, led by an effort, and refuse a
# budget. The list is of the past and does not grow.
_THINKS_BY_BUDGET = re.compile(
    r"claude-(?:v?[123]\b|instant|(?:opus|sonnet|haiku)-4(?:$|@|[-.](?:[015](?!\d)|20\d{6})))"
)
_IMAGE = re.compile(r"data:(image/(?:jpeg|png|gif|webp));base64,")
_TOOL_ID = re.compile(r"[^a-zA-Z0-9_-]")  # what an id of a tool call must not have over there
_EPHEMERAL = {"type": "ephemeral"}
_NOTHING = Raw()

# Fields that say nothing about the answer: hints for speed, and marks in the provider's own books.
_HARMLESS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
# Fields that Messages cannot carry, with the values that ask for nothing.
_OFF: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default", "standard"),
    "verbosity": ("medium",),
}
_CARRIED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "reasoning_effort",
        "thinking",
        "cache_control",
        "user",
        "safety_identifier",
    }
)


class _Link(Struct, gc=False):
    url: str


class _File(Struct, gc=False):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _Part(Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Link | str | None = None
    file: _File | None = None
    cache_control: Raw = Raw()
    prompt_cache_breakpoint: Raw = Raw()


class _Function(Struct, gc=False):
    name: str
    arguments: str = ""


class _ToolCall(Struct, gc=False):
    id: str = ""
    type: str = "function"
    function: _Function | None = None


class _Reasoning(Struct, gc=False):
    type: str = ""
    text: str | None = None
    signature: str | None = None
    data: str | None = None


class _Message(Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: Raw = Raw()
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    tool_call_id: str | None = None
    reasoning_details: list[_Reasoning] | None = None
    cache_control: Raw = Raw()


class _Definition(Struct, gc=False):
    name: str
    description: str | None = None
    parameters: dict[str, Raw] | None = None
    strict: bool | None = None


class _Tool(Struct, gc=False):
    type: str = "function"
    function: _Definition | None = None
    cache_control: Raw = Raw()


class _Named(Struct, gc=False):
    name: str


class _Allowed(Struct, gc=False):
    tools: list[_Tool]
    mode: str = "auto"


class _Choice(Struct, gc=False):
    type: str = ""
    function: _Named | None = None
    allowed_tools: _Allowed | None = None


class _Schema(Struct, gc=False):
    schema: Raw = Raw()


class _Format(Struct, gc=False):
    type: str
    json_schema: _Schema | None = None


_MESSAGES = json.Decoder(list[_Message])
_TOOLS = json.Decoder(list[_Tool] | None)
_FUNCTIONS = json.Decoder(list[_Definition] | None)
_CHOICE = json.Decoder(str | _Choice | None)
_CALL = json.Decoder(str | _Named | None)
_FORMAT = json.Decoder(_Format | None)
_FLAG = json.Decoder(bool | None)
_TEXT = json.Decoder(str | None)
_STOP = json.Decoder(str | list[str] | None)
_TEMPERATURE = json.Decoder(Annotated[float, Meta(ge=0, le=2)] | None)
_SHARE = json.Decoder(Annotated[float, Meta(ge=0, le=1)] | None)
_OBJECT = json.Decoder(dict[str, Raw])


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream, where the model is called `model`; usage comes without being asked for."""
    fields = wish.fields
    _refuse_what_is_lost(fields)
    limit = output_limit or wish.output_limit or DEFAULT_LIMIT
    turns = _Turns(_messages(fields))
    if not turns.said:
        raise InvalidRequest("'messages' has no message with content from the user.", param="messages")
    body: dict[str, Any] = {"model": model, "max_tokens": limit, "messages": turns.said}
    if turns.system:
        body["system"] = turns.system
    if wish.stream:
        body["stream"] = True
    body |= _sampling(fields)
    body |= _tools(fields)
    body |= _thought(fields, model, limit, turns)
    body |= _passed(fields)
    return json_fields.join(body)


def _refuse_what_is_lost(fields: Mapping[str, Raw]) -> None:
    for name, raw in fields.items():
        if name in _CARRIED or name in _HARMLESS or not _is_given(raw):
            continue
        if json_fields.plain(raw) not in _OFF.get(name, ()):
            _lost(name)


def _lost(name: str, why: str = "") -> NoReturn:
    raise InvalidRequest(f"'{name}' cannot be carried to a model behind the Messages API{why}.", param=name)


def _messages(fields: Mapping[str, Raw]) -> list[_Message]:
    shape = "a list of chat messages"
    return json_fields.read(fields, "messages", _MESSAGES, shape) or []


# The conversation.


class _Turns:
    """The messages as turns. Neighbours of one role become one turn, so all results of a round of tools share one.

    System messages are gathered in front wherever they stood: only some models take one in the middle, and none after
    an assistant's turn.
    """

    def __init__(self, messages: list[_Message]) -> None:
        self.said: list[dict[str, Any]] = []
        self.system: list[dict[str, Any]] = []
        self._function_id = ""  # of the last `function_call`, which has none
        for index, message in enumerate(messages):
            self._read(message, f"messages[{index}]")

    def _read(self, message: _Message, where: str) -> None:
        match message.role:
            case "system" | "developer":
                self.system += _marked(list(_blocks(message, where)), message)
            case "user":
                named = [_text(f"{message.name}:")] if message.name and message.content else []
                self._say("user", [*named, *_marked(list(_blocks(message, where)), message)])
            case "assistant":
                self._say("assistant", _marked([*_thoughts(message), *_blocks(message, where)], message))
                self._say("assistant", list(self._uses(message, where)))
            case "tool":
                if message.tool_call_id is None:
                    raise InvalidRequest(f"'{where}.tool_call_id' is required.", param=f"{where}.tool_call_id")
                self._say("user", [_result(message.tool_call_id, message, where)])
            case "function":
                self._say("user", [_result(self._function_id or f"function_{message.name}", message, where)])
            case _:
                raise InvalidRequest(f"'{where}.role' is not a role of a message.", param=f"{where}.role")

    def _say(self, role: str, blocks: list[dict[str, Any]]) -> None:
        if not blocks:
            return
        if not self.said or self.said[-1]["role"] != role:
            self.said.append({"role": role, "content": []})
        self.said[-1]["content"] += blocks

    def _uses(self, message: _Message, where: str) -> Iterator[dict[str, Any]]:
        for index, call in enumerate(message.tool_calls or ()):
            at = f"{where}.tool_calls[{index}]"
            if call.function is None:
                _lost(f"{at}.type", ": only functions can")
            yield _use(call.id, call.function, f"{at}.function.arguments")
        if message.function_call is not None:
            self._function_id = f"function_{len(self.said)}"
            yield _use(self._function_id, message.function_call, f"{where}.function_call.arguments")

    def answers_without_thought(self) -> bool:
        """Whether the last turn answers tools that an unthinking turn called: a budget to think is refused then."""
        if len(self.said) < 2 or self.said[-1]["content"][0]["type"] != "tool_result":
            return False
        return not self.said[-2]["content"][0]["type"].endswith("thinking")


def _use(id: str, function: _Function, where: str) -> dict[str, Any]:
    arguments = function.arguments.strip() or "{}"
    try:
        _OBJECT.decode(arguments)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{where}' must be a JSON object in a string.", param=where) from None
    return {"type": "tool_use", "id": _tool_id(id), "name": function.name, "input": Raw(arguments.encode())}


def _result(id: str, message: _Message, where: str) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _tool_id(id)}
    blocks = list(_blocks(message, where))
    if blocks:
        result["content"] = blocks
    return _with_mark(result, message.cache_control)


def _tool_id(id: str) -> str:
    return _TOOL_ID.sub("_", id)


def _thoughts(message: _Message) -> Iterator[dict[str, Any]]:
    """Thinking that comes back with its signature. Without one it is refused there and means nothing, so it is left."""
    for thought in message.reasoning_details or ():
        if thought.signature is not None:
            yield {"type": "thinking", "thinking": thought.text or "", "signature": thought.signature}
        elif thought.type == "reasoning.encrypted" and thought.data is not None:
            yield {"type": "redacted_thinking", "data": thought.data}


def _blocks(message: _Message, where: str) -> Iterator[dict[str, Any]]:
    """The content as blocks. Empty text is left out: the API refuses it."""
    if _is_given(message.audio):
        _lost(f"{where}.audio")
    content = message.content
    if isinstance(content, str):
        if content:
            yield _text(content)
    else:
        for index, part in enumerate(content or ()):
            block = _block(part, f"{where}.content[{index}]")
            if block is not None:
                yield _with_mark(block, part.cache_control, part.prompt_cache_breakpoint)
    if message.refusal:
        yield _text(message.refusal)


def _block(part: _Part, where: str) -> dict[str, Any] | None:
    match part.type:
        case "text":
            return _text(part.text) if part.text else None
        case "refusal":
            return _text(part.refusal) if part.refusal else None
        case "image_url":
            link = part.image_url
            url = link.url if isinstance(link, _Link) else link
            return {"type": "image", "source": _image(url or "", f"{where}.image_url")}
        case "file":
            return _document(part.file or _File(), f"{where}.file")
    return _lost(f"{where}.{part.type}" if part.type.isidentifier() else f"{where}.type")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(url: str, where: str) -> dict[str, Any]:
    inline = _IMAGE.match(url)
    if inline:
        return {"type": "base64", "media_type": inline[1], "data": url[inline.end() :]}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise InvalidRequest(
        f"'{where}' must be an https URL, or a data URL of a JPEG, PNG, GIF or WebP image in base64.", param=where
    )


def _document(file: _File, where: str) -> dict[str, Any]:
    if file.file_id is not None:
        _lost(f"{where}.file_id", ": the file is kept by another provider")
    kind, _, data = (file.file_data or "").removeprefix("data:").partition(";base64,")
    title = {"title": file.filename} if file.filename else {}
    if kind == "application/pdf" and data:
        source = {"type": "base64", "media_type": kind, "data": data}
    elif kind == "text/plain" and data:
        source = {"type": "text", "media_type": kind, "data": _decoded(data, f"{where}.file_data")}
    else:
        _lost(f"{where}.file_data", ": only a data URL of a PDF or of plain text, in base64, can")
    return {"type": "document", "source": source, **title}


def _decoded(data: str, where: str) -> str:
    try:
        return b64decode(data, validate=True).decode()
    except ValueError:
        raise InvalidRequest(f"'{where}' must be UTF-8 text in base64.", param=where) from None


def _marked(blocks: list[dict[str, Any]], message: _Message) -> list[dict[str, Any]]:
    """The blocks with the message's own cache marker at the last of them, which is how far a marker reaches."""
    if blocks:
        _with_mark(blocks[-1], message.cache_control)
    return blocks


def _with_mark(block: dict[str, Any], mark: Raw, breakpoint: Raw = _NOTHING) -> dict[str, Any]:
    if _is_given(mark):
        block["cache_control"] = mark
    elif _is_given(breakpoint):
        block["cache_control"] = _EPHEMERAL
    return block


def _is_given(raw: Raw) -> bool:
    return bytes(raw) not in (b"", b"null")


# Sampling, tools, thinking, form.


def _sampling(fields: Mapping[str, Raw]) -> dict[str, Any]:
    """Temperature and the like. 1 is what every model starts from, and some refuse to be told even that."""
    found: dict[str, Any] = {}
    temperature = json_fields.read(fields, "temperature", _TEMPERATURE, "a number from 0 to 2")
    if temperature is not None and temperature > 1:
        _lost("temperature", " above 1, which is the highest there")
    if temperature is not None and temperature < 1:
        found["temperature"] = fields["temperature"]
    share = json_fields.read(fields, "top_p", _SHARE, "a number from 0 to 1")
    if share is not None and share < 1:
        found["top_p"] = fields["top_p"]
    stop = json_fields.read(fields, "stop", _STOP, "a string or a list of strings") or []
    sequences = [stop] if isinstance(stop, str) else stop
    if any(not sequence.strip() for sequence in sequences):
        _lost("stop", ": a stop sequence there is more than white space")
    if sequences:
        found["stop_sequences"] = sequences
    return found


def _tools(fields: Mapping[str, Raw]) -> dict[str, Any]:
    tools = [_tool(tool, index) for index, tool in enumerate(json_fields.read(fields, "tools", _TOOLS, "tools") or ())]
    functions = json_fields.read(fields, "functions", _FUNCTIONS, "a list of functions") or []
    tools += [_defined(function) for function in functions]
    choice = _choice(fields)
    if not tools:
        if choice is not None and choice.get("type") in ("any", "tool"):
            raise InvalidRequest("'tool_choice' asks for a tool, and there are none.", param="tool_choice")
        return {}
    allowed = None if choice is None else choice.pop("allowed", None)
    if allowed is not None:
        tools = [tool for tool in tools if tool["name"] in allowed]
    parallel = json_fields.read(fields, "parallel_tool_calls", _FLAG, "a boolean")
    if parallel is False or functions:  # a `function_call` in an answer is one
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    return {"tools": tools} if choice is None else {"tools": tools, "tool_choice": choice}


def _tool(tool: _Tool, index: int) -> dict[str, Any]:
    if tool.type != "function" or tool.function is None:
        _lost(f"tools[{index}].type", ": only functions can")
    return _with_mark(_defined(tool.function), tool.cache_control)


def _defined(function: _Definition) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", **(function.parameters or {})}
    defined: dict[str, Any] = {"name": function.name, "input_schema": schema}
    if function.description:
        defined["description"] = function.description
    if function.strict:
        defined["strict"] = True
    return defined


def _choice(fields: Mapping[str, Raw]) -> dict[str, Any] | None:
    """The choice of a tool, with the names of those that are `allowed` when only some are."""
    choice = json_fields.read(fields, "tool_choice", _CHOICE, "a word or an object")
    if choice is None:
        return _choice_of_function(fields)
    if isinstance(choice, str):
        return _chosen(choice, "tool_choice")
    if choice.type == "function" and choice.function is not None:
        return {"type": "tool", "name": choice.function.name}
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        allowed = {tool.function.name for tool in choice.allowed_tools.tools if tool.function is not None}
        return {**_chosen(choice.allowed_tools.mode, "tool_choice.allowed_tools.mode"), "allowed": allowed}
    return _lost("tool_choice")


def _choice_of_function(fields: Mapping[str, Raw]) -> dict[str, Any] | None:
    call = json_fields.read(fields, "function_call", _CALL, "a word, or an object with a 'name'")
    if call is None:
        return None
    return _chosen(call, "function_call") if isinstance(call, str) else {"type": "tool", "name": call.name}


def _chosen(word: str, name: str) -> dict[str, Any]:
    words = {"auto": "auto", "none": "none", "required": "any"}
    if word not in words:
        raise InvalidRequest(f"'{name}' must be one of {', '.join(words)}, or name a tool.", param=name)
    return {"type": words[word]}


def _thought(fields: Mapping[str, Raw], model: str, limit: int, turns: _Turns) -> dict[str, Any]:
    """Thinking and the form of the answer, which share `output_config`."""
    config: dict[str, Any] = {}
    found: dict[str, Any] = {}
    effort = json_fields.read(fields, "reasoning_effort", _TEXT, "a word")
    if effort is not None and effort != "none" and effort not in BUDGETS:
        raise InvalidRequest(f"'reasoning_effort' must be one of none, {', '.join(BUDGETS)}.", param="reasoning_effort")
    if effort == "none":
        found["thinking"] = {"type": "disabled"}
    elif effort is not None and _THINKS_BY_BUDGET.search(model):
        budget = min(BUDGETS[effort], limit // 2)  # the other half is for the answer
        if budget >= LEAST_BUDGET and not turns.answers_without_thought():
            found["thinking"] = {"type": "enabled", "budget_tokens": budget}
    elif effort is not None:
        found["thinking"] = {"type": "adaptive"}
        config["effort"] = EFFORTS.get(effort, effort)
    schema = _schema(fields)
    if schema is not None:
        config["format"] = {"type": "json_schema", "schema": schema}
    return found | ({"output_config": config} if config else {})


def _schema(fields: Mapping[str, Raw]) -> Raw | None:
    form: _Format | None = json_fields.read(fields, "response_format", _FORMAT, "an object with a 'type'")
    if form is None or form.type == "text":
        return None
    if form.type != "json_schema":
        _lost("response_format", f" as {form.type[:50]}; give a json_schema")
    if form.json_schema is None or not bytes(form.json_schema.schema):
        name = "response_format.json_schema.schema"
        raise InvalidRequest(f"'{name}' is required.", param=name)
    return form.json_schema.schema


def _passed(fields: Mapping[str, Raw]) -> dict[str, Any]:
    """Fields that Messages has under the same name, and whom the request is for."""
    found: dict[str, Any] = {name: fields[name] for name in _given(fields, ("top_k", "thinking", "cache_control"))}
    for name in _given(fields, ("user", "safety_identifier")):
        user = json_fields.read(fields, name, _TEXT, "a string")
        if user:
            found.setdefault("metadata", {"user_id": user})
    return found


def _given(fields: Mapping[str, Raw], names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if _is_given(fields.get(name, _NOTHING)))
