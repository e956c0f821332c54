"""Requests, reports and tools made to be misread, in every dialect and on every way between two of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from msgspec import Raw

from penstock.dialects import (
    Label,
    Pair,
    Wish,
    anthropic_messages,
    json_fields,
    openai_chat,
    openai_completions,
    openai_responses,
)
from penstock.dialects.anthropic_usage import read_report
from penstock.dialects.pairs import chat_to_messages, messages_to_chat, responses_to_chat, responses_to_messages
from penstock.dialects.pairs.responses_items import sealed
from penstock.dialects.usage import TokenUsage, read_usage
from penstock.errors import InvalidRequest
from penstock.money.prices import Price, UsdTariff
from penstock.relay.meter import Meter
from tests.upstream_messages import event
from tests.wishes import WISH

MOST = 1_000_000
Peek = Callable[[bytes], Wish]
ASK = {"role": "user", "content": "Go on."}
PEEK = partial(anthropic_messages.peek, max_output_tokens=MOST)
LABEL = Label("m", None, "req_1", 1_700_000_000)
NEEDED: dict[Any, dict[str, Any]] = {
    openai_chat: {"messages": [ASK]},
    openai_completions: {"prompt": "Go on."},
    openai_responses: {"input": "Go on."},
    anthropic_messages: {"messages": [ASK], "max_tokens": 5},
}


def body(dialect: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "m", **NEEDED[dialect], **fields}).encode()


def sent(dialect: Any, pair: Pair, raw: bytes) -> bytes:
    """What goes upstream for a body."""
    wish = dialect.peek(raw, max_output_tokens=MOST)
    return pair.request(wish, model="up", output_limit=5, limit_field="max_tokens", ask_usage=True)


# Whatever a body is made of, reading it takes a time in proportion to its size. Each of these took a minute or more.

SEALED = sealed([{"type": "reasoning.text", "text": "t", "signature": "s"}])
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
ENDLESS: dict[str, Callable[[], dict[str, Any]]] = {
    "tools": lambda: {"tools": [{"type": "function", "name": f"f{number}"} for number in range(60_000)]},
    "instructions": lambda: {"input": [{"role": "system", "content": "s" * 150}] * 60_000},
    "what is said after a call": lambda: {
        "input": [{"role": "assistant", "content": "a"}, CALL] + [{"role": "assistant", "content": "b" * 150}] * 60_000
    },
    "reasoning": lambda: {
        "input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t" * 200}]}] * 60_000 + [ASK]
    },
    "sealed reasoning": lambda: {"input": [{"type": "reasoning", "encrypted_content": SEALED}] * 100_000 + [ASK]},
}


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them are taken than usual."""
    monkeypatch.setattr(json_fields, "MOST_PARTS", 1_000_000)


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("of", ENDLESS)
def test_a_response_is_asked_for_in_a_time_like_its_size(of: str) -> None:
    began_s = time.process_time()
    sent(openai_responses, responses_to_chat, body(openai_responses, **ENDLESS[of]()))
    assert time.process_time() - began_s < 8


@pytest.mark.usefixtures("crowded")
def test_thinking_is_carried_over_in_a_time_like_its_size() -> None:
    thought = {"type": "thinking", "thinking": "t" * 200, "signature": "penstock:reasoning"}
    raw = body(anthropic_messages, messages=[{"role": "assistant", "content": [thought] * 60_000}, ASK])
    began_s = time.process_time()
    assert b"t" * 12_000_000 in sent(anthropic_messages, messages_to_chat, raw)
    assert time.process_time() - began_s < 8


# So does reading an event of any size, and an event behind many others.

NAMED = {"name": "f", "arguments": ""}
TWO_CALLS = [{"index": place, "id": f"c{place}", "function": NAMED} for place in (0, 1)]


def many(arguments: str) -> list[Any]:
    return [{"index": place, "function": {"name": "f", "arguments": arguments}} for place in range(50_000)]


def growing(index: int, text: str, times: int) -> list[Any]:
    return [{"index": index, "function": {"arguments": text}}] * times


CALLS: dict[str, list[Any]] = {
    "many calls": many("{"),
    "many calls that are whole": many("{}"),
    "a second call that grows behind one that is not whole": [
        *TWO_CALLS,
        *growing(0, '{"a": "' + "x" * 4_000_000, 1),
        *growing(1, "x", 40_000),
    ],
    "a first call that grows before another": [*TWO_CALLS, *growing(0, '{"a": "', 1), *growing(0, "}" * 60, 60_000)],
    "a call without a name": growing(0, "x" * 1_000, 40_000),
}


@pytest.mark.parametrize("pair", [messages_to_chat, responses_to_chat])
@pytest.mark.parametrize("of", CALLS)
def test_calls_are_written_in_a_time_like_their_size(of: str, pair: Pair) -> None:
    dialect = anthropic_messages if pair is messages_to_chat else openai_responses
    wish = dialect.peek(body(dialect, stream=True), max_output_tokens=MOST)
    stream = pair.open_stream(wish=wish, label=LABEL)
    events = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": CALLS[of]}}]}).encode()
    began_s = time.process_time()
    assert stream.feed(b"data: " + events + b"\n\n").produced > 10_000
    assert stream.terminator()
    assert time.process_time() - began_s < 20


