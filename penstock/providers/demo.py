"""A stand-in engine inside the process. It speaks the OpenAI wire format, needs no key and no network, and says so.

It is there so that every part of the gateway can be tried before any upstream is configured, and so that tests have an
engine whose usage is exact by a tokenizer they can read. It is not a language model: the words are composed by rule,
and equal requests always get equal answers. One number in the last message asks for a longer one ("write 300 tokens").
"""

from __future__ import annotations

import asyncio
import base64
import math
import re
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from penstock.errors import InvalidRequest, NotFound, PenstockError, UpstreamFailed
from penstock.ids import IdMaker
from penstock.ports import Call, OnCancel

T = TypeVar("T")

FINGERPRINT = "penstock-demo"
CONTEXT_TOKENS = 131_072  # a longer prompt is refused, as real engines do; counting this many takes about 30 ms
OUTPUT_TOKENS = 32_768  # of all choices together, an end for `ignore_eos`; composing this many takes about 10 ms
NATURAL_TOKENS = 40  # an answer ends with the first sentence that reaches this, so below 60
MESSAGE_TOKENS = 3  # what a chat template adds to a message; below the bytes of `{"role":"","content":""}`
IMAGE_TOKENS = 85  # what OpenAI charges for an image at low detail
EMBEDDING_DIMENSIONS = 256

# Words with the space before them, as byte-pair tokenizers cut; at most nine characters, so a token is a small event.
_TOKEN = re.compile(r" ?[^\W\d_]{1,8}| ?\d{1,3}| ?[^\w\s]|_|\s")
_WISHED_LENGTH = re.compile(r"\b(\d{1,5})[ -](?:tokens|words)\b")

_SENTENCES = (
    " A prepaid token is paid for before it is produced.",
    " The gateway holds the most this answer can cost, then gives back what was left.",
    " Every word you see here was counted once, on the way to you.",
    " If the balance runs out, the answer ends early and nothing is owed.",
    " A hold is a promise: money set aside until the work ends.",
    " When you hang up, only what was already sent is paid.",
    " The price was fixed before the first byte went out.",
    " Nothing is charged twice, even after a crash.",
    " The usage record tells how many tokens went in and came out.",
    " To hear a real model, name a provider in the configuration.",
)


def tokenize(text: str) -> list[str]:
    """The tokens of a text; joined they are the text again, and there are never more of them than bytes."""
    return _TOKEN.findall(text)


# What is read of a request. Everything else in it is accepted and ignored, as real engines do.


class _Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _Function


class _Named(msgspec.Struct):
    name: str


class _Chosen(msgspec.Struct):
    function: _Named


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return " ".join(str(part.get("text", "")) for part in self.content or ())


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


_Limit = Annotated[int, msgspec.Meta(ge=1)]


class _ChatRequest(msgspec.Struct):
    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None

    def output_limit(self) -> int:
        most = OUTPUT_TOKENS // (self.n or 1)
        return min(self.max_completion_tokens or self.max_tokens or most, most)


class _EmbeddingsRequest(msgspec.Struct):
    model: str
    input: str | list[Any]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


_chat_request = msgspec.json.Decoder(_ChatRequest)
_embeddings_request = msgspec.json.Decoder(_EmbeddingsRequest)
_encode = msgspec.json.Encoder().encode


