"""From a chat request to what a command is given: one text. What a command has no way to take is refused by name.

A command line takes words and gives words. A conversation of several turns is written out with a mark around each; the
mark is one that no turn contains, so nothing that somebody says can pass for a turn of somebody else. A single question
is given as it is, unless it begins with a character that some command takes for an order to itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.errors import InvalidRequest

LEAD = "This is a conversation so far. Each turn stands between marks that say whose it is."
CLOSE = "Write the assistant's next turn: its text alone, without marks."
ORDERS = "/!@#$-"  # a command's own: /help, !ls, @file, #remember, $skill, --option
_SPEAKERS = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("text", "input_text", "refusal")
_MARK = re.compile("</?turn(?:-([0-9]*))?")

MOST_STOPS, LONGEST_STOP = 16, 256  # characters; each piece of an answer is searched for the beginning of each stop

# Fields that change what is answered or how, and what they may say all the same.
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "n": (1,),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}


class Asked(Struct, frozen=True):
    """What a request asks of a command."""

    model: str
    prompt: str
    stream: bool
    include_usage: bool
    output_limit: int | None
    stops: tuple[str, ...]


class Turn(Struct, frozen=True):
    """What somebody said. `name` tells speakers of one kind apart."""

    speaker: str
    text: str
    name: str = ""


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


_Limit = Annotated[int, Meta(ge=1)]


class _Request(Struct):
    model: str
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    stop: str | list[str] | None = None


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REQUEST = msgspec.json.Decoder(_Request)


def read(body: bytes) -> Asked:
    """What a chat request asks; `InvalidRequest` names the field that is malformed or cannot be carried."""
    try:
        fields, request = _FIELDS.decode(body), _REQUEST.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
        place = re.search(r"\$\.(\w+)", str(bad))
        raise InvalidRequest(f"The request is malformed: {bad}.", param=place and place[1]) from None
    for name, harmless in REFUSED.items():
        if name in fields:
            _require_harmless(name, fields[name], harmless)
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        words = f"A command line takes {MOST_STOPS} stop sequences at most, none longer than {LONGEST_STOP} characters."
        raise InvalidRequest(words, param="stop")
    return Asked(
        model=request.model,
        prompt=render(list(_turns(request.messages))),
        stream=request.stream or False,
        include_usage=request.stream_options is not None and request.stream_options.include_usage is True,
        output_limit=request.max_completion_tokens or request.max_tokens,
        stops=tuple(stop for stop in stops if stop),
    )


def _require_harmless(name: str, raw: msgspec.Raw, harmless: tuple[Any, ...]) -> None:
    value = msgspec.json.decode(raw)
    if value is not None and value not in harmless:
        raise InvalidRequest(f"A command line cannot carry '{name}'.", param=name)


def _turns(messages: list[_Message]) -> Iterator[Turn]:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message.tool_calls or message.function_call:
            raise InvalidRequest("A command line cannot carry calls of tools.", param=f"{where}.tool_calls")
        speaker = _SPEAKERS.get(message.role)
        if speaker is None:
            raise InvalidRequest("A command line cannot carry results of tools.", param=f"{where}.role")
        yield Turn(speaker, _text(message.content, where), message.name or "")


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    texts = []
    for part in content:
        kind = part.get("type")
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind not in _TEXTS or not isinstance(text, str):
            raise InvalidRequest("A command line can carry text only.", param=f"{where}.content")
        texts.append(text)
    return "\n\n".join(texts)


def render(turns: list[Turn]) -> str:
    """The prompt for a conversation; `InvalidRequest` when nobody said anything."""
    if not any(turn.text.strip() for turn in turns):
        raise InvalidRequest("There is no text in the conversation.", param="messages")
    first = turns[0]
    begins = first.text.replace("\ufeff", " ").lstrip()[:1]  # to JavaScript a byte order mark is space
    if len(turns) == 1 and first.speaker == "user" and not first.name and begins and begins not in ORDERS:
        return first.text
    mark = _mark(turns)
    written = "\n\n".join(f"<{mark} of={_whose(turn)}>\n{turn.text}\n</{mark}>" for turn in turns)
    return f"{LEAD}\n\n{written}\n\n{CLOSE}"


def _mark(turns: list[Turn]) -> str:
    """A mark that stands in no turn: `turn`, else `turn-2` and so on. Goes over each turn once, whatever is in it."""
    # A mark that stands at the beginning of what is written is taken, too. Whatever takes a number is longer than it,
    # so of as many numbers as there are characters one is free.
    taken = bytearray(sum(len(turn.text) for turn in turns) + 3)
    for turn in turns:
        for found in _MARK.finditer(turn.text):
            taken[1] = 1
            number = 0
            for digit in found[1] or "":
                number = 10 * number + int(digit)
                if number >= len(taken):
                    break
                taken[number] = 1
    return f"turn-{taken.index(0, 2)}" if taken[1] else "turn"


def _whose(turn: Turn) -> str:
    """The speaker, and the name in quotes where there is one; a name is a word, whatever was sent."""
    name = re.sub(r"[^\w.-]", "_", turn.name)
    return f'"{turn.speaker}" name="{name}"' if name else f'"{turn.speaker}"'