def test_parts_of_parts_are_read_in_a_time_like_their_size() -> None:
    wish = PEEK(body(anthropic_messages, stream=True))
    stream = messages_to_chat.open_stream(wish=wish, label=LABEL)
    parts = b'[{"thinking":' * 400 + b"[" + b'"a",' * 200_000 + b'"b"]' + b"}]" * 400
    began_s = time.process_time()
    assert stream.feed(b'data: {"choices":[{"index":0,"delta":{"content":' + parts + b"}}]}\n\n").produced > 50_000
    assert time.process_time() - began_s < 10


def test_thinking_is_read_in_a_time_like_its_size() -> None:
    wish = openai_chat.peek(body(openai_chat, stream=True), max_output_tokens=MOST)
    stream = chat_to_messages.open_stream(wish=wish, label=LABEL)
    thought = event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "t" * 4_000})
    began_s = time.process_time()
    for _ in range(20_000):
        assert stream.feed(thought).produced == 1_000
    signed = stream.feed(event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "s"}))
    assert len(signed.out) > 80_000_000
    assert time.process_time() - began_s < 20


@pytest.mark.parametrize("pair", [responses_to_chat, responses_to_messages])
def test_an_input_that_only_a_lax_reader_reads_is_refused(pair: Pair) -> None:
    raw = body(openai_responses, input=[ASK | {"x": "ODD"}]).replace(b'"ODD"', b"1e999")
    with pytest.raises(InvalidRequest) as refusal:
        sent(openai_responses, pair, raw)
    assert refusal.value.param == "input"


# More answers than are paid for, and what is kept where everybody's key could find it.