class DemoProvider:
    """The engine. `token_delay_s` is the pause before each streamed event, so that a person sees the tokens come."""

    on_cancel: OnCancel = "stop"

    def __init__(self, name: str = "demo", *, token_delay_s: float = 0.0, models: Sequence[str] = ("demo",)) -> None:
        self.name = name
        self.token_delay_s = token_delay_s
        self.models = tuple(models)
        self._ids = IdMaker()

    def __repr__(self) -> str:
        return f"DemoProvider({self.name!r}, token_delay_s={self.token_delay_s})"

    async def open(self, call: Call) -> DemoAnswer:
        """Answer `chat/completions`, `embeddings` and `models`; 404 for other paths, 400 for what is malformed.

        A plain answer takes as long as its stream would. Any model name is served and echoed.
        """
        if call.sent is not None:
            call.sent()
        try:
            match call.method, call.path:
                case "POST", "chat/completions":
                    return await self._chat(call.body)
                case "POST", "embeddings":
                    return _json_answer(200, _embeddings(_decoded(_embeddings_request, call.body)))
                case "GET", "models":
                    return _json_answer(200, _models(self.models))
        except InvalidRequest as bad:
            return _error_answer(400, "invalid_request_error", bad)
        return _error_answer(404, "not_found", NotFound(f"The demo engine does not serve {call.method} {call.path}."))

    def ready(self, model: str, account: str) -> bool:
        """It serves any model, always."""
        return True

    async def check(self) -> tuple[str, ...]:
        """The names it lists."""
        return self.models

    async def close(self) -> None:
        """Nothing is kept, so there is nothing to close."""

    async def _chat(self, body: bytes) -> DemoAnswer:
        request = _decoded(_chat_request, body)
        reply = _Reply(
            id=self._ids.new("chatcmpl").replace("_", "-", 1),  # OpenAI's ids have a hyphen
            created=int(time.time()),
            request=request,
            prompt_tokens=_prompt_tokens(request),
            choices=tuple(_compose(request, index) for index in range(request.n or 1)),
        )
        if request.stream:
            return DemoAnswer(200, "text/event-stream", _events(reply), self.token_delay_s)
        await asyncio.sleep(self.token_delay_s * max(choice.tokens for choice in reply.choices))
        return _json_answer(200, _completion(reply))


