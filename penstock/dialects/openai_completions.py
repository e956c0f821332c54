"""OpenAI's legacy completions: a prompt goes on as text. Requests, plain answers and streams.

Bytes pass through, as in `openai_chat`, whose stream this one is but for what a choice looks like. Read are the model,
the prompts' form and size, the output limit, the number of choices, whether to stream and to report usage; replaced are
the model's name, the answer's id, the output limit and the wish for usage. What `echo` repeats of a prompt is not
counted as produced.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, cast

from msgspec import Meta, Raw, Struct, json

from penstock.dialects import Label, Plain, Step, Wish, json_fields, openai_chat, unread
from penstock.dialects.json_fields import Fields
from penstock.dialects.openai_chat import MOST_CHOICES, ChatStream
from penstock.dialects.usage import (
    BYTES_PER_TOKEN,
    UsageReport,
    estimate_delta_tokens,
    estimate_tokens,
    read_usage,
)
from penstock.errors import InvalidRequest

NAME = "openai_completions"
PATH = "completions"
FORWARDED: tuple[bytes, ...] = ()
USUAL_LIMIT = 16  # tokens: what the published API puts out where no limit is named
MOST_PROMPTS = 2_048  # the published API's own limit
_DATA_AT = len(b"data:")
_PROMPT_SHAPE = "a string, or a list of strings, of token ids, or of lists of token ids, and not empty"
_LIMIT_FIELD = "max_tokens"
_MEANT = json_fields.Meant(
    ("model", "prompt", "stream", "stream_options", "n", "echo", _LIMIT_FIELD),
    {
        "max_completion_tokens": _LIMIT_FIELD,
        "n_predict": _LIMIT_FIELD,
        "max_new_tokens": _LIMIT_FIELD,
        "n_cmpl": "n",
        "best_of": "n",  # so many are produced, and paid for, of which `n` are shown
    },
)


# The request.


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


_PROMPT = json.Decoder(str | list[str | int | list[int]])
_FLAG = json.Decoder(bool | None)
_LIMIT = json.Decoder(Annotated[int, Meta(ge=0)] | None)
_CHOICES = json.Decoder(Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None)
_STREAM_OPTIONS = json.Decoder(_StreamOptions | None)

Prompts = list[str] | list[list[int]]


def peek(body: bytes, *, max_output_tokens: int) -> Wish:
    """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
    fields = json_fields.request_fields(body)
    model = json_fields.read_model(fields)
    json_fields.refuse_lookalikes(fields, _MEANT)
    given = prompts(fields)
    options = json_fields.read(fields, "stream_options", _STREAM_OPTIONS, "an object with a boolean 'include_usage'")
    choices = json_fields.read(fields, "n", _CHOICES, f"a whole number from 1 to {MOST_CHOICES}") or 1
    return Wish(
        model=model,
        stream=json_fields.read(fields, "stream", _FLAG, "a boolean") or False,
        output_limit=_output_limit(fields, max_output_tokens),
        choices=choices * len(given),
        include_usage=options is not None and options.include_usage is True,
        input_bytes=len(body),
        text_bytes=sum(_size(prompt) for prompt in given if isinstance(prompt, str)) + _suffix_size(fields),
        images=0,
        fields=fields,
        token_ids=sum(len(prompt) for prompt in given if not isinstance(prompt, str)),
    )


def _suffix_size(fields: Fields) -> int:
    """Bytes of what is to follow the text."""
    suffix = json_fields.plain(fields.get("suffix"))
    return _size(suffix) if isinstance(suffix, str) else 0


def prompts(fields: Fields) -> Prompts:
    """The prompts of a request, each a text or a list of token ids; `InvalidRequest` when there are none."""
    given = json_fields.read(fields, "prompt", _PROMPT, _PROMPT_SHAPE)
    if given is None:
        raise InvalidRequest("The 'prompt' field is required.", param="prompt")
    if isinstance(given, str):
        return [given]
    if not given or len({type(item) for item in given}) > 1:
        raise InvalidRequest(f"'prompt' must be {_PROMPT_SHAPE}.", param="prompt")
    if isinstance(given[0], int):
        return [cast(list[int], given)]
    if len(given) > MOST_PROMPTS:
        raise InvalidRequest(f"'prompt' must hold no more than {MOST_PROMPTS} prompts.", param="prompt")
    return cast(Prompts, given)


def _output_limit(fields: Fields, most: int) -> int:
    """The caller's output limit in tokens, else the published one: a server's own may be none at all."""
    limit = json_fields.read(fields, _LIMIT_FIELD, _LIMIT, f"a whole number from 0 to {most}")
    if limit is not None and limit > most:
        raise InvalidRequest(f"'{_LIMIT_FIELD}' must be a whole number from 0 to {most}.", param=_LIMIT_FIELD)
    return USUAL_LIMIT if limit is None else limit


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body to send upstream. Here the limit has one name everywhere, whatever `limit_field` says for chat."""
    return openai_chat.request(
        wish, model=model, output_limit=output_limit, limit_field=_LIMIT_FIELD, ask_usage=ask_usage
    )


# What comes back.


class _Choice(Struct, gc=False):
    index: Annotated[int, Meta(ge=0)] = 0
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: UsageReport | None = None
    error: Any = None


_CHOICE_LIST = json.Decoder(list[_Choice] | None)
_CHUNK = json.Decoder(_Chunk)


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """Read an upstream's answer and name the model in it. `UpstreamFailed` when it is none."""
    fields = json_fields.answer_fields(body)
    usage = read_usage(fields.get("usage"))
    if label.model is not None or label.id_prefix is not None:
        body = json_fields.join(openai_chat.renamed_answer(fields, label.model, label.id_prefix))
    return Plain(body, usage, _estimated(fields, body, wish) if usage is None else usage.output)