@pytest.mark.parametrize("dialect", NEEDED)
@pytest.mark.parametrize("name", ["n_cmpl", "N_Cmpl", "best_of"])
def test_more_answers_than_are_reckoned_with_are_refused(dialect: Any, name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        dialect.peek(body(dialect, **{name: 100}), max_output_tokens=MOST)
    assert refusal.value.param == name


@pytest.mark.parametrize("dialect", [openai_responses, anthropic_messages])
def test_where_there_is_one_answer_one_may_be_asked_for(dialect: Any) -> None:
    assert dialect.peek(body(dialect, n=1), max_output_tokens=MOST).choices == 1
    with pytest.raises(InvalidRequest, match="one answer"):
        dialect.peek(body(dialect, n=2), max_output_tokens=MOST)


@pytest.mark.parametrize(
    "peek", [anthropic_messages.peek_prompt, lambda raw: anthropic_messages.peek(raw, max_output_tokens=MOST)]
)
@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
def test_a_thread_that_an_upstream_would_keep_for_its_key_is_refused(
    peek: Callable[[bytes], Wish], thread: Any
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        peek(body(anthropic_messages, thread=thread))
    assert refusal.value.param == "thread"


# Documents, whose size says nothing of their tokens.

PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
UNMEASURED: list[tuple[Any, dict[str, Any]]] = [
    (anthropic_messages, {"type": "document", "source": PDF}),
    (anthropic_messages, {"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}),
    (anthropic_messages, {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document", "source": PDF}]}),
    (openai_chat, {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE"}}),
    (openai_chat, {"type": "video_url", "video_url": {"url": "https://x/a.mp4"}}),
    (openai_responses, {"type": "input_file", "file_url": "https://x/a.pdf"}),
]
MEASURED: list[tuple[Any, dict[str, Any]]] = [
    (anthropic_messages, {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}),
    (anthropic_messages, {"type": "image", "source": {"type": "url", "url": "https://x/a.png"}}),
    (openai_chat, {"type": "image_url", "image_url": {"url": "https://x/a.png"}}),
    (openai_responses, {"type": "input_image", "image_url": "https://x/a.png"}),
]


@pytest.mark.parametrize(("dialect", "part"), [*UNMEASURED, *MEASURED])
def test_a_document_is_told_from_what_a_body_bounds(dialect: Any, part: dict[str, Any]) -> None:
    field = "input" if dialect is openai_responses else "messages"
    wish = dialect.peek(body(dialect, **{field: [{"role": "user", "content": [part]}]}), max_output_tokens=MOST)
    assert wish.unmeasured == ((dialect, part) in UNMEASURED)


# What Messages upstreams report.

START = event("message_start", message={"content": [], "usage": {"input_tokens": 7, "output_tokens": 1}})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "word " * 100})


@pytest.mark.parametrize("report", [None, {}, {"input_tokens": 7}, {"output_tokens": "5"}, {"output_tokens": -5}, 5])
def test_a_report_without_a_count_of_output_does_not_undo_what_was_estimated(report: Any) -> None:
    meter = Meter(UsdTariff(Price(1, 1, 1, 1)), 3)
    stream = anthropic_messages.open_stream(wish=WISH, label=LABEL)
    for raw in (START, DELTA, event("message_delta", delta={"stop_reason": "end_turn"}, usage=report)):
        step = stream.feed(raw)
        meter.feed(step.produced, step.usage)
    assert (meter.tokens().input, meter.output) == (7, 125)


@pytest.mark.parametrize("odd", [5, "x", [], None, {"thinking_tokens": -1}, {"thinking_tokens": 1.5}])
@pytest.mark.parametrize("name", ["output_tokens_details", "cache_creation", "iterations"])
def test_an_odd_detail_of_a_report_is_left_out_and_the_counts_hold(name: str, odd: Any) -> None:
    report = json.dumps({"input_tokens": 7, "output_tokens": 5, name: odd}).encode()
    assert read_report(Raw(report)).counted() == TokenUsage(7, 5, total=12)


def test_what_a_provider_did_beside_the_message_is_counted() -> None:
    beside = {"input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}
    iterations = [
        {"type": "compaction", **beside, "cache_creation": {"ephemeral_1h_input_tokens": 4}},
        {"type": "message", "input_tokens": 7, "output_tokens": 5},
    ]
    report = json.dumps({"input_tokens": 7, "output_tokens": 5, "iterations": iterations}).encode()
    counted = read_report(Raw(report)).counted()
    assert counted == TokenUsage(114, 25, cached_input=3, total=139, cache_write=4, cache_write_1h=4)


# What upstreams report in any dialect.

ODD_REPORTS: list[dict[str, Any]] = [
    {"total_tokens": -5},
    {"input_tokens": 7.0, "prompt_tokens": 7.0},
    {"input_tokens_details": 5, "prompt_tokens_details": 5},
]


@pytest.mark.parametrize("odd", ODD_REPORTS)
@pytest.mark.parametrize("read", [openai_responses.read_usage, read_usage, lambda raw: read_report(raw).counted()])
def test_a_report_keeps_its_counts_whatever_else_is_odd_in_it(read: Any, odd: dict[str, Any]) -> None:
    report = {"input_tokens": 7, "output_tokens": 5, "prompt_tokens": 7, "completion_tokens": 5, **odd}
    assert read(Raw(json.dumps(report).encode())) == TokenUsage(7, 5, total=12)


@pytest.mark.parametrize("usage", [5, "x", [], {"prompt_tokens": 7.0, "completion_tokens": 5}, {"prompt_tokens": -1}])
def test_a_chats_text_is_in_the_response_whatever_is_reported_beside_it(usage: Any) -> None:
    wish = openai_responses.peek(body(openai_responses), max_output_tokens=MOST)
    stream = responses_to_chat.open_stream(wish=wish, label=LABEL)
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hello"}}], "usage": usage}
    step = stream.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert b'"delta":"Hello"' in step.out
    assert step.usage in (None, TokenUsage(7, 5, total=12))


def test_output_is_counted_once_where_a_message_begins_with_a_count() -> None:
    meter = Meter(UsdTariff(Price(1, 1, 1, 1)), 3)
    stream = chat_to_messages.open_stream(wish=WISH, label=LABEL)
    for raw in (START, DELTA):
        step = stream.feed(raw)
        meter.feed(step.produced, step.usage)
    assert (meter.tokens().input, meter.output) == (7, 125)


MANY = 20_001
TEXT = {"type": "text", "text": "x"}
INPUT_TEXT = {"type": "input_text", "text": "x"}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [TEXT] * MANY}


@pytest.mark.parametrize(
    ("dialect", "field", "said"),
    [
        (openai_chat, "messages", [{"role": "user", "content": "x"}] * MANY),
        (openai_chat, "messages", [{"role": "user", "content": [TEXT] * 10_000}] * 2),
        (anthropic_messages, "messages", [{"role": "user", "content": "x"}] * MANY),
        (anthropic_messages, "messages", [{"role": "user", "content": [TEXT] * 10_001}] * 2),
        (anthropic_messages, "messages", [{"role": "user", "content": [RESULT]}]),
        (openai_responses, "input", [{"role": "user", "content": "x"}] * MANY),
        (openai_responses, "input", [{"role": "user", "content": [INPUT_TEXT] * 10_000}] * 2),
        (openai_responses, "input", [{"type": "function_call_output", "output": [INPUT_TEXT] * MANY}]),
    ],
)
def test_a_crowd_of_messages_or_parts_is_refused_before_it_is_weighed(dialect: Any, field: str, said: Any) -> None:
    with pytest.raises(InvalidRequest, match="more than 20000") as refused:
        dialect.peek(body(dialect, **{field: said}), max_output_tokens=MOST)
    assert refused.value.param == field
    fewer = body(dialect, **{field: [{"role": "user", "content": "x"}] * 20_000})
    assert dialect.peek(fewer, max_output_tokens=MOST).text_bytes > 20_000
