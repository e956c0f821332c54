"""A chat upstream's answers as messages: plain ones, and streams in the shapes of real servers."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Label, Wish, anthropic_messages, sse
from penstock.dialects.pairs import messages_to_chat as pair
from penstock.dialects.pairs.chat_as_messages import ChatAsMessages
from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed
from tests.rules.test_messages_to_chat import LONG, SHORT, TOOL, peek

LABEL = Label("mine", None, "req_7", 1_700_000_000)
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 9,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
USED = TokenUsage(10, 9, cached_input=4, reasoning=3, total=19)
REPORT = {
    "input_tokens": 6,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 4,
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 3},
}
WISH = peek(stream=True, tools=[TOOL, TOOL | {"name": LONG}], stop_sequences=["END"])
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "penstock:reasoning_content"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def tool_use(id: str, input: Any, name: str = "look") -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def call(id: str | None, arguments: Any, name: str | None = "look", **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def completion(message: Any, finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": finish, **more}
    return json.dumps({"id": "c", "model": "up", "choices": [choice], "usage": USAGE}).encode()


def told(raw: bytes, wish: Wish = WISH) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pair.answer(raw, wish=wish, label=LABEL).body)
    return found


# Plain answers.


def test_an_answer_is_a_message() -> None:
    plain = pair.answer(completion({"content": "Hello!"}), wish=WISH, label=LABEL)
    assert json.loads(plain.body) == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "mine",
        "content": [text("Hello!")],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": REPORT,
    }
    assert (plain.usage, plain.produced) == (USED, 9)


MESSAGES: dict[str, tuple[Any, list[Any]]] = {
    "nothing": ({"content": None}, []),
    "an empty text": ({"content": ""}, []),
    "reasoning": ({"content": "Yes.", "reasoning_content": "Hm."}, [THOUGHT, text("Yes.")]),
    "reasoning under two names": (
        {"content": "Yes.", "reasoning_content": "Hm.", "reasoning": "Hm."},
        [THOUGHT, text("Yes.")],
    ),
    "reasoning as others call it": (
        {"content": "Yes.", "reasoning": "Hm."},
        [THOUGHT | {"signature": "penstock:reasoning"}, text("Yes.")],
    ),
    "parts": (
        {"content": [{"type": "thinking", "thinking": [text("Hm.")]}, text("Yes.")]},
        [THOUGHT | {"signature": "penstock:content"}, text("Yes.")],
    ),
    "calls": (
        {"content": "I look.", "tool_calls": [call("t1", '{"at":"it"}'), call("t2", "", SHORT)]},
        [text("I look."), tool_use("t1", {"at": "it"}), tool_use("t2", {}, LONG)],
    ),
    "calls without ids": (
        {"tool_calls": [call(None, "{}"), call("", {"a": 1})]},
        [tool_use("toolu_7_0", {}), tool_use("toolu_7_1", {"a": 1})],
    ),
    "inputs that are none": (
        {"tool_calls": [call("t1", '{"at":'), call("t2", "[1]"), call("t3", "null")]},
        [tool_use("t1", {"INVALID_JSON": '{"at":'}), tool_use("t2", {"INVALID_JSON": "[1]"}), tool_use("t3", {})],
    ),
    "nonsense": ({"content": 5, "tool_calls": [7, {"function": 8}], "reasoning": {}}, [tool_use("toolu_7_0", {}, "")]),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_a_model_produced_becomes_blocks(name: str) -> None:
    message, blocks = MESSAGES[name]
    assert told(completion(message))["content"] == blocks


def test_numbers_of_an_input_stay_as_they_are() -> None:
    arguments = '{"a":1.10,"b":123456789012345678901234567890}'
    body = pair.answer(completion({"tool_calls": [call("t", arguments)]}), wish=WISH, label=LABEL).body
    assert f'"input":{arguments}'.encode() in body


@pytest.mark.parametrize(
    ("finish", "more", "message", "expected"),
    [
        ("stop", {}, {"content": "a"}, ("end_turn", None)),
        ("length", {}, {"content": "a"}, ("max_tokens", None)),
        ("content_filter", {}, {"content": "a"}, ("refusal", None)),
        ("tool_calls", {}, {"tool_calls": [call("t", "{}")]}, ("tool_use", None)),
        ("stop", {}, {"tool_calls": [call("t", "{}")]}, ("tool_use", None)),
        ("length", {}, {"tool_calls": [call("t", "{")]}, ("max_tokens", None)),
        ("stop", {"stop_reason": "END"}, {"content": "a"}, ("stop_sequence", "END")),
        ("stop", {"matched_stop": "END"}, {"content": "a"}, ("stop_sequence", "END")),
        ("stop", {"stop_reason": 128_009}, {"content": "a"}, ("end_turn", None)),
        ("stop", {"stop_reason": ["END"]}, {"content": "a"}, ("end_turn", None)),
        ("something_new", {}, {"content": "a"}, ("end_turn", None)),
        (None, {}, {"content": "a"}, ("end_turn", None)),
    ],
)
def test_how_it_ended_is_told(finish: str | None, more: Any, message: Any, expected: tuple[str, str | None]) -> None:
    found = told(completion(message, finish, **more))
    assert (found["stop_reason"], found["stop_sequence"]) == expected


def test_a_refusal_is_told_in_the_models_words() -> None:
    found = told(completion({"content": None, "refusal": "No."}))
    assert (found["content"], found["stop_reason"]) == ([text("No.")], "refusal")
    assert found["stop_details"] == {"type": "refusal", "category": None, "explanation": "No."}


def test_thinking_is_not_shown_to_a_caller_who_wants_none() -> None:
    raw = completion({"content": "Yes.", "reasoning_content": "Hm."})
    for thinking in ({"type": "disabled"}, {"type": "adaptive", "display": "omitted"}):
        assert told(raw, peek(thinking=thinking))["content"] == [text("Yes.")]


def test_a_caller_who_has_context_cleared_hears_that_nothing_was() -> None:
    wish = peek(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})
    assert told(completion({"content": "a"}), wish)["context_management"] == {"applied_edits": []}


def test_an_answer_that_nobody_counted_is_estimated() -> None:
    plain = pair.answer(b'{"choices":[{"message":{"content":"12345678"}}]}', wish=WISH, label=LABEL)
    assert (plain.usage, plain.produced) == (None, 2)
    assert json.loads(plain.body)["usage"]["output_tokens"] == 2
    assert json.loads(plain.body)["usage"]["input_tokens"] == WISH.text_bytes // 4


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"<html>", "not a JSON object"),
        (b"{}", "no choices"),
        (b'{"choices":[]}', "no choices"),
        (b'{"choices":"x"}', "no choices"),
        (b'{"error":{"message":"Broken."}}', "Broken"),
    ],
)
def test_what_is_no_answer_is_the_upstreams_failure(raw: bytes, words: str) -> None:
    with pytest.raises(UpstreamFailed, match=words):
        pair.answer(raw, wish=WISH, label=LABEL)


# Streams.


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return frame({"id": "c", "object": "chat.completion.chunk", "model": "up", "choices": [choice], **more})


def frame(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def calls(*pieces: dict[str, Any]) -> bytes:
    return chunk({"tool_calls": list(pieces)})


def piece(index: int | None, arguments: str | None = None, id: str | None = None, name: str | None = None) -> Any:
    found: dict[str, Any] = {"function": {"arguments": arguments, "name": name}, "id": id}
    return found if index is None else found | {"index": index}


COUNT = frame({"id": "c", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
STREAMS: dict[str, tuple[list[bytes], list[Any], str]] = {
    "OpenAI": (
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}),
            chunk({}, "stop"),
        ],
        [text("Hello")],
        "end_turn",
    ),
    "DeepSeek": (
        [
            chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
            chunk({"content": None, "reasoning_content": "H"}),
            chunk({"content": None, "reasoning_content": "m."}),
            chunk({"content": "Yes", "reasoning_content": None}),
            chunk({"content": ""}, "stop"),
        ],
        [THOUGHT, text("Yes")],
        "end_turn",
    ),
    "calls, one after the other": (
        [
            chunk({"content": "I look."}),
            calls(piece(0, "", "t1", "look")),
            calls(piece(0, '{"at"')),
            calls(piece(0, ':"it"}')),
            calls(piece(1, "", "t2", "look")),
            calls(piece(1, "{}")),
            chunk({}, "tool_calls"),
        ],
        [text("I look."), tool_use("t1", {"at": "it"}), tool_use("t2", {})],
        "tool_use",
    ),
    "calls at the same time": (
        [
            calls(piece(0, "", "t1", "look"), piece(1, "", "t2", SHORT), piece(2, "{}", "t3", "look")),
            calls(piece(1, '{"b"')),
            calls(piece(0, '{"a"'), piece(1, ":2")),
            calls(piece(0, ":1}")),
            calls(piece(1, "}")),
            calls(piece(0, " ")),
            chunk({}, "tool_calls"),
        ],
        [tool_use("t1", {"a": 1}), tool_use("t2", {"b": 2}, LONG), tool_use("t3", {})],
        "tool_use",
    ),
    "calls without inputs": (
        [calls(piece(0, "", "t1", "look")), calls(piece(1, None, "t2", "look")), chunk({}, "tool_calls")],
        [tool_use("t1", {}), tool_use("t2", {})],
        "tool_use",
    ),
    "calls that all have one place": (
        [calls(piece(0, '{"a":1}', "t1", "look")), calls(piece(0, '{"b":2}', "t2", "look")), chunk({}, "stop")],
        [tool_use("t1", {"a": 1}), tool_use("t2", {"b": 2})],
        "tool_use",
    ),
    "calls without places": (
        [calls(piece(None, '{"a":1}', "t1", "look"), piece(None, '{"b":2}', "t2", "look")), chunk({}, "tool_calls")],
        [tool_use("t1", {"a": 1}), tool_use("t2", {"b": 2})],
        "tool_use",
    ),
    "a name that comes later": (
        [calls(piece(0, "", "t1")), calls(piece(0, "", None, "look")), calls(piece(0, "{}")), chunk({}, "tool_calls")],
        [tool_use("t1", {})],
        "tool_use",
    ),
    "text behind a call": (
        [calls(piece(0, '{"a":1}', "t1", "look")), chunk({"content": "So."}), chunk({}, "tool_calls")],
        [tool_use("t1", {"a": 1}), text("So.")],
        "tool_use",
    ),
    "an input cut by the limit": (
        [calls(piece(0, '{"a":', "t1", "look")), chunk({}, "length")],
        [tool_use("t1", {})],
        "max_tokens",
    ),
    "a refusal": ([chunk({"refusal": "N"}), chunk({"refusal": "o."}), chunk({}, "stop")], [text("No.")], "refusal"),
    "all at once": ([chunk({"content": "Hello"}, "stop", usage=USAGE)], [text("Hello")], "end_turn"),
    "a message for a delta": (
        [frame({"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]})],
        [text("Hello")],
        "end_turn",
    ),
    "Azure and OpenRouter": (
        [
            b": OPENROUTER PROCESSING\n\n",
            frame({"choices": [], "model": "", "prompt_filter_results": []}),
            chunk({"content": "Hello"}, usage=None),
            frame({"choices": [{"index": 1, "delta": {"content": "other"}}]}),
            chunk({}, "stop"),
        ],
        [text("Hello")],
        "end_turn",
    ),
    "nothing": ([chunk({}, "stop")], [], "end_turn"),
    "no end": ([chunk({"content": "Hel"})], [text("Hel")], "end_turn"),
}


def opened(wish: Wish = WISH) -> ChatAsMessages:
    return pair.open_stream(wish=wish, label=LABEL)


def play(stream: ChatAsMessages, pieces: list[bytes]) -> bytes:
    splitter, out = sse.Splitter(), b""
    for piece in pieces:
        block, start = splitter.feed(piece), 0
        while start < len(block):
            run, _, end = stream.run(block, start)
            if end == start:
                end = sse.event_end(block, start)
                step = stream.feed(block[start:end])
                assert step.error is None
                run = step.out
            out, start = out + run, end
    return out + stream.terminator()


def message_of(raw: bytes) -> dict[str, Any]:
    """The message that a stream adds up to; strict about the order of its events."""
    message: dict[str, Any] = {}
    open, inputs, stopped = None, "", False
    for event in sse.events(raw):
        if event.startswith(b":"):
            continue
        data = json.loads(sse.data(event) or b"")
        assert event.startswith(b"event: " + data["type"].encode() + b"\n")
        assert not stopped
        match data["type"]:
            case "message_start":
                assert not message
                message = data["message"]
            case "content_block_start":
                assert open is None
                assert data["index"] == len(message["content"])
                open, inputs = data["index"], ""
                message["content"].append(data["content_block"])
            case "content_block_delta":
                assert data["index"] == open
                block, delta = message["content"][open], data["delta"]
                for name in ("text", "thinking", "signature"):
                    if name in delta:
                        block[name] += delta[name]
                inputs += delta.get("partial_json", "")
            case "content_block_stop":
                assert data["index"] == open
                with suppress(json.JSONDecodeError):  # what an upstream wrote need not be whole, nor JSON
                    message["content"][open]["input"] = json.loads(inputs)
                open = None
            case "message_delta":
                assert open is None
                message |= {**data["delta"], "usage": data["usage"], "penstock": data.get("penstock")}
            case "message_stop":
                stopped = True
            case kind:
                assert kind == "ping"
                assert message["content"] == []
    assert stopped
    return message


@pytest.mark.parametrize("name", STREAMS)
def test_a_servers_stream_becomes_a_message_wherever_it_is_cut(name: str) -> None:
    events, blocks, stop_reason = STREAMS[name]
    raw = b"".join([*events, COUNT, DONE])
    whole = play(opened(), [raw])
    message = message_of(whole)
    assert (message["content"], message["stop_reason"]) == (blocks, stop_reason)
    assert (message["usage"], message["model"], message["id"]) == (REPORT, "mine", "msg_7")
    assert play(opened(), [raw[at : at + 1] for at in range(len(raw))]) == whole
    for at in range(1, len(raw), 7):
        assert play(opened(), [raw[:at], raw[at:]]) == whole


def test_text_goes_on_at_once_and_so_does_an_input() -> None:
    stream = opened()
    assert b'"text":"Hel"' in stream.feed(chunk({"content": "Hel"})).out
    assert b'"text":"lo"' in stream.feed(chunk({"content": "lo"})).out
    began = stream.feed(calls(piece(0, '{"a"', "t1", "look"))).out
    assert [b"content_block_stop" in began, b'"partial_json":"{\\"a\\""' in began] == [True, True]
    assert b"t2" not in stream.feed(calls(piece(1, "{}", "t2", "look"))).out
    assert b"t2" in stream.feed(calls(piece(0, ":1}"))).out


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=20)), max_size=12))
def test_text_that_is_taken_many_events_at_a_time_comes_to_the_same(texts: list[tuple[bool, str]]) -> None:
    """Compact events begin alike, the others are written otherwise."""
    events = []
    for compact, words in texts:
        raw = chunk({"content": words})
        events.append(raw.replace(b": ", b":").replace(b", ", b",").replace(b"data:", b"data: ") if compact else raw)
    one_by_one, in_bulk = opened(), opened()
    steps = [one_by_one.feed(event) for event in events]
    block, start, out, produced = b"".join(events), 0, b"", 0
    while start < len(block):
        run, tokens, end = in_bulk.run(block, start)
        if end == start:
            end = sse.event_end(block, start)
            step = in_bulk.feed(block[start:end])
            run, tokens = step.out, step.produced
        start, out, produced = end, out + run, produced + tokens
    assert (out, produced) == (b"".join(step.out for step in steps), sum(step.produced for step in steps))


def test_what_is_no_text_is_not_taken_for_one() -> None:
    stream = opened()
    plain = chunk({"content": "a"}).replace(b" ", b"")
    stream.feed(plain)
    assert stream.run(plain * 3, 0)[1:] == (3, 3 * len(plain))
    assert stream.run(plain.replace(b'"a"', b'"\xff"'), 0) == (b"", 0, 0)
    stream.feed(calls(piece(0, "{", "t1", "look")))
    assert stream.run(plain, 0) == (b"", 0, 0)


def test_a_stream_says_what_it_used_in_its_last_events_alone() -> None:
    stream = opened()
    steps = [stream.feed(event) for event in (chunk({"content": "Hello there"}), chunk({}, "stop"), COUNT, DONE)]
    assert [step.usage for step in steps] == [None, None, USED, None]
    assert [step.produced for step in steps] == [1, 0, 0, 0]
    assert [step.finish_reason for step in steps] == [None, "stop", None, None]
    assert [step.done for step in steps] == [False, False, False, True]
    assert steps[2].out + steps[3].out == b""
    stream.usage_chunk(TokenUsage(10, 11, total=21))
    assert message_of(b"".join(step.out for step in steps) + stream.terminator())["usage"]["output_tokens"] == 11


def test_thinking_that_is_not_shown_is_counted() -> None:
    stream = opened(peek(thinking={"type": "disabled"}))
    step = stream.feed(chunk({"reasoning_content": "Let me think about it for a while."}))
    assert step.produced == 9
    assert b"think" not in step.out


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (frame({"error": {"message": "Broken.", "code": 500}}), "Broken."),
        (frame({"error": "Broken."}), "Broken."),
        (frame({"object": "error", "message": "Broken."}), "Broken."),
        (frame({"choices": [{"finish_reason": "error"}], "error": {"message": "Broken."}}), "Broken."),
        (b"data: <html>\n\n", "The provider sent an event that is no chat completion chunk."),
        (b"data: [1]\n\n", "The provider sent an event that is no chat completion chunk."),
    ],
)
def test_an_error_in_the_stream_is_told_and_is_the_last_that_comes(event: bytes, words: str) -> None:
    stream = opened()
    stream.feed(chunk({"content": "Hel"}))
    step = stream.feed(event)
    assert (step.out, step.error) == (b"", words)
    sent = stream.error_event(type="upstream_error", code="no_healthy_provider", message="broke", param=None)
    assert json.loads(sse.data(sent) or b"")["error"] == {"type": "overloaded_error", "message": "broke"}
    assert stream.terminator() == b""


CUT = [
    chunk({"reasoning_content": "Hm."}),
    chunk({"content": "a"}),
    chunk({"content": "b"}),
    *STREAMS["calls at the same time"][0][:-1],
]


@pytest.mark.parametrize("sent", range(len(CUT)))
def test_a_stream_that_money_ends_is_whole_up_to_the_event_that_was_too_dear(sent: int) -> None:
    stream = opened()
    out = b"".join(stream.feed(event).out for event in CUT[:sent])
    produced = stream.feed(CUT[sent]).produced  # is not sent
    if not produced:
        return
    out += stream.final_chunk(finish_reason="length", reason="insufficient_balance")
    out += stream.usage_chunk(TokenUsage(10, 2, total=12)) + stream.terminator()
    message = message_of(out)
    assert (message["stop_reason"], message["penstock"]) == ("max_tokens", {"reason": "insufficient_balance"})
    assert message["usage"]["output_tokens"] == 2


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["content", "tool_calls", "function", "index", "name", "arguments", "id", "delta", "thinking"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
CHUNKS = st.builds(
    lambda delta, finish, usage: frame(
        {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": usage}
    ),
    ODD,
    st.sampled_from([None, None, None, "stop", 5]),
    ODD,
)
RAW = st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n")


@given(
    st.lists(
        CHUNKS | ODD.map(frame) | RAW | st.builds(calls, st.builds(piece, st.integers(0, 2), st.text(max_size=3))),
        max_size=8,
    )
)
def test_whatever_comes_is_read_and_what_goes_out_is_in_order(events: list[bytes]) -> None:
    stream = opened()
    out = b""
    for event in events:
        step = stream.feed(event)
        assert step.produced >= 0
        out += step.out
    message_of(out + stream.terminator())


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[bytes], list[Any]]:
    """Calls whose inputs come piece by piece in any order, and what they add up to."""
    inputs = draw(st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), min_size=1, max_size=4))
    events = [calls(piece(place, "", f"t{place}", "look")) for place in range(len(inputs))]
    rests = [json.dumps(input, ensure_ascii=False) for input in inputs]
    while any(rests):
        place = draw(st.sampled_from([place for place, rest in enumerate(rests) if rest]))
        size = draw(st.integers(1, len(rests[place])))
        events.append(calls(piece(place, rests[place][:size])))
        rests[place] = rests[place][size:]
    return events, [tool_use(f"t{place}", input) for place, input in enumerate(inputs)]


@given(interleaved())
def test_calls_that_grow_together_come_out_whole_one_after_the_other(drawn: tuple[list[bytes], list[Any]]) -> None:
    events, blocks = drawn
    assert message_of(play(opened(), [*events, chunk({}, "tool_calls"), DONE]))["content"] == blocks


@given(
    st.lists(st.text('{}"\\\\,:a1 \\n[]', min_size=1, max_size=6) | st.sampled_from(['{"a":', '"}', "{}"]), max_size=8)
)
def test_a_call_ends_as_soon_as_its_input_is_an_object(texts: list[str]) -> None:
    stream = opened()
    stream.feed(calls(piece(0, "", "t1", "look"), piece(1, "", "t2", "look")))
    for count, more in enumerate(texts, 1):
        has_ended = b"content_block_stop" in stream.feed(calls(piece(0, more))).out
        try:
            is_object = isinstance(json.loads("".join(texts[:count])), dict)
        except ValueError:
            is_object = False
        assert has_ended == is_object
        if has_ended:
            break


def test_what_was_thought_goes_back_as_it_came() -> None:
    message = message_of(play(opened(), [*STREAMS["DeepSeek"][0], DONE]))
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": message["content"]}]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [*turns, turns[0]]}).encode()
    wish = anthropic_messages.peek(body, max_output_tokens=10)
    sent = json.loads(pair.request(wish, model="up", output_limit=9, limit_field="max_tokens", ask_usage=False))
    assert sent["messages"][1] == {"role": "assistant", "content": "Yes", "reasoning_content": "Hm."}


@pytest.mark.parametrize("id", ["call_1", "", "an__extra__id"])
def test_what_a_server_wants_back_with_a_call_comes_back(id: str) -> None:
    extra = {"google": {"thought_signature": "CiQB/+8=" * 50}}
    message = told(completion({"tool_calls": [call(id, "{}", extra_content=extra)]}))
    (block,) = message["content"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"])
    result = {"type": "tool_result", "tool_use_id": block["id"], "content": "ok"}
    turns = [{"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode()
    wish = anthropic_messages.peek(body, max_output_tokens=10)
    sent = json.loads(pair.request(wish, model="up", output_limit=9, limit_field="max_tokens", ask_usage=False))
    (called,) = sent["messages"][0]["tool_calls"]
    assert called["extra_content"] == extra
    assert called["id"] == sent["messages"][1]["tool_call_id"] == (id or "toolu_7_0")


def test_an_id_that_only_looks_so_stays_as_it_is() -> None:
    for id in ("call__extra__", "call__extra__eA", "call__extra__===", "__extra__"):
        block = tool_use(id, {})
        assert carried(block)["tool_calls"][0] == call(id, "{}") | {"type": "function"}


def carried(block: Any) -> Any:
    """What an answer with this block goes up as."""
    turns = [{"role": "assistant", "content": [block]}, {"role": "user", "content": "?"}]
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode()
    wish = anthropic_messages.peek(body, max_output_tokens=10)
    sent = json.loads(pair.request(wish, model="up", output_limit=9, limit_field="max_tokens", ask_usage=False))
    return sent["messages"][0]