class DemoAnswer:
    """An answer made as it is read: each piece is one event (or the whole document), and none is made after `close`."""

    __slots__ = ("_closed", "_delay_s", "_pieces", "headers", "status")

    headers: Mapping[str, str]

    def __init__(self, status: int, content_type: str, pieces: Iterable[bytes], delay_s: float = 0.0) -> None:
        self.status = status
        self.headers = {"content-type": content_type}
        self._pieces = iter(pieces)
        self._delay_s = delay_s
        self._closed = False

    def __repr__(self) -> str:
        return f"DemoAnswer({self.status}, {'closed' if self._closed else 'open'})"

    def __aiter__(self) -> DemoAnswer:
        return self

    async def __anext__(self) -> bytes:
        # Even a delay of 0 gives the loop a turn, so a stream is visible and other calls go on beside it.
        await asyncio.sleep(self._delay_s)
        if self._closed:
            raise UpstreamFailed("The answer was closed before its end.", began=True)
        piece = next(self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def read(self, limit: int) -> bytes:
        """The whole body; `UpstreamFailed` when it is longer than `limit` bytes."""
        body = b""
        async for piece in self:
            body += piece
            if len(body) > limit:
                self.close()
                raise UpstreamFailed(f"The answer is longer than {limit} bytes.", began=True)
        return body

    def close(self) -> None:
        """Make no more pieces. Nothing runs in between, so there is nothing to stop."""
        self._closed = True


# What the engine says.


@dataclass(frozen=True, slots=True)
class _Choice:
    """One choice: text, or the call of a tool whose arguments are the pieces. A tool's name counts as one token."""

    pieces: tuple[str, ...]
    finish_reason: str
    tool: str | None = None

    @property
    def tokens(self) -> int:
        return len(self.pieces) + (self.tool is not None)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A chat answer before it is put in one of its two wire forms."""

    id: str
    created: int
    request: _ChatRequest
    prompt_tokens: int
    choices: tuple[_Choice, ...]

    def usage(self) -> dict[str, int]:
        completion = sum(choice.tokens for choice in self.choices)
        total = self.prompt_tokens + completion
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": completion, "total_tokens": total}


def _compose(request: _ChatRequest, index: int) -> _Choice:
    """Choice number `index`: within the output limit, cut at the first stop sequence."""
    limit = request.output_limit()
    tool = _forced_tool(request)
    if tool is not None:
        arguments = tokenize(_encode(_example_arguments(tool.parameters or {}, request)).decode())
        finish_reason = "tool_calls" if len(arguments) < limit else "length"
        return _Choice(tuple(arguments[: limit - 1]), finish_reason, tool.name)
    pieces = _speech(request, index)
    finish_reason = "stop" if len(pieces) <= limit else "length"
    pieces = pieces[:limit]
    for stop in _stops(request):
        before, found, _ = "".join(pieces).partition(stop)
        if found:
            pieces, finish_reason = tokenize(before), "stop"
    return _Choice(tuple(pieces), finish_reason)


def _speech(request: _ChatRequest, index: int) -> list[str]:
    """The words: what this is, what was asked, then sentences in an order the prompt decides, to a natural end."""
    last = request.messages[-1]
    asked = "The tool said" if last.role == "tool" else "You asked"
    quote = _beginning(last.text())
    wished = _WISHED_LENGTH.search(last.text())
    length = min(int(wished[1]), request.output_limit() + 1) if wished else NATURAL_TOKENS
    if request.ignore_eos:
        length = request.output_limit() + 1
    pieces = tokenize("This is the Penstock demo engine, not a language model.")
    if quote:
        pieces += tokenize(f' {asked}: "{quote}"')
    number = zlib.crc32(last.text().encode("utf-8", "surrogatepass")) + index
    while len(pieces) < length:
        pieces += tokenize(_SENTENCES[number % len(_SENTENCES)])
        number += 1
    return pieces


def _beginning(text: str) -> str:
    return "".join(tokenize(text[:120])[:12]).strip()


def _stops(request: _ChatRequest) -> Iterator[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return (stop for stop in stops if stop)


def _forced_tool(request: _ChatRequest) -> _Function | None:
    """The tool that must be called: the chosen one, or the first when some call is required."""
    if request.tool_choice in (None, "none", "auto"):
        return None
    tools = {tool.function.name: tool.function for tool in request.tools or ()}
    if isinstance(request.tool_choice, _Chosen):
        tool = tools.get(request.tool_choice.function.name)
    else:
        tool = next(iter(tools.values()), None)
    if tool is None:
        raise InvalidRequest("tool_choice asks for a tool that is not declared in tools.", param="tool_choice")
    return tool


def _example_arguments(schema: dict[str, Any], request: _ChatRequest) -> dict[str, Any]:
    """A value of the right type for each required property; a string is the beginning of what was asked."""
    words = _beginning(request.messages[-1].text())
    examples: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    properties, required = schema.get("properties"), schema.get("required")
    arguments = {}
    for key in required if isinstance(required, list) else ():
        declared = properties.get(key) if isinstance(properties, dict) else None
        rule = declared if isinstance(declared, dict) else {}
        choices = rule.get("enum")
        arguments[str(key)] = (
            choices[0] if isinstance(choices, list) and choices else examples.get(str(rule.get("type")), words)
        )
    return arguments


def _prompt_tokens(request: _ChatRequest) -> int:
    """Tokens of roles, texts and tool definitions, plus a constant a message and an image."""
    texts = [_encode(request.tools).decode()] if request.tools else []
    total = 0
    for message in request.messages:
        total += MESSAGE_TOKENS
        texts += [message.role, message.text()]
        if message.tool_calls:
            texts.append(_encode(message.tool_calls).decode())
        if isinstance(message.content, list):
            total += IMAGE_TOKENS * sum(part.get("type") == "image_url" for part in message.content)
    # No token is longer than nine characters, so a hopeless text is refused before it is cut into millions of pieces.
    if sum(map(len, texts)) <= 9 * CONTEXT_TOKENS:
        total += sum(len(tokenize(text)) for text in texts)
        if total <= CONTEXT_TOKENS:
            return total
    refusal = f"The prompt is longer than the demo engine's context of {CONTEXT_TOKENS} tokens."
    raise InvalidRequest(refusal, param="messages", code="context_length_exceeded")


# The wire forms.


def _completion(reply: _Reply) -> dict[str, Any]:
    choices = []
    for index, choice in enumerate(reply.choices):
        text = "".join(choice.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.tool is not None:
            message |= {"content": None, "tool_calls": [_tool_call(reply, index, text)]}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason})
    return _envelope(reply, "chat.completion") | {"choices": choices, "usage": reply.usage()}


def _events(reply: _Reply) -> Iterator[bytes]:
    """The stream: a role for each choice, the tokens in turn, the ends, usage when asked for, the terminator."""
    options = reply.request.stream_options
    envelope = _envelope(reply, "chat.completion.chunk")
    asked = options is not None and options.include_usage
    if asked:
        envelope["usage"] = None  # as OpenAI does on every chunk but the last

    def event(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return b"data: " + _encode(envelope | {"choices": [choice]}) + b"\n\n"

    for index in range(len(reply.choices)):
        yield event(index, _first_delta(reply, index))
    for position in range(max(len(choice.pieces) for choice in reply.choices)):
        for index, choice in enumerate(reply.choices):
            if position < len(choice.pieces):
                yield event(index, _delta(choice, choice.pieces[position]))
    for index, choice in enumerate(reply.choices):
        yield event(index, {}, choice.finish_reason)
    if asked:
        yield b"data: " + _encode(envelope | {"choices": [], "usage": reply.usage()}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _envelope(reply: _Reply, kind: str) -> dict[str, Any]:
    return {
        "id": reply.id,
        "object": kind,
        "created": reply.created,
        "model": reply.request.model,
        "system_fingerprint": FINGERPRINT,
    }


def _first_delta(reply: _Reply, index: int) -> dict[str, Any]:
    if reply.choices[index].tool is None:
        return {"role": "assistant", "content": ""}
    return {"role": "assistant", "content": None, "tool_calls": [{"index": 0} | _tool_call(reply, index, "")]}


def _delta(choice: _Choice, piece: str) -> dict[str, Any]:
    if choice.tool is None:
        return {"content": piece}
    return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _tool_call(reply: _Reply, index: int, arguments: str) -> dict[str, Any]:
    function = {"name": reply.choices[index].tool, "arguments": arguments}
    return {"id": f"call_{reply.id[-16:]}{index}", "type": "function", "function": function}


def _embeddings(request: _EmbeddingsRequest) -> dict[str, Any]:
    inputs = _embedding_inputs(request.input)
    dimensions = request.dimensions or EMBEDDING_DIMENSIONS
    data = []
    for index, tokens in enumerate(inputs):
        vector: list[float] | str = _unit_vector(tokens, dimensions)
        if request.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    used = sum(map(len, inputs))
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def _embedding_inputs(given: str | list[Any]) -> list[list[str]]:
    """The tokens of each input. OpenAI's four forms: a text, texts, one list of token numbers, lists of them."""
    texts = [given] if isinstance(given, str) else given
    if texts and all(type(item) is int for item in texts):
        texts = [texts]
    inputs = []
    for item in texts:
        if isinstance(item, str):
            inputs.append(tokenize(item))
        elif isinstance(item, list) and all(type(number) is int for number in item):
            inputs.append([str(number) for number in item])
        else:
            raise InvalidRequest("input must be a text, texts, or lists of token numbers.", param="input")
    if not inputs or not all(inputs):
        raise InvalidRequest("input must not be empty.", param="input")
    return inputs


def _unit_vector(tokens: list[str], dimensions: int) -> list[float]:
    """A vector of length 1. Texts that share words point the same way: each word adds to a few places of its own."""
    vector = [0.0] * dimensions
    for token, count in Counter(token.strip().lower() for token in tokens).items():
        for number in range(8):
            place = zlib.crc32(f"{number}{token}".encode("utf-8", "surrogatepass"))
            vector[place % dimensions] += count if place & 0x8000_0000 else -count
    length = math.hypot(*vector)
    if length == 0.0:  # the words cancelled out, which happens in one or two dimensions
        return [1.0] + [0.0] * (dimensions - 1)
    return [value / length for value in vector]


def _models(names: Sequence[str]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "penstock"} for name in names],
    }


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
        place = re.search(r"\$\.(\w+)", str(bad))
        raise InvalidRequest(f"The request is malformed: {bad}.", param=place and place[1]) from None


def _error_answer(status: int, kind: str, error: PenstockError) -> DemoAnswer:
    document = {"message": error.message, "type": kind, "code": error.code, "param": error.param}
    return _json_answer(status, {"error": document})


def _json_answer(status: int, document: dict[str, Any]) -> DemoAnswer:
    return DemoAnswer(status, "application/json", [_encode(document)])
