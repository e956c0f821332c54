"""A caller who speaks Anthropic Messages, an upstream that speaks OpenAI chat: what goes up. `chat_as_messages.py` has
what comes back.

A request is read by types that know every field of it, so that what is not carried over is refused by its name, as
Anthropic would refuse what it does not know. Left out is only what changes nothing in what the model reads and does:
marks for a cache, and how context is cleared away that is still there here. Thinking in the conversation goes back to
an upstream under the name it came from; other models' thinking is theirs, and no upstream can read it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, TypeVar

from msgspec import Raw, Struct, ValidationError, json

from penstock.dialects import Label, Plain, Wish, json_fields
from penstock.dialects.anthropic_events import SIGNATURE
from penstock.dialects.json_fields import Fields
from penstock.dialects.pairs import chat_as_messages
from penstock.dialects.pairs.chat_as_messages import ChatAsMessages, Telling
from penstock.dialects.pairs.chat_pieces import without_extra
from penstock.errors import InvalidRequest

T = TypeVar("T")

PATH = "chat/completions"
LONGEST_NAME = 64  # of a function, with most servers; Anthropic's callers have 128
LONGEST_USER = 64  # characters of `user`
LITTLE_THINKING, SOME_THINKING = 4_096, 16_384  # tokens of a budget below which an effort is low, and medium
REASONING_FIELDS = frozenset({"reasoning_content", "reasoning"})
# A line of Claude Code's for Anthropic's own accounts. It is another one with each call, and stands before all the
# rest: an upstream that remembers prompts by how they begin would know none of them again.
ATTRIBUTION = "x-anthropic-billing-header:"
HARMLESS = frozenset({"cache_control", "diagnostics"})  # how a prompt is cached, and why it was not
NOTHING: dict[str, tuple[Any, ...]] = {  # fields with nothing to match them, and the values that ask for nothing
    "container": (),
    "fallbacks": ("default", []),
    "inference_geo": (),
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
}
SAME = ("temperature", "top_p", "top_k")  # `top_k` is no field of OpenAI's, but of most other servers
READ = frozenset(
    {
        "model",
        "messages",
        "system",
        "max_tokens",
        "stream",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "output_format",
        "metadata",
        "context_management",
    }
)


# What a caller sends.


class _Strict(Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """A part of a request that has no other fields than these."""


class _Block(_Strict, tag_field="type", kw_only=True):
    cache_control: Any = None


class _Text(_Block, tag="text", kw_only=True):
    text: str
    citations: Any = None  # of an answer that the model has given before: where it had its words from


class _Thinking(_Block, tag="thinking", kw_only=True):
    thinking: str
    signature: str | None = None


class _RedactedThinking(_Block, tag="redacted_thinking", kw_only=True):
    data: str


class _ImageData(_Strict, tag_field="type", tag="base64", kw_only=True):
    media_type: str
    data: str


class _ImageLink(_Strict, tag_field="type", tag="url", kw_only=True):
    url: str


class _Image(_Block, tag="image", kw_only=True):
    source: _ImageData | _ImageLink
    transformations: None = None


class _PlainText(_Strict, tag_field="type", tag="text", kw_only=True):
    media_type: str = "text/plain"
    data: str


class _Parts(_Strict, tag_field="type", tag="content", kw_only=True):
    content: str | list[_Text | _Image]


class _Citations(_Strict, kw_only=True):
    enabled: bool | None = None


class _Document(_Block, tag="document", kw_only=True):
    source: _ImageData | _PlainText | _Parts
    title: str | None = None
    context: str | None = None
    citations: _Citations | None = None


class _SearchResult(_Block, tag="search_result", kw_only=True):
    source: str
    title: str
    content: list[_Text]
    citations: _Citations | None = None


class _ToolUse(_Block, tag="tool_use", kw_only=True):
    id: str
    name: str
    input: Raw
    caller: Any = None
    toolset_name: None = None


class _ToolReference(_Block, tag="tool_reference", kw_only=True):
    tool_name: str


class _ToolResult(_Block, tag="tool_result", kw_only=True):
    tool_use_id: str
    content: str | list[_Text | _Image | _Document | _SearchResult | _ToolReference] | None = None
    is_error: bool | None = None
    toolset_name: None = None


_AnyBlock = _Text | _Image | _Document | _SearchResult | _Thinking | _RedactedThinking | _ToolUse | _ToolResult


class _Message(_Strict, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[_AnyBlock]


class _Kind(Struct, gc=False):
    type: str | None = None


class _Tool(_Strict, kw_only=True):
    name: str
    input_schema: Raw
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    input_examples: list[Raw] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    cache_control: Any = None
    defer_loading: Any = None  # a tool that would be loaded later is there from the start
    eager_input_streaming: Any = None  # inputs are always streamed as they come


class _ToolChoice(_Strict, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingWish(_Strict, kw_only=True):
    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Format(_Strict, kw_only=True):
    type: Literal["json_schema"]
    schema: Raw


class _OutputConfig(_Strict, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _Metadata(_Strict, kw_only=True):
    user_id: str | None = None


class _Edit(Struct, gc=False):
    type: Literal["clear_thinking_20251015", "clear_tool_uses_20250919"]


class _ContextManagement(_Strict, kw_only=True):
    edits: list[_Edit] | None = None


_MESSAGES = json.Decoder(list[_Message])
_SYSTEM = json.Decoder(str | list[_Text] | None)
_KINDS = json.Decoder(list[_Kind] | None)
_TOOLS = json.Decoder(list[_Tool] | None)
_TOOL_CHOICE = json.Decoder(_ToolChoice | None)
_THINKING = json.Decoder(_ThinkingWish | None)
_OUTPUT_CONFIG = json.Decoder(_OutputConfig | None)
_FORMAT = json.Decoder(_Format | None)
_METADATA = json.Decoder(_Metadata | None)
_CONTEXT_MANAGEMENT = json.Decoder(_ContextManagement | None)
_STOP_SEQUENCES = json.Decoder(list[str] | None)
_PLACE = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


# What goes up.


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The chat completion that asks the same. `InvalidRequest` names what chat has nothing for."""
    fields = wish.fields
    _refuse_others(fields)
    _read(fields, "context_management", _CONTEXT_MANAGEMENT)
    limit = wish.output_limit if output_limit is None else output_limit
    if not limit:
        _refuse("max_tokens", "a prompt cannot be cached without an answer")
    upstream: dict[str, Any] = {
        "model": model,
        "messages": [*_system(fields), *_conversation(fields)],
        limit_field: limit,
        **{name: fields[name] for name in SAME if not _is_null(fields.get(name))},
        **_streaming(wish, ask_usage),
        **_stop(fields),
        **_tools(fields),
        **_effort(fields),
        **_format(fields),
        **_user(fields),
    }
    return json_fields.join(upstream)


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read a chat completion and give it as a message. `UpstreamFailed` when it is none."""
    return chat_as_messages.answer(body, label=label, telling=_telling(wish))


def open_stream(*, wish: Wish, label: Label) -> ChatAsMessages:
    """Begin reading a streamed chat completion."""
    return ChatAsMessages(label, _telling(wish))


def _telling(wish: Wish) -> Telling:
    """What of a request an answer to it depends on. It was read once, or there would be none."""
    fields = wish.fields
    thinking = _read(fields, "thinking", _THINKING)
    names = [tool.name for tool in _read(fields, "tools", _TOOLS) or () if len(tool.name) > LONGEST_NAME]
    return Telling(
        input_estimate=wish.text_bytes // 4,
        thinking=thinking is None or not (thinking.type == "disabled" or thinking.display == "omitted"),
        stop_sequences=tuple(_read(fields, "stop_sequences", _STOP_SEQUENCES) or ()),
        names={function_name(name): name for name in names},
        context=_read(fields, "context_management", _CONTEXT_MANAGEMENT) is not None,
    )


def _refuse(field: str, why: str) -> NoReturn:
    message = f"'{field}' cannot be carried over to the provider of this model, which speaks OpenAI chat: {why}."
    raise InvalidRequest(message, param=field)


def _refuse_others(fields: Fields) -> None:
    """Refuse the fields that are not known here, unless they ask for nothing."""
    for name in fields.keys() - READ - HARMLESS - set(SAME):
        value = json_fields.plain(fields[name])
        if value is not None and value not in NOTHING.get(name, ()):
            _refuse(name, "it has nothing to match it")


def _read(fields: Fields, name: str, decoder: json.Decoder[T]) -> T | None:
    """The value of a field; refused by the name of what in it is not known."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except ValidationError as error:
        match = _PLACE.fullmatch(str(error))
        assert match is not None  # it matches anything
        words, place = match[1], re.sub(r"\[(\w+|\.\.\.)\]", r".\1", match[2] or "")
        unknown = _UNKNOWN.fullmatch(words)
        if unknown is not None:
            _refuse(f"{name}{place}.{unknown[1]}", "it has nothing to match it")
        _refuse(f"{name}{place}", words)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{name}' cannot be read.", param=name) from None


