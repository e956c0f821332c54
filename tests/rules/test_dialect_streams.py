"""Streamed chat answers: transcripts in real servers' shapes, and the rules of names, usage, counting and endings."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Label, Step, openai_chat, sse
from penstock.dialects.openai_chat import DONE, ChatStream
from penstock.dialects.pairs import responses_to_chat
from penstock.dialects.pairs.chat_as_messages import ChatAsMessages, Telling
from penstock.dialects.usage import TokenUsage
from tests.wishes import WISH

LABEL = Label("mine", None, "req_7", 9)


class Outcome(NamedTuple):
    """A whole stream: what the caller got, as JSON where it is JSON, and what it came to."""

    sent: list[Any]
    produced: int
    usage: TokenUsage | None
    finish_reason: str | None
    done: bool


def stream(model: str | None = "mine", id_prefix: str | None = None, include_usage: bool = False) -> ChatStream:
    return ChatStream(model=model, id_prefix=id_prefix, include_usage=include_usage)


def frame(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(
    delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish}
    return {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": 9,
        "model": "up",
        "choices": [choice],
        **more,
    }


def load(event: bytes) -> Any:
    data = sse.data(event)
    return event if data is None else json.loads(data)


def play(pieces: list[bytes], reader: ChatStream) -> Outcome:
    splitter = sse.Splitter()
    steps = [reader.feed(event) for piece in pieces for event in sse.events(splitter.feed(piece))]
    assert splitter.rest() == b""
    return Outcome(
        [load(step.out) for step in steps if step.out],
        sum(step.produced for step in steps),
        next((step.usage for step in reversed(steps) if step.usage), None),
        next((step.finish_reason for step in reversed(steps) if step.finish_reason), None),
        any(step.done for step in steps),
    )


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
USED = TokenUsage(5, 2, total=7)
USAGE_CHUNK = {**chunk(), "choices": [], "usage": USAGE}
OPENAI = [
    chunk({"role": "assistant", "content": "", "refusal": None}, usage=None, system_fingerprint="fp_1"),
    chunk({"content": "Hel"}, usage=None),
    chunk({"content": "lo"}, usage=None),
    chunk(finish="stop", usage=None),
    USAGE_CHUNK,
]
DEEPSEEK = [
    chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
    chunk({"content": None, "reasoning_content": "Hm"}),
    chunk({"content": "Yes", "reasoning_content": None}),
    chunk({"content": ""}, finish="stop", usage={**USAGE, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 1}),
]
VLLM = [
    chunk({"role": "assistant", "content": ""}, usage={"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}),
    chunk({"content": "Hel"}, usage={"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}),
    chunk({"content": "lo"}, finish="stop", usage=USAGE),
]
LLAMA_CPP = [
    {"choices": [{"finish_reason": None, "index": 0, "delta": {"content": text}}], "created": 9, "id": "chatcmpl-7"}
    | {"model": "up", "system_fingerprint": "b1", "object": "chat.completion.chunk"}
    for text in ("Hel", "lo")
] + [{**chunk(finish="length"), "timings": {"predicted_ms": 1.25}}, {**USAGE_CHUNK, "timings": {"predicted_ms": 1.25}}]
AZURE = [
    {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": [{"prompt_index": 0}]},
    chunk({"role": "assistant", "content": "Hello"}, content_filter_results={}),
    {**chunk(), "choices": [{"index": 0, "finish_reason": "stop", "content_filter_offsets": {"check_offset": 5}}]},
    USAGE_CHUNK,
]


def mine(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**value, "model": "mine"} for value in chunks]


def wire(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(frame(value) for value in chunks) + DONE


OPENROUTER_COMMENT = b": OPENROUTER PROCESSING\n\n"
TRANSCRIPTS = {
    "OpenAI": (wire(OPENAI), Outcome(mine(OPENAI[:-1]), 2, USED, "stop", True)),
    "DeepSeek": (wire(DEEPSEEK), Outcome(mine(DEEPSEEK), 2, TokenUsage(5, 2, 4, 0, 7), "stop", True)),
    "vLLM": (wire(VLLM), Outcome(mine(VLLM), 2, USED, "stop", True)),
    "llama.cpp": (wire(LLAMA_CPP), Outcome(mine(LLAMA_CPP[:-1]), 2, USED, "length", True)),
    "Azure": (wire(AZURE), Outcome(mine(AZURE[:-1]), 1, USED, "stop", True)),
    "OpenRouter": (
        OPENROUTER_COMMENT * 2 + wire(OPENAI),
        Outcome([OPENROUTER_COMMENT] * 2 + mine(OPENAI[:-1]), 2, USED, "stop", True),
    ),
    "CR LF": (wire(OPENAI).replace(b"\n", b"\r\n"), Outcome(mine(OPENAI[:-1]), 2, USED, "stop", True)),
    "no blank": (wire(OPENAI).replace(b"data: ", b"data:"), Outcome(mine(OPENAI[:-1]), 2, USED, "stop", True)),
}


@pytest.mark.parametrize("server", TRANSCRIPTS)
def test_a_servers_stream_passes_with_our_model_and_is_counted_wherever_it_is_cut(server: str) -> None:
    raw, expected = TRANSCRIPTS[server]
    assert play([raw], stream()) == expected
    assert play([raw[at : at + 1] for at in range(len(raw))], stream()) == expected
    for at in range(1, len(raw)):
        assert play([raw[:at], raw[at:]], stream()) == expected


@pytest.mark.parametrize("server", TRANSCRIPTS)
def test_a_stream_with_nothing_to_swap_passes_byte_for_byte(server: str) -> None:
    raw = TRANSCRIPTS[server][0]
    reader = stream(model=None, include_usage=True)
    *events, terminator = sse.events(sse.Splitter().feed(raw))
    assert [reader.feed(event).out for event in events] == events
    assert reader.feed(terminator).done


def test_the_usage_chunk_reaches_a_caller_who_asked() -> None:
    assert play([wire(OPENAI)], stream(include_usage=True)).sent == mine(OPENAI)


def test_ids_get_our_prefix() -> None:
    sent = play([wire(OPENAI)], stream(model=None, id_prefix="cmpl-")).sent
    assert {value["id"] for value in sent} == {"cmpl-7"}
    assert {value["model"] for value in sent} == {"up"}


def test_names_inside_other_fields_and_in_text_stay() -> None:
    says = {"content": '"model":"up" and "id":"chatcmpl-7"'}
    values = [
        {"meta": {"model": "up", "id": "chatcmpl-7"}, **chunk(says)},
        chunk(
            {"tool_calls": [{"index": 0, "id": "chatcmpl-7", "function": {"name": "f", "arguments": '{"model":"up"}'}}]}
        ),
    ]
    for value in values:
        for event in (frame(value), frame(value).replace(b'": ', b'":').replace(b", ", b",")):
            reader = stream(id_prefix="cmpl-")
            for _ in range(3):
                assert load(reader.feed(event).out) == {**load(event), "model": "mine", "id": "cmpl-7"}


def test_a_stream_that_changes_its_beginning_is_still_swapped() -> None:
    values = [
        chunk({"content": "a"}, created=created, id=f"chatcmpl-{id}")
        for created, id in ((1, 1), (1, 1), (2, 1), (2, 22))
    ]
    values += [{**values[0], "model": model} for model in ("other", "", "esc\\aped", 5, None)]
    sent = play([b"".join(frame(value) for value in values)], stream(id_prefix="cmpl-")).sent
    assert sent == [{**value, "model": "mine", "id": value["id"].replace("chatcmpl", "cmpl")} for value in values]


def test_lines_and_numbers_that_look_like_a_name_do_not_mislead() -> None:
    value = {"meta": {"model": 56}, **chunk({"content": "a"}, model=5)}
    for event in (frame(value), b'"model": 5\n' + frame(value), b'"model": "up"\n' + frame({**value, "model": "up"})):
        assert load(stream().feed(event).out) == {**value, "model": "mine"}


def test_unknown_fields_keep_their_bytes() -> None:
    event = b'data: {"id":"a" , "model": "up","choices":[{"index":0,"x":1.0e2}], "y" : [ 1 ,2.50 ]}\n\n'
    reader = stream()
    for _ in range(2):
        assert reader.feed(event).out == event.replace(b'"up"', b'"mine"')


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({}, 0),
        ({"role": "assistant", "content": ""}, 0),
        ({"content": "x"}, 1),
        ({"content": "x" * 16}, 1),
        ({"content": "x" * 17}, 5),
        ({"content": "é" * 8}, 1),
        ({"content": "é" * 9}, 5),
        ({"content": "x" * 8, "reasoning_content": "x" * 8}, 1),
        ({"reasoning": "x" * 32}, 8),
        ({"reasoning": "x" * 32, "reasoning_content": "x" * 32}, 8),
        ({"refusal": "no"}, 1),
        ({"tool_calls": [{"function": {"name": "search", "arguments": ""}}]}, 1),
        ({"tool_calls": [{"function": {"arguments": "x" * 20}}, {"function": {"arguments": "x" * 20}}]}, 10),
        ({"tool_calls": [{"index": 0}]}, 0),
        ({"function_call": {"name": "f", "arguments": "x" * 19}}, 5),
    ],
)
def test_each_delta_counts_by_its_bytes(delta: dict[str, Any], tokens: int) -> None:
    assert stream().feed(frame(chunk(delta))).produced == tokens


CUSTOM = {"index": 0, "custom": {"input": "x" * 400}}


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"tool_calls": [CUSTOM]}, 100),
        ({"tool_calls": [{"custom": {"input": "x" * 8_000}}, {"function": {"arguments": "y" * 40}}]}, 2_010),
        ({"tool_calls": [{"index": 0, "type": "new", "new": {"said": "x" * 400}}]}, 103),
        ({"audio": {"id": "a", "transcript": "x" * 400, "expires_at": 9}}, 100),
        ({"audio": {"id": "a", "data": "A" * 64_000}}, 250),
        ({"content": "", "images": [{"image_url": {"url": "data:image/png;base64," + "A" * 64_000}}]}, 251),
        ({"content": "word", "images": [{"image_url": {"url": "data:image/png;base64," + "A" * 64_000}}]}, 252),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "x" * 400}]}, 100),
        ({"reasoning": "x" * 400, "reasoning_details": [{"type": "reasoning.text", "text": "x" * 400}]}, 100),
        ({"reasoning": "x" * 8_000, "reasoning_details": [{"type": "reasoning.text", "text": "x" * 8_000}]}, 2_000),
        ({"reasoning": "", "reasoning_details": [{"type": "reasoning.text", "signature": "x" * 400}]}, 0),
        ({"reasoning_details": [{"type": "reasoning.new", "said": "x" * 400}]}, 109),
        ({"something_new": "x" * 400}, 100),
        ({"role": "assistant", "content": "", "refusal": None, "tool_calls": [], "audio": None}, 0),
        ({"role": "assistant", "content": "", "annotations": [{"url": "x" * 400}]}, 0),
        ({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"arguments": ""}}]}, 0),
    ],
)
def test_what_has_no_text_that_is_read_counts_by_its_size(delta: dict[str, Any], tokens: int) -> None:
    event = frame(chunk(delta))
    assert stream().feed(event).produced == tokens
    assert stream().feed(event.replace(b"data:", b"event: x\ndata:", 1)).produced == tokens
    assert responses_to_chat.open_stream(wish=WISH, label=LABEL).feed(event).produced == tokens
    message = {"choices": [{"index": 0, "message": {"role": "assistant", **delta}, "finish_reason": "stop"}]}
    for pair in (openai_chat, responses_to_chat):
        assert pair.answer(json.dumps(message).encode(), wish=WISH, label=LABEL).produced == tokens
    telling = Telling(1, thinking=True, stop_sequences=(), names={}, context=False)
    assert ChatAsMessages(LABEL, telling).feed(event).produced == tokens


def test_choices_count_apart() -> None:
    value = chunk({"content": "a"})
    value["choices"].append({"index": 1, "delta": {"content": "b"}})
    assert stream().feed(frame(value)).produced == 2


@pytest.mark.parametrize(
    "event",
    [
        b"data: not json at all\n\n",
        b'data: {"model":"up","choices":[\n\n',
        b'data: ["up"]\n\n',
        b"data: null\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_not_a_json_object_passes_and_counts_by_its_size(event: bytes) -> None:
    assert stream().feed(event) == Step(event, -(-(len(event) - len(b"data: \n\n")) // 4))


@pytest.mark.parametrize("event", [b": ping\n\n", b"\n\n", b"event: ping\n\n", b"retry: 5\n\n", b"data:\n\n", b""])
def test_what_carries_no_data_passes_and_counts_nothing(event: bytes) -> None:
    assert stream().feed(event) == Step(event)


def test_text_of_an_unknown_shape_is_swapped_and_counts_by_its_size() -> None:
    value = chunk({"content": [{"type": "thinking", "thinking": "x" * 400}]}, usage={**USAGE, "total_tokens": "7"})
    step = stream().feed(frame(value))
    assert load(step.out) == {**value, "model": "mine"}
    assert step.produced >= 100
    assert step.usage == USED


def test_a_chunk_in_several_lines_or_with_an_event_name_is_swapped() -> None:
    event = frame(chunk({"content": "a"})).replace(b'"model"', b'\ndata: "model"')
    for named in (event, b"id: 3\nevent: message\n" + event, b"\xef\xbb\xbf" + event):
        step = stream().feed(named)
        assert (load(step.out), step.produced) == ({**chunk({"content": "a"}), "model": "mine"}, 1)
    assert stream().feed(b"id: 3\n" + event).out.startswith(b"id: 3\ndata: ")


def test_half_a_surrogate_pair_passes_with_our_model() -> None:
    reader = stream()
    reader.feed(frame(chunk({"content": "a"})))
    event = frame(chunk({"content": "HALF"})).replace(b"HALF", b"\\ud83d")
    assert reader.feed(event).out == event.replace(b'"up"', b'"mine"')


@pytest.mark.parametrize("event", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n", b"data: [DONE]"])
def test_the_terminator_is_recognised_and_not_sent(event: bytes) -> None:
    assert stream().feed(event) == Step(b"", done=True)
    assert stream().terminator() == DONE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "overloaded", "type": "server_error", "code": 500}}, "overloaded"),
        ({"error": "overloaded"}, "overloaded"),
        ({"error": {"code": 500}}, "The provider reported an error."),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "too long"),
        (chunk({"content": ""}, finish="error", error={"code": 502, "message": "disconnected"}), "disconnected"),
    ],
)
def test_an_error_in_the_stream_is_recognised_and_not_sent(value: dict[str, Any], message: str) -> None:
    for event in (frame(value), b"event: error\n" + frame(value)):
        assert stream().feed(event) == Step(b"", error=message)


def test_an_empty_error_is_none() -> None:
    assert stream().feed(frame(chunk({"content": "a"}, error=None))).error is None


def test_the_final_chunk_ends_what_is_open_in_this_streams_name() -> None:
    reader = stream(id_prefix="cmpl-")
    for value in (
        chunk({"content": "a"}),
        chunk({"content": "a"}, index=1),
        chunk(finish="stop", index=1),
        chunk(index=2),
    ):
        reader.feed(frame(value))
    assert load(reader.final_chunk(finish_reason="length", reason="balance_exhausted")) == {
        "id": "cmpl-7",
        "object": "chat.completion.chunk",
        "created": 9,
        "model": "mine",
        "choices": [{"index": index, "delta": {}, "finish_reason": "length"} for index in (0, 2)],
        "penstock": {"reason": "balance_exhausted"},
    }


def test_the_final_chunk_of_a_stream_that_never_began_is_valid() -> None:
    final = load(stream(model="mine").final_chunk(finish_reason="length", reason="balance_exhausted"))
    assert (final["id"], final["object"], final["model"]) == ("chatcmpl-0", "chat.completion.chunk", "mine")
    assert final["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]


def test_azures_empty_names_do_not_reach_the_final_chunk() -> None:
    reader = stream()
    reader.feed(frame(AZURE[0]))
    final = load(reader.final_chunk(finish_reason="length", reason="balance_exhausted"))
    assert (final["id"], final["object"]) == ("chatcmpl-0", "chat.completion.chunk")


def test_our_usage_chunk_reads_like_an_upstreams() -> None:
    reader = stream()
    reader.feed(frame(chunk({"content": "a"})))
    used = TokenUsage(9, 6, 2, 5, 15)
    event = reader.usage_chunk(used)
    assert load(event)["choices"] == []
    assert load(event)["id"] == "chatcmpl-7"
    assert stream().feed(event) == Step(b"", usage=used)


def test_an_error_of_ours_has_all_four_fields() -> None:
    event = stream().error_event(type="upstream_error", code=None, message='it "broke"', param=None)
    error = {"message": 'it "broke"', "type": "upstream_error", "code": None, "param": None}
    assert load(event) == {"error": error}


def test_our_chunks_are_valid_to_the_official_client() -> None:
    from openai.types.chat import ChatCompletionChunk

    reader = stream()
    for event in (reader.final_chunk(finish_reason="length", reason="r"), reader.usage_chunk(USED)):
        ChatCompletionChunk.model_validate(load(event), strict=True)


SCRAPS = st.sampled_from(
    [b"data: ", b'{"choices":', b"[{", b'"delta"', b":", b"}", b"]", b"\n", b"\r", b'"model":"up"', b",", b"null"]
)


@given(st.lists(SCRAPS | st.binary(max_size=3) | st.just(frame(chunk({"content": "a"}))), max_size=12))
def test_arbitrary_bytes_pass_without_an_exception(scraps: list[bytes]) -> None:
    reader, splitter = stream(id_prefix="cmpl-"), sse.Splitter()
    for event in [*sse.events(splitter.feed(b"".join(scraps))), splitter.rest()]:
        assert isinstance(reader.feed(event), Step)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5
    )
)
def test_any_value_in_any_known_field_passes_without_an_exception(value: Any) -> None:
    for name in ("id", "model", "choices", "usage", "error", "created"):
        reader = stream(id_prefix="cmpl-")
        step = reader.feed(frame({**chunk({"content": "a"}), name: value}))
        assert load(reader.final_chunk(finish_reason="length", reason="r"))
        if step.out and name != "model":
            assert load(step.out)["model"] == "mine"


def compact(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


@pytest.mark.parametrize(
    "event",
    [
        b'{"id":"a","model":"theirs","model":"theirs","choices":[]}',
        b'{"id":"a","model":"theirs","choices":[],"model":"theirs"}',
        b'{"x":{"model":"theirs"},"id":"a","model":"theirs","choices":[]}',
        b'{"id":"a","model":"theirs","choices":[],"mo\\u0064el":"theirs"}',
        b'{"user":"\\"model\\":\\"theirs\\"","id":"a","model":"theirs","choices":[]}',
    ],
)
def test_a_name_that_stands_twice_is_swapped_where_it_counts(event: bytes) -> None:
    reader = stream(id_prefix="cmpl-")
    for _ in range(2):
        told = load(
            reader.feed(b"data: " + event.replace(b"[]", b'[{"index":0,"delta":{"content":"a"}}]') + b"\n\n").out
        )
        assert (told["model"], told["id"]) == ("mine", "cmpl-a")


def test_a_name_that_comes_again_in_a_later_event_is_swapped() -> None:
    reader = stream()
    first = b'data: {"id":"a","model":"theirs","choices":[{"index":0,"delta":{"content":"a"}}]%b}\n\n'
    for again in (b"", b',"model":"theirs"', b',"x":{"model":"theirs"}', b""):
        told = load(reader.feed(first % again).out)
        assert told["model"] == "mine"
        assert told.get("x", {}).get("model", "theirs") == "theirs"


TEXTS = st.text('ab "\\é\n,{}', max_size=24)
CHUNKS = st.one_of(
    st.builds(lambda text: chunk({"content": text}), TEXTS),
    st.builds(lambda text: chunk({"content": text}, usage=None), TEXTS),
    st.builds(lambda text: chunk({"content": text}, obfuscation="x"), TEXTS),
    st.builds(lambda text: chunk({"role": "assistant", "content": text}), TEXTS),
    st.builds(lambda text: {**chunk({"content": text}), "id": "another"}, TEXTS),
    st.just(chunk({}, usage={"prompt_tokens": 3, "completion_tokens": 9})),
)


@given(st.lists(CHUNKS, max_size=12), st.sampled_from([None, "cmpl-"]))
def test_a_run_of_text_comes_to_what_its_events_come_to_one_by_one(chunks: list[Any], prefix: str | None) -> None:
    block, quick, slow = b"".join(map(compact, chunks)), stream(id_prefix=prefix), stream(id_prefix=prefix)
    sent, produced, start = b"", 0, 0
    while start < len(block):
        out, tokens, end = quick.run(block, start)
        if end == start:
            end = sse.event_end(block, start)
            step = quick.feed(block[start:end])
            out, tokens = step.out, step.produced
        sent, produced, start = sent + out, produced + tokens, end
    steps = [slow.feed(event) for event in sse.events(block)]
    assert (sent, produced) == (b"".join(step.out for step in steps), sum(step.produced for step in steps))
    last = {"finish_reason": "length", "reason": "r"}
    assert quick.final_chunk(**last) == slow.final_chunk(**last)


def test_text_events_that_come_together_pass_in_one_run() -> None:
    reader = stream()
    reader.feed(compact(chunk({"role": "assistant", "content": ""})))
    block = b"".join(compact(chunk({"content": text})) for text in ("a", "", "no token is so long"))
    assert reader.run(block, 0)[1:] == (1 + 0 + 5, len(block))