def _estimated(fields: Fields, body: bytes, wish: Wish) -> int:
    choices = _choices(fields.get("choices"))
    if choices is None:
        return estimate_tokens(len(bytes(fields.get("choices", b""))))
    echoed = _echoed(wish)
    texts = sum(estimate_tokens(max(_size(choice.text) - echoed(choice.index), 0)) for choice in choices)
    return texts + _unread(body)


def _unread(data: bytes) -> int:
    """Tokens in what has no text that is read here. What cannot be read at all counts as a whole."""
    try:
        return unread.in_completion(data)
    except (ValueError, RecursionError):
        return estimate_tokens(len(data))


def open_stream(*, wish: Wish, label: Label) -> CompletionStream:
    """Begin reading a streamed answer."""
    return CompletionStream(wish=wish, label=label)


class CompletionStream(ChatStream):
    """One streamed completion: a chat's, whose choices have a `text`."""

    __slots__ = ("_asked", "_echoed", "_echoing")

    def __init__(self, *, wish: Wish, label: Label) -> None:
        super().__init__(model=label.model, id_prefix=label.id_prefix, include_usage=wish.include_usage)
        self._asked = wish.choices
        self._identity |= {"id": f"{label.id_prefix or 'cmpl-'}0", "object": "text_completion"}
        self._echoed = _echoed(wish)
        self._echoing: dict[int, int] = {}  # bytes of the prompt that are still to come, by choice

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood passes, counted by size."""
        if not event.startswith(b"data:"):
            return self._unusual(event)
        try:
            chunk = _CHUNK.decode(event[_DATA_AT:])
            usage = None if chunk.usage is None else chunk.usage.counted()
            if chunk.error or not chunk.choices:
                return self._without_choices(event, _DATA_AT, usage)
            produced, finish_reason = self._counted(chunk.choices, event[_DATA_AT:])
            return Step(self._swap(event, _DATA_AT), produced, usage, finish_reason)
        except (ValueError, RecursionError):
            return self._unusual(event)

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """There is no short cut: who still calls this is in no hurry."""
        return b"", 0, start

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """An event that ends every choice still open; `penstock.reason` in it says to machines why we ended it."""
        indexes = sorted(self._open - self._ended or self._ended or {0})
        choices = [{"text": "", "index": index, "logprobs": None, "finish_reason": finish_reason} for index in indexes]
        return event({**self._identity, "choices": choices, "penstock": {"reason": reason}})

    def _untyped(self, event: bytes, data_at: int, fields: Fields) -> Step:
        usage = read_usage(fields.get("usage"))
        choices = _choices(fields.get("choices"))
        if choices == [] or json_fields.error_message(fields) is not None:
            return self._without_choices(event, data_at, usage)
        if choices is None:
            return Step(self._swap(event, data_at), estimate_tokens(len(bytes(fields["choices"]))), usage)
        produced, finish_reason = self._counted(choices, event[data_at:])
        return Step(self._swap(event, data_at), produced, usage, finish_reason)

    def _counted(self, choices: Iterable[_Choice], data: bytes) -> tuple[int, str | None]:
        """Tokens in the choices of one event, and how the last of them ended once all choices that were seen have."""
        produced = 0
        finish_reason = None
        for choice in choices:
            if choice.finish_reason:
                finish_reason = choice.finish_reason
            if choice.index >= self._asked:  # nobody asked for it: it is counted and not remembered
                produced += estimate_delta_tokens(_size(choice.text))
                continue
            produced += estimate_delta_tokens(self._without_echo(choice))
            if choice.finish_reason:
                self._ended.add(choice.index)
            else:
                self._open.add(choice.index)
        if not produced or len(data) > unread.LONG_EVENT:
            produced += _unread(data)
        return produced, finish_reason if self._open <= self._ended else None

    def _without_echo(self, choice: _Choice) -> int:
        """Bytes of a choice's text that are not the prompt's."""
        size = _size(choice.text)
        left = self._echoing.setdefault(choice.index, self._echoed(choice.index))
        self._echoing[choice.index] = max(left - size, 0)
        return max(size - left, 0)


class _Echoed:
    """How many bytes of each choice's text are its prompt's: `echo` puts them before it."""

    __slots__ = ("_sizes", "_times")

    def __init__(self, sizes: list[int], times: int) -> None:
        self._sizes = sizes
        self._times = times

    def __call__(self, index: int) -> int:
        """For choice number `index`: all choices of the first prompt come first."""
        place = index // self._times
        return self._sizes[place] if place < len(self._sizes) else 0


def _echoed(wish: Wish) -> _Echoed:
    if json_fields.plain(wish.fields.get("echo")) is not True:
        return _Echoed([], 1)
    given = prompts(wish.fields)
    sizes = [_size(each) if isinstance(each, str) else BYTES_PER_TOKEN * len(each) for each in given]
    return _Echoed(sizes, max(wish.choices // len(sizes), 1))


def event(value: dict[str, Any]) -> bytes:
    """A stream's event with this as its data."""
    return b"data: " + json_fields.join(value) + b"\n\n"


def _choices(raw: Raw | None) -> list[_Choice] | None:
    """The choices, none when absent or null; None when they are not in the usual types."""
    try:
        return [] if raw is None else _CHOICE_LIST.decode(raw) or []
    except (ValueError, RecursionError):
        return None


def _size(text: str | None) -> int:
    return len(text.encode()) if text else 0