def _is_null(raw: Raw | None) -> bool:
    return raw is None or bytes(raw) == b"null"


# The conversation.


def _system(fields: Fields) -> list[dict[str, Any]]:
    system = _read(fields, "system", _SYSTEM)
    if isinstance(system, list):
        system = [block for block in system if not block.text.startswith(ATTRIBUTION)]
    if not system:
        return []
    return [{"role": "system", "content": _content(_parts(system, "system"))}]


def _conversation(fields: Fields) -> list[dict[str, Any]]:
    messages = _read(fields, "messages", _MESSAGES) or []
    if messages and messages[-1].role == "assistant":
        _refuse(
            f"messages.{len(messages) - 1}.role", "the last message must be the user's, for an answer is not continued"
        )
    found: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        path = f"messages.{number}.content"
        match message.role:
            case "user":
                found += _of_user(message.content, path)
            case "assistant":
                found.append(_of_assistant(message.content, path))
            case "system":
                found.append({"role": "system", "content": _content(_parts(message.content, path))})
    return found


def _of_user(content: str | list[Any], path: str) -> list[dict[str, Any]]:
    """A user's turn: first the results of tools, each a message of its own, then what else there is.

    A tool's message is text. Its images and documents come after all results, said to be its.
    """
    results: list[dict[str, Any]] = []
    attached: list[dict[str, Any]] = []
    others = content
    if isinstance(content, list):
        others = []
        for number, block in enumerate(content):
            if isinstance(block, _ToolResult):
                result, media = _result(block, f"{path}.{number}")
                results.append(result)
                attached += media
            else:
                others.append(block)
    rest = [*attached, *_parts(others, path)] if others or not results else attached
    return [*results, {"role": "user", "content": _content(rest)}] if rest or not results else results


