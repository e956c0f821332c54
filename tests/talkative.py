"""A model that talks: an upstream that reads what it is asked, in any dialect, and does it, as a good model would.

    async with ScriptedUpstream(Talkative()) as upstream: ...

It calls the tool that it has to call, or the first it is given, once for each 'quoted' word of the question, says what
the tools came back with, fills the schema that its answer is to have, and thinks when it is asked to. What it counts is
always the same (below). It understands nothing, and other paths than those of `DIALECTS` are answered by `Usual`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.upstream import Exchange, Received, Script, Usual
from tests.upstream_messages import Block, Counts, MessagesPlain, MessagesStream, text, thinking, tool_use
from tests.upstream_responses import Answered, Events, chunk, message, response_of, sse, usage_of

PROMPT, CACHED, OUTPUT, THOUGHT = 11, 4, 9, 3  # tokens: CACHED of the prompt, THOUGHT of the output when it thinks
HELLO = "Hello to you."
MUSING = "Let me see."
QUOTED = re.compile(r"'(\w+)'")


@dataclass(frozen=True)
class Asked:
    """What a request is about. `must` is the tool that has to be called, empty for any; `keys` are those of an object
    that is asked for in words."""

    question: str
    tools: dict[str, Any]
    must: str | None
    results: tuple[str, ...]
    form: Any
    keys: tuple[str, ...]
    thinks: bool


@dataclass(frozen=True)
class Said:
    """What the model has to say; `calls` are names of tools and their arguments."""

    thought: str
    words: str
    calls: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Talkative:
    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        dialect = DIALECTS.get(received.path.partition("?")[0].rpartition("/v1/")[2])
        if dialect is None:
            await Usual().play(exchange)
            return
        read, write = dialect
        await write(received, said(read(received.json))).play(exchange)


def said(asked: Asked) -> Said:
    """What a good model answers."""
    thought = MUSING if asked.thinks else ""
    if asked.form is not None:
        return Said(thought, json.dumps(filled(asked.form, asked.form, "a word")), ())
    if asked.keys:
        return Said(thought, json.dumps(dict.fromkeys(asked.keys, "a word")), ())
    name = asked.must or next(iter(asked.tools), "")
    if name and (asked.must is not None or not asked.results):
        form = asked.tools[name]
        words = QUOTED.findall(asked.question) or ["a word"]
        return Said(thought, "", tuple((name, filled(form, form, word)) for word in words))
    return Said(thought, f"It is: {', '.join(asked.results)}." if asked.results else HELLO, ())


def filled(form: Any, whole: Any, word: str) -> Any:
    """A value of a JSON schema, with this word in it; `whole` is where its references lead."""
    if "$ref" in form:
        return filled(whole["$defs"][form["$ref"].rpartition("/")[2]], whole, word)
    if "anyOf" in form:
        return filled(form["anyOf"][0], whole, word)
    match form.get("type"):
        case "object":
            return {name: filled(each, whole, word) for name, each in form.get("properties", {}).items()}
        case "array":
            return [filled(form["items"], whole, word)]
        case "integer" | "number":
            return 3
        case "boolean":
            return True
    return word


def words_of(content: Any) -> str:
    """The text of a content that is a string or parts."""
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"]) for part in content or () if "text" in part)


def _trailing(turns: list[Any], is_result: Callable[[Any], bool]) -> list[Any]:
    """The turns at the end that are results of tools."""
    start = len(turns)
    while start and is_result(turns[start - 1]):
        start -= 1
    return turns[start:]


def _last(turns: Iterable[Any]) -> str:
    return next((words_of(turn["content"]) for turn in reversed(list(turns)) if turn.get("role") == "user"), "")


# Chat completions.


def read_chat(asked: Any) -> Asked:
    choice, form = asked.get("tool_choice"), asked.get("response_format") or {}
    question = _last(asked["messages"])
    return Asked(
        question=question,
        tools={each["function"]["name"]: each["function"].get("parameters", {}) for each in asked.get("tools") or ()},
        must=choice["function"]["name"] if isinstance(choice, dict) else "" if choice == "required" else None,
        results=tuple(
            words_of(each["content"]) for each in _trailing(asked["messages"], lambda m: m["role"] == "tool")
        ),
        form=form["json_schema"]["schema"] if form.get("type") == "json_schema" else None,
        keys=tuple(QUOTED.findall(question)) if form.get("type") == "json_object" else (),
        thinks=asked.get("reasoning_effort") not in (None, "none"),
    )


def write_chat(received: Received, said: Said) -> Script:
    reason = "tool_calls" if said.calls else "stop"
    message: dict[str, Any] = {"role": "assistant", "content": said.words or None}
    if said.thought:
        message["reasoning_content"] = said.thought
    if said.calls:
        message["tool_calls"] = [_chat_call(place, *call) for place, call in enumerate(said.calls)]
    if received.json.get("stream"):
        ends = [chunk({}, reason), chunk(usage=_chat_usage(said)), b"data: [DONE]\n\n"]
        return Events([*_chat_chunks(said), *ends], tokens=OUTPUT, prompt_tokens=PROMPT)
    choice = {"index": 0, "message": message, "finish_reason": reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m"}
    return Whole(head | {"choices": [choice], "usage": _chat_usage(said)})


@dataclass(frozen=True)
class Whole:
    """An answer that is this document."""

    document: dict[str, Any]

    async def play(self, exchange: Exchange) -> None:
        exchange.received.prompt_tokens, exchange.received.tokens_produced = PROMPT, OUTPUT
        await exchange.document(self.document)


def _chat_call(place: int, name: str, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{place}", "type": "function", "function": function}


def _chat_chunks(said: Said) -> Iterator[bytes]:
    """One call after the other, as OpenAI sends them: its SDK takes the beginning of one for the end of the other."""
    yield chunk({"role": "assistant", "content": ""})
    yield from (chunk({"reasoning_content": piece}) for piece in _halves(said.thought))
    yield from (chunk({"content": piece}) for piece in _halves(said.words))
    for place, (name, arguments) in enumerate(said.calls):
        call = _chat_call(place, name, arguments)
        yield chunk({"tool_calls": [call | {"index": place, "function": {"name": name, "arguments": ""}}]})
        for piece in _halves(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": place, "function": {"arguments": piece}}]})


def _chat_usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": OUTPUT,
        "total_tokens": PROMPT + OUTPUT,
        "prompt_tokens_details": {"cached_tokens": CACHED},
        "completion_tokens_details": {"reasoning_tokens": THOUGHT if said.thought else 0},
    }


# Messages.


def read_messages(asked: Any) -> Asked:
    choice = asked.get("tool_choice") or {}
    content = asked["messages"][-1]["content"]
    blocks: list[Block] = [text(content)] if isinstance(content, str) else content
    thinks = (asked.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    return Asked(
        question=_last(asked["messages"]),
        tools={each["name"]: each["input_schema"] for each in asked.get("tools") or ()},
        must={"tool": choice.get("name"), "any": ""}.get(choice.get("type", "auto")),
        results=tuple(words_of(each.get("content")) for each in blocks if each["type"] == "tool_result"),
        form=((asked.get("output_config") or {}).get("format") or {}).get("schema"),
        keys=(),
        thinks=thinks,
    )


def write_messages(received: Received, said: Said) -> Script:
    blocks = (
        *([thinking(said.thought)] if said.thought else ()),
        *([text(said.words)] if said.words else ()),
        *(tool_use(name, input, f"toolu_{place}") for place, (name, input) in enumerate(said.calls)),
    )
    counts = Counts(PROMPT - CACHED, cache_read=CACHED, thinking=THOUGHT if said.thought else 0)
    kind = MessagesStream if received.json.get("stream") else MessagesPlain
    return kind(blocks=blocks, output=OUTPUT, counts=counts)


# Responses.


def read_responses(asked: Any) -> Asked:
    given, choice = asked["input"], asked.get("tool_choice")
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else given
    form = (asked.get("text") or {}).get("format") or {}
    question = _last(items)
    results = _trailing(items, lambda item: item.get("type") == "function_call_output")
    return Asked(
        question=question,
        tools={each["name"]: each.get("parameters", {}) for each in asked.get("tools") or ()},
        must=choice["name"] if isinstance(choice, dict) else "" if choice == "required" else None,
        results=tuple(words_of(each["output"]) for each in results),
        form=form.get("schema"),
        keys=tuple(QUOTED.findall(question)) if form.get("type") == "json_object" else (),
        thinks=(asked.get("reasoning") or {}).get("effort") not in (None, "none"),
    )


def write_responses(received: Received, said: Said) -> Script:
    items = list(_items(received, said))
    reasoning = THOUGHT if said.thought else 0
    if not received.json.get("stream"):
        return Answered(OUTPUT, PROMPT, reasoning=reasoning, cached=CACHED, output=items)
    return Events(list(_response_events(received, items, reasoning)), tokens=OUTPUT, prompt_tokens=PROMPT)


def _items(received: Received, said: Said) -> Iterator[dict[str, Any]]:
    if said.thought:
        summary = [{"type": "summary_text", "text": said.thought}]
        thought = {"id": f"rs_upstream{received.number:032x}", "type": "reasoning", "summary": summary}
        sealed = "reasoning.encrypted_content" in (received.json.get("include") or ())
        yield thought | ({"encrypted_content": "c2VhbGVk"} if sealed else {})
    if said.words:
        yield message(received, said.words)
    for place, (name, arguments) in enumerate(said.calls):
        call = {"id": f"fc_upstream{received.number:032x}{place}", "type": "function_call", "call_id": f"call_{place}"}
        yield call | {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False), "status": "completed"}


def _response_events(received: Received, items: list[Any], reasoning: int) -> Iterator[bytes]:
    received.prompt_tokens, received.tokens_produced = PROMPT, OUTPUT
    usage = usage_of(received, reasoning, CACHED)
    events = [
        ("response.created", {"response": response_of(received, "in_progress", [])}),
        ("response.in_progress", {"response": response_of(received, "in_progress", [])}),
        *(event for place, item in enumerate(items) for event in _item_events(place, item)),
        ("response.completed", {"response": response_of(received, "completed", items, usage)}),
    ]
    yield from (sse(type, sequence_number=number, **fields) for number, (type, fields) in enumerate(events))


def _item_events(place: int, item: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    where: dict[str, Any] = {"item_id": item["id"], "output_index": place}
    empty: dict[str, Any] = {
        "reasoning": {"summary": []},
        "message": {"content": []},
        "function_call": {"arguments": ""},
    }
    yield "response.output_item.added", {"output_index": place, "item": item | empty[item["type"]]}
    match item["type"]:
        case "reasoning":
            yield from _part_events(where | {"summary_index": 0}, "reasoning_summary", item["summary"][0])
        case "message":
            yield from _part_events(where | {"content_index": 0}, "output", item["content"][0])
        case "function_call":
            for piece in _halves(item["arguments"]):
                yield "response.function_call_arguments.delta", where | {"delta": piece}
            done = where | {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", done
    yield "response.output_item.done", {"output_index": place, "item": item}


def _part_events(where: dict[str, Any], kind: str, part: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    more: dict[str, Any] = {"logprobs": []} if kind == "output" else {}
    named = "response.content_part" if kind == "output" else "response.reasoning_summary_part"
    yield f"{named}.added", where | {"part": part | {"text": ""}}
    for piece in _halves(part["text"]):
        yield f"response.{kind}_text.delta", where | more | {"delta": piece}
    yield f"response.{kind}_text.done", where | more | {"text": part["text"]}
    yield f"{named}.done", where | {"part": part}


def _halves(whole: str) -> list[str]:
    """A text in two pieces, in none when there is no text."""
    middle = (len(whole) + 1) // 2
    return [whole[:middle], whole[middle:]] if whole else []


DIALECTS: dict[str, tuple[Callable[[Any], Asked], Callable[[Received, Said], Script]]] = {
    "chat/completions": (read_chat, write_chat),
    "messages": (read_messages, write_messages),
    "responses": (read_responses, write_responses),
}
