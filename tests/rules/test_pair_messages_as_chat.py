"""A Messages upstream's answers as chat: plain ones, transcripts of streams, and conversations there and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from penstock.dialects import Label, Plain, Wish, openai_chat, sse
from penstock.dialects.pairs import chat_to_messages
from penstock.dialects.pairs.messages_as_chat import REFUSED, MessagesAsChat
from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed

LABEL = Label(model="mine", id_prefix="cmpl-", id="req_7", created_s=9)
SAID = {"type": "text", "text": "Hello."}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "sig"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
OTHER = {"type": "tool_use", "id": "toolu_2", "name": "clock", "input": {}}
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 30,
    "cache_creation_input_tokens": 20,
    "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 5},
    "output_tokens": 8,
    "output_tokens_details": {"thinking_tokens": 3},
}
COUNTED = TokenUsage(60, 8, 30, 3, 68, cache_write=20, cache_write_1h=5)


def wish(**fields: Any) -> Wish:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return openai_chat.peek(json.dumps(body).encode(), max_output_tokens=10_000)


def message(*content: Any, stop: str = "end_turn", **more: Any) -> bytes:
    return json.dumps(
        {
            "id": "msg_up",
            "type": "message",
            "role": "assistant",
            "model": "claude-up",
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": USAGE,
            **more,
        }
    ).encode()


def read(body: bytes, *, label: Label = LABEL, **fields: Any) -> tuple[Plain, Any]:
    plain = chat_to_messages.answer(body, wish=wish(**fields), label=label)
    ChatCompletion.model_validate_json(plain.body, strict=True)
    return plain, json.loads(plain.body)


def test_a_message_is_a_completion_with_our_names_and_its_count() -> None:
    plain, answer = read(message(SAID))
    assert (plain.usage, plain.produced) == (COUNTED, 8)
    assert (answer["id"], answer["model"], answer["created"]) == ("cmpl-7", "mine", 9)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 60,
        "completion_tokens": 8,
        "total_tokens": 68,
        "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 20},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_without_names_of_ours_it_keeps_the_upstreams_model() -> None:
    _, answer = read(message(SAID), label=Label(None, None, "req_7", 9))
    assert (answer["id"], answer["model"]) == ("chatcmpl-7", "claude-up")


def test_thinking_and_parallel_tools_are_all_there() -> None:
    _, answer = read(message(THOUGHT, {"type": "redacted_thinking", "data": "x"}, SAID, CALL, OTHER, stop="tool_use"))
    said = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert (said["content"], said["reasoning_content"]) == ("Hello.", "Hm.")
    assert [detail["type"] for detail in said["reasoning_details"]] == ["reasoning.text", "reasoning.encrypted"]
    assert said["tool_calls"] == [
        {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
        {"id": "toolu_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
    ]


def test_tools_alone_have_no_content_and_a_caller_of_old_gets_a_function_call() -> None:
    assert read(message(CALL, stop="tool_use"))[1]["choices"][0]["message"]["content"] is None
    _, answer = read(message(CALL, stop="tool_use"), functions=[{"name": "weather"}])
    said = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "function_call"
    assert said["function_call"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert "tool_calls" not in said


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("something_new", "stop"),
    ],
)
def test_every_reason_to_stop_has_its_word(stop: str, finish: str) -> None:
    assert read(message(SAID, stop=stop))[1]["choices"][0]["finish_reason"] == finish


def test_a_refusal_says_so_in_its_own_words_or_ours() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "Not that."}
    refused = read(message(SAID, stop="refusal", stop_details=details))[1]["choices"][0]["message"]
    assert (refused["content"], refused["refusal"]) == ("Hello.", "Not that.")
    assert read(message(stop="refusal"))[1]["choices"][0]["message"]["refusal"] == REFUSED


def test_without_a_count_the_tokens_are_estimated_from_all_that_was_said() -> None:
    plain, answer = read(message(SAID, THOUGHT, CALL, usage=None))
    assert plain.usage is None
    assert "usage" not in answer
    assert plain.produced == -(-(len("Hello.Hm.weather") + len('{"city": "Paris"}')) // 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"nonsense", "not a JSON object"),
        (b'{"type":"message","content":5}', "not a message"),
        (b'{"id":"x","choices":[]}', "not a message"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', "Overloaded"),
    ],
)
def test_what_is_no_message_is_the_upstreams_failure(body: bytes, words: str) -> None:
    with pytest.raises(UpstreamFailed, match=words):
        chat_to_messages.answer(body, wish=wish(), label=LABEL)


# Streams.


def event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()


def begin(**usage: Any) -> bytes:
    started = {**json.loads(message()), "stop_reason": None, "usage": {**USAGE, "output_tokens": 1, **usage}}
    return event("message_start", message=started)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    return [
        event("content_block_start", index=index, content_block=start),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


def end(stop: str = "end_turn", **delta: Any) -> list[bytes]:
    ended = {"stop_reason": stop, "stop_sequence": None, **delta}
    return [event("message_delta", delta=ended, usage={"output_tokens": 8}), event("message_stop")]


def text_block(index: int, *words: str) -> list[bytes]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in words))


def open_stream(**fields: Any) -> MessagesAsChat:
    return chat_to_messages.open_stream(wish=wish(stream=True, **fields), label=LABEL)


def frames(sent: bytes) -> list[Any]:
    data = [sse.data(each) or b"" for each in sse.events(sent)]
    found = [each.decode() if each == b"[DONE]" else json.loads(each) for each in data]
    for each in found:
        if isinstance(each, dict) and "error" not in each:
            ChatCompletionChunk.model_validate(each, strict=True)
    return found


def play(stream: MessagesAsChat, events: list[bytes]) -> tuple[list[Any], TokenUsage | None, int]:
    steps = [stream.feed(each) for each in events]
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    usage = [step.usage for step in steps if step.usage is not None]
    out = b"".join(step.out for step in steps)
    return frames(out + stream.terminator()), usage[-1] if usage else None, sum(step.produced for step in steps)


def deltas(sent: list[Any]) -> list[Any]:
    return [frame["choices"][0]["delta"] for frame in sent if isinstance(frame, dict)]


def test_a_stream_of_text_is_chunks_with_one_end() -> None:
    sent, usage, produced = play(open_stream(), [begin(), event("ping"), *text_block(0, "Hel", "lo."), *end()])
    assert deltas(sent) == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo."}, {}]
    assert [frame["choices"][0]["finish_reason"] for frame in sent[:-1]] == [None, None, None, "stop"]
    assert {(frame["id"], frame["model"], frame["created"]) for frame in sent[:-1]} == {("cmpl-7", "mine", 9)}
    assert (sent[-1], usage, produced) == ("[DONE]", COUNTED, 2)


def test_the_prompt_is_counted_when_the_stream_begins() -> None:
    step = open_stream().feed(begin())
    assert (step.out, step.usage) == (b"", TokenUsage(60, 0, 30, 0, 60, cache_write=20, cache_write_1h=5))


def test_what_was_not_counted_anew_is_not_taken_for_counted() -> None:
    for usage in ({}, {"usage": {"input_tokens": 10}}, {"usage": None}, {"usage": {"output_tokens": "many"}}):
        stream = open_stream()
        stream.feed(begin())
        assert stream.feed(event("message_delta", delta={"stop_reason": "end_turn"}, **usage)).usage is None


def test_the_usage_chunk_comes_after_the_last_and_before_the_end() -> None:
    stream = open_stream(stream_options={"include_usage": True})
    out = b"".join(stream.feed(each).out for each in [begin(), *text_block(0, "x"), *end()])
    *_, last, usage, done = frames(out + stream.usage_chunk(COUNTED) + stream.terminator())
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 68, "[DONE]")


def test_thinking_streams_and_is_signed_when_it_ends() -> None:
    thinking = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "H"},
        {"type": "thinking_delta", "thinking": "m."},
        {"type": "signature_delta", "signature": "sig"},
    )
    hidden = block(1, {"type": "redacted_thinking", "data": "x"})
    sent, _, produced = play(open_stream(), [begin(), *thinking, *hidden, *text_block(2, "Yes"), *end()])
    assert deltas(sent)[1:] == [
        {"reasoning_content": "H"},
        {"reasoning_content": "m."},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": "sig"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"content": "Yes"},
        {},
    ]
    assert produced == 4


def tool_block(index: int, id: str, name: str, *json_parts: str) -> list[bytes]:
    parts = [{"type": "input_json_delta", "partial_json": part} for part in json_parts]
    return block(index, {"type": "tool_use", "id": id, "name": name, "input": {}}, *parts)


def test_parallel_tools_are_numbered_from_nought_and_have_arguments_even_when_none_came() -> None:
    tools = [*tool_block(1, "a", "weather", "", '{"city":', '"Paris"}'), *tool_block(2, "b", "clock", "")]
    sent, _, _ = play(open_stream(), [begin(), *text_block(0, "Look."), *tools, *end("tool_use")])
    calls = [delta["tool_calls"][0] for delta in deltas(sent) if "tool_calls" in delta]
    assert calls == [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "clock", "arguments": ""}},
        {"index": 1, "function": {"arguments": "{}"}},
    ]
    assert sent[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_caller_of_old_streams_a_function_call() -> None:
    stream = open_stream(functions=[{"name": "weather"}])
    sent, _, _ = play(stream, [begin(), *tool_block(0, "a", "weather", "{}"), *end("tool_use")])
    assert [delta.get("function_call") for delta in deltas(sent)[1:3]] == [
        {"name": "weather", "arguments": ""},
        {"arguments": "{}"},
    ]
    assert sent[-2]["choices"][0]["finish_reason"] == "function_call"


def test_arguments_that_come_at_once_are_passed_at_once() -> None:
    whole = block(0, CALL)
    sent, _, _ = play(open_stream(), [begin(), *whole, *end("tool_use")])
    assert json.loads(deltas(sent)[1]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    assert len(sent) == 4


def test_a_refusal_is_said_before_the_end() -> None:
    sent, _, _ = play(open_stream(), [begin(), *end("refusal")])
    assert deltas(sent) == [{"role": "assistant", "content": ""}, {"refusal": REFUSED}, {}]
    assert sent[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_an_error_in_mid_stream_is_told_and_no_chunk_says_that_all_went_well() -> None:
    stream = open_stream()
    for each in [begin(), *text_block(0, "x")]:
        stream.feed(each)
    stream.feed(end()[0])
    step = stream.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    assert (step.error, step.out) == ("Overloaded", b"")
    rest = stream.error_event(type="upstream_error", code="upstream_failed", message="Overloaded", param=None)
    error, done = frames(rest + stream.terminator())
    assert (error["error"]["message"], done) == ("Overloaded", "[DONE]")


def test_a_stream_that_we_end_says_why() -> None:
    stream = open_stream()
    stream.feed(begin())
    sent = frames(stream.final_chunk(finish_reason="length", reason="insufficient_balance") + stream.terminator())
    assert sent[1]["choices"][0]["finish_reason"] == "length"
    assert sent[1]["penstock"] == {"reason": "insufficient_balance"}
    assert sent[2:] == ["[DONE]"]


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda kind: f'data: {{"type":"{kind}"}}\n\n'.encode(),
        st.sampled_from(
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "news",
            ]
        ),
    )
)
def test_what_is_not_understood_is_left_out(event: bytes) -> None:
    assert open_stream().feed(event).out == b""


# There and back.

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
values = st.dictionaries(words, st.integers() | words | st.none() | st.lists(st.booleans(), max_size=2), max_size=3)
calls = st.lists(st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values), max_size=3)


@given(st.none() | words, st.none() | words, calls, st.booleans())
def test_what_a_model_said_comes_back_to_it_with_the_same_meaning(
    thought: str | None, said: str | None, called: list[tuple[str, Any]], streamed: bool
) -> None:
    blocks: list[dict[str, Any]] = []
    if thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": "sig"})
    if said:
        blocks.append({"type": "text", "text": said})
    blocks += [
        {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": given}
        for number, (name, given) in enumerate(called)
    ]
    heard = heard_in_a_stream(blocks) if streamed else read(message(*blocks))[1]["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in heard.get("tool_calls", ())]
    again = wish(messages=[{"role": "user", "content": "Hi"}, heard, *results, {"role": "user", "content": "Go on."}])
    body = json.loads(
        chat_to_messages.request(again, model="m", output_limit=9, limit_field="max_tokens", ask_usage=False)
    )
    said_again = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    assert said_again == ([blocks] if blocks else [])
    answered = [b["tool_use_id"] for turn in body["messages"] for b in turn["content"] if b["type"] == "tool_result"]
    assert answered == [f"toolu_{number}" for number in range(len(called))]


def heard_in_a_stream(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that a caller puts together from the chunks."""
    events = [begin()]
    for index, each in enumerate(blocks):
        if each["type"] == "tool_use":
            given = json.dumps(each["input"]) if each["input"] else ""
            events += tool_block(index, each["id"], each["name"], given[:3], given[3:])
        elif each["type"] == "text":
            events += text_block(index, each["text"][:1], each["text"][1:])
        else:
            parts = [{"type": "thinking_delta", "thinking": each["thinking"]}]
            signature = {"type": "signature_delta", "signature": each["signature"]}
            events += block(index, {"type": "thinking", "thinking": ""}, *parts, signature)
    heard: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas(play(open_stream(), [*events, *end()])[0]):
        heard["content"] += delta.get("content", "")
        heard.setdefault("reasoning_details", []).extend(delta.get("reasoning_details", ()))
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                heard.setdefault("tool_calls", []).append(call)
            else:
                heard["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return heard