def _result(block: _ToolResult, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A tool's message, and the parts of the result that are not text."""
    id, _ = without_extra(block.tool_use_id)
    parts = _parts(block.content or "", f"{path}.content")
    texts = [part for part in parts if part["type"] == "text"]
    media = [part for part in parts if part["type"] != "text"]
    if media:
        texts.append(_text(f"[{len(media)} attached below, as the result of {id}]"))
        media.insert(0, _text(f"[The result of {id}:]"))
    if block.is_error:
        texts = [_text(f"Error: {_joined(texts)}".rstrip())]
    return {"role": "tool", "tool_call_id": id, "content": _content(texts)}, media


def _of_assistant(content: str | list[Any], path: str) -> dict[str, Any]:
    """A turn of the model's: what it said as one text, as it was produced, and what it called."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    thoughts: dict[str, list[str]] = {}
    for number, block in enumerate(content):
        match block:
            case _Text():
                texts.append(block.text)
            case _ToolUse():
                calls.append(_call(block))
            case _Thinking():
                field = (block.signature or "").removeprefix(SIGNATURE)
                if field in REASONING_FIELDS:
                    thoughts.setdefault(field, []).append(block.thinking)
            case _RedactedThinking():
                pass
            case _:
                _refuse(f"{path}.{number}.type", "it is nothing that a model says")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    message |= {field: "".join(words) for field, words in thoughts.items()}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: _ToolUse) -> dict[str, Any]:
    function = {"name": function_name(block.name), "arguments": bytes(block.input).decode()}
    id, extra = without_extra(block.id)
    call = {"id": id, "type": "function", "function": function}
    return call if extra is None else {**call, "extra_content": extra}


def _parts(content: str | list[Any], path: str) -> list[dict[str, Any]]:
    """Content as parts, each of text, of an image or of a file."""
    if isinstance(content, str):
        return [_text(content)]
    found: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        found += _part(block, f"{path}.{number}")
    return found


def _part(block: Any, path: str) -> list[dict[str, Any]]:
    match block:
        case _Text():
            return [_text(block.text)]
        case _Image():
            return [{"type": "image_url", "image_url": {"url": _url(block.source)}}]
        case _Document():
            return _document(block, path)
        case _SearchResult():
            _refuse_citations(block.citations, path)
            words = "\n".join(part.text for part in block.content)
            return [_text(f"{block.title}\n{block.source}\n\n{words}")]
        case _ToolReference():
            return [_text(f"The tool {block.tool_name} can be called now.")]
    _refuse(f"{path}.type", "it is nothing that a user says")


def _document(block: _Document, path: str) -> list[dict[str, Any]]:
    _refuse_citations(block.citations, path)
    heading = "\n".join(filter(None, (block.title, block.context)))
    about = [_text(heading)] if heading else []
    match block.source:
        case _PlainText():
            return [*about, _text(block.source.data)]
        case _Parts():
            return [*about, *_parts(block.source.content, f"{path}.source.content")]
    file = {"filename": block.title or "document.pdf", "file_data": _url(block.source)}
    return [*([_text(block.context)] if block.context else []), {"type": "file", "file": file}]


def _refuse_citations(citations: _Citations | None, path: str) -> None:
    if citations is not None and citations.enabled:
        _refuse(f"{path}.citations", "the answer would have none")


def _url(source: _ImageData | _ImageLink) -> str:
    return source.url if isinstance(source, _ImageLink) else f"data:{source.media_type};base64,{source.data}"


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _joined(texts: Iterable[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in texts)


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """One text as such, which every server takes; else the parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts or ""


# What is asked besides.


def _streaming(wish: Wish, ask_usage: bool) -> dict[str, Any]:
    if not wish.stream:
        return {}
    return {"stream": True, "stream_options": {"include_usage": True}} if ask_usage else {"stream": True}


def _stop(fields: Fields) -> dict[str, Any]:
    sequences = _read(fields, "stop_sequences", _STOP_SEQUENCES)
    return {"stop": sequences} if sequences else {}


def _tools(fields: Fields) -> dict[str, Any]:
    """Definitions and choice of tools. A choice without a tool is left out: there is nothing to choose."""
    for number, kind in enumerate(_read(fields, "tools", _KINDS) or ()):
        if kind.type not in (None, "custom"):
            _refuse(f"tools.{number}.type", f"{kind.type[:100]} is a tool of Anthropic's")
    tools = _read(fields, "tools", _TOOLS)
    choice = _read(fields, "tool_choice", _TOOL_CHOICE)
    if not tools:
        return {}
    return {"tools": [_definition(tool) for tool in tools], **(_choice(choice) if choice is not None else {})}


def _definition(tool: _Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": function_name(tool.name)}
    description = [
        tool.description or "",
        *(f"Example of an input: {bytes(each).decode()}" for each in tool.input_examples or ()),
    ]
    if any(description):
        function["description"] = "\n\n".join(filter(None, description))
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: _ToolChoice) -> dict[str, Any]:
    words: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidRequest("'tool_choice.name' is required.", param="tool_choice.name")
        words["tool"] = {"type": "function", "function": {"name": function_name(choice.name)}}
    chosen = {"tool_choice": words[choice.type]}
    return {**chosen, "parallel_tool_calls": False} if choice.disable_parallel_tool_use else chosen


def function_name(name: str) -> str:
    """A name that is not too long for a function; the same one for the same name."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - len(digest) - 1]}_{digest}"


def _effort(fields: Fields) -> dict[str, Any]:
    """How much to think: as much as the effort says, else the budget, else as the model is used to.

    Without thinking nothing is asked for: most models that never think refuse the question.
    """
    thinking = _read(fields, "thinking", _THINKING)
    config = _read(fields, "output_config", _OUTPUT_CONFIG)
    if thinking is not None and thinking.type == "disabled":
        return {}
    if config is not None and config.effort is not None:
        return {"reasoning_effort": config.effort}
    if thinking is None or thinking.budget_tokens is None:
        return {}
    budget = thinking.budget_tokens
    effort = "low" if budget < LITTLE_THINKING else "medium" if budget < SOME_THINKING else "high"
    return {"reasoning_effort": effort}


def _format(fields: Fields) -> dict[str, Any]:
    config = _read(fields, "output_config", _OUTPUT_CONFIG)
    format = (config.format if config is not None else None) or _read(fields, "output_format", _FORMAT)
    if format is None:
        return {}
    described = {"name": "answer", "schema": format.schema, "strict": _is_strict(json_fields.plain(format.schema))}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


def _is_strict(schema: Any) -> bool:
    """Whether a schema keeps to what OpenAI demands of those it enforces: no other properties, and none that may be
    missing. Anthropic lets them be; a server that is told to be strict would refuse such a schema."""
    if not isinstance(schema, dict):
        return False
    waiting: list[Any] = [schema]  # and not by recursion: how deep it goes is the caller's choice
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            if not _is_closed(part):
                return False
            waiting += part.values()
    return True


def _is_closed(part: dict[str, Any]) -> bool:
    """Whether an object that a schema describes has all of its properties and no others. What is no object is."""
    properties, required = part.get("properties"), part.get("required")
    if part.get("type") != "object" and not isinstance(properties, dict):
        return True
    named = set(properties) if isinstance(properties, dict) else set()
    demanded = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return part.get("additionalProperties") is False and named == demanded


def _user(fields: Fields) -> dict[str, Any]:
    """Who the caller says is asking; digested where it would be too long. It names nobody either way."""
    metadata = _read(fields, "metadata", _METADATA)
    if metadata is None or not metadata.user_id:
        return {}
    user = metadata.user_id
    return {"user": user if len(user) <= LONGEST_USER else hashlib.sha256(user.encode()).hexdigest()}
