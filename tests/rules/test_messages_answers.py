"""Messages that pass: plain answers and streams of an upstream that speaks Messages, named, counted and ended."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from penstock.dialects import Label, Step, Stream, sse
from penstock.dialects import anthropic_messages as dialect
from penstock.dialects.anthropic_usage import read_report, write_report
from penstock.dialects.pairs import messages_as_chat
from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed
from tests.upstream_messages import event
from tests.wishes import WISH

MINE = Label("mine", "cmpl-", "req_7", 1_700_000_000)
AS_IT_IS = Label(None, None, "req_7", 1_700_000_000)
USAGE = {"input_tokens": 5, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4}
USED = TokenUsage(10, 4, cached_input=2, cache_write=3, total=14)
ANSWER: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "up",
    "content": [{"type": "text", "text": "Hello!"}],
    "stop_reason": "end_turn",
    "usage": USAGE,
    "new": {"a": 1},
}
START = event("message_start", message=ANSWER | {"content": [], "usage": USAGE | {"output_tokens": 1}})
HELLO = [
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "lo\n"}),
    event("content_block_stop", index=0),
]
END = [
    event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 4}),
    event("message_stop"),
]
ALL_KINDS = [
    event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
    event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
    event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "EqQBCgIYAhIk" * 9}),
    event("content_block_stop", index=0),
    event("content_block_start", index=1, content_block={"type": "redacted_thinking", "data": "Em" * 20}),
    event("content_block_stop", index=1),
    event("content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "look", "input": {}}),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ""}),
    event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"at":"it"}'}),
    event("content_block_stop", index=2),
    event("content_block_delta", index=3, delta={"type": "citations_delta", "citation": {"cited_text": "x" * 99}}),
    event("content_block_delta", index=3, delta={"type": "sound_delta", "sound": ["new"]}),
    event("something_new", value=1),
    b": a comment\n\n",
]
STREAMS: dict[str, list[bytes]] = {
    "text": [START, event("ping"), *HELLO, *END],
    "all kinds": [START, *ALL_KINDS, *END],
    "as json.dumps writes": [
        b"data: " + json.dumps(json.loads(sse.data(each) or b"")).encode() + b"\n\n" for each in [START, *HELLO, *END]
    ],
    "padded": [START, *(each.replace(b'"}}\n', b'"}      }\n') for each in HELLO), *END],
}


def play(stream: Stream, pieces: list[bytes], *, in_bulk: bool) -> tuple[bytes, int, TokenUsage | None, bool]:
    """What a stream comes to: all that is sent, tokens produced, usage, whether it was done."""
    splitter, out, produced, usage, done = sse.Splitter(), b"", 0, None, False
    for piece in pieces:
        block, start = splitter.feed(piece), 0
        while start < len(block):
            if in_bulk:
                text, tokens, end = stream.run(block, start)
                if end > start:
                    out, produced, start = out + text, produced + tokens, end
                    continue
            end = sse.event_end(block, start)
            step = stream.feed(block[start:end])
            start, out, produced = end, out + step.out, produced + step.produced
            usage, done = step.usage or usage, done or step.done
    return out + stream.terminator(), produced, usage, done


def opened(label: Label = MINE) -> dialect.MessagesStream:
    return dialect.open_stream(wish=WISH, label=label)


def test_an_answer_is_read_and_named() -> None:
    plain = dialect.answer(json.dumps(ANSWER).encode(), wish=WISH, label=MINE)
    assert json.loads(plain.body) == ANSWER | {"model": "mine"}
    assert (plain.usage, plain.produced) == (USED, 4)


def test_an_answer_with_nothing_to_name_stays_as_it_is() -> None:
    raw = json.dumps(ANSWER).encode()
    assert dialect.answer(raw, wish=WISH, label=AS_IT_IS).body == raw


@pytest.mark.parametrize(
    ("content", "produced"),
    [
        ([{"type": "text", "text": "12345678"}], 2),
        ([{"type": "tool_use", "id": "t", "name": "look", "input": {"a": "b"}}], 4),
        ([{"type": "thinking", "thinking": "1234", "signature": "x" * 99}], 1),
        ("12345678", 3),
        ([], 0),
    ],
)
def test_an_answer_that_nobody_counted_is_estimated(content: Any, produced: int) -> None:
    plain = dialect.answer(json.dumps({"content": content}).encode(), wish=WISH, label=MINE)
    assert (plain.usage, plain.produced) == (None, produced)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"{}", b'{"choices":[]}', b"[" * 100_000])
def test_what_is_no_message_is_the_upstreams_failure(raw: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        dialect.answer(raw, wish=WISH, label=MINE)


def test_an_error_under_status_200_is_told_in_its_words() -> None:
    with pytest.raises(UpstreamFailed, match="Overloaded"):
        dialect.answer(
            b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', wish=WISH, label=MINE
        )


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (USAGE, USED),
        ({"input_tokens": 1, "output_tokens": 2}, TokenUsage(1, 2, total=3)),
        ({"input_tokens": 0, "output_tokens": 0}, TokenUsage(0, 0)),
        (
            {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 7}},
            TokenUsage(1, 9, reasoning=7, total=10),
        ),
        ({"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": "?", "x": {}}, TokenUsage(1, 2, total=3)),
        (
            USAGE | {"cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2}},
            TokenUsage(10, 4, cached_input=2, cache_write=3, cache_write_1h=2, total=14),
        ),
        ({"input_tokens": 1}, None),
        ({"output_tokens": -1, "input_tokens": 1}, None),
        (None, None),
        ("much", None),
    ],
)
def test_usage_is_read_as_far_as_it_is_one(report: Any, usage: TokenUsage | None) -> None:
    plain = dialect.answer(json.dumps({"content": [], "usage": report}).encode(), wish=WISH, label=MINE)
    assert plain.usage == usage


@given(st.tuples(*[st.integers(0, 10**9)] * 5))
def test_usage_that_is_written_is_read_as_the_same(counts: tuple[int, int, int, int, int]) -> None:
    rest, output, read, minutes, hour = counts
    input, written = rest + read + minutes + hour, minutes + hour
    usage = TokenUsage(input, output, read, output // 2, input + output, written, hour)
    assert read_report(Raw(json.dumps(write_report(usage)).encode())).counted() == usage


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_passes_byte_for_byte_but_for_the_models_name(name: str) -> None:
    raw = b"".join(STREAMS[name])
    out, _, usage, done = play(opened(AS_IT_IS), [raw], in_bulk=True)
    assert (out, usage, done) == (raw, USED, True)
    named, *_ = play(opened(), [raw], in_bulk=True)
    old, new = sse.events(raw), sse.events(named)
    assert [sse.data(each) for each in new[1:]] == [sse.data(each) for each in old[1:]]
    start = json.loads(sse.data(old[0]) or b"")
    start["message"]["model"] = "mine"
    assert json.loads(sse.data(new[0]) or b"") == start


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_comes_to_the_same_wherever_it_is_cut(name: str) -> None:
    raw = b"".join(STREAMS[name])
    expected = play(opened(), [raw], in_bulk=False)
    assert play(opened(), [raw], in_bulk=True) == expected
    assert play(opened(), [raw[at : at + 1] for at in range(len(raw))], in_bulk=True) == expected
    for at in range(1, len(raw), 3):
        assert play(opened(), [raw[:at], raw[at:]], in_bulk=True) == expected


def test_text_events_are_taken_many_at_a_time() -> None:
    block = b"".join(
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "ok"}) for _ in range(50)
    )
    assert opened().run(block + END[0], 0) == (block, 50, len(block))


def test_what_is_produced_is_estimated_event_by_event() -> None:
    stream = opened()
    assert [stream.feed(each).produced for each in (START, *ALL_KINDS)] == [
        0,
        0,
        1,
        0,
        0,
        10,
        0,
        1,
        0,
        1,
        0,
        0,
        1,
        9,
        0,
    ]


@pytest.mark.parametrize(
    ("kind", "content", "produced"),
    [
        ("content_block_delta", {"type": "compaction_delta", "content": "x" * 400}, 100),
        ("content_block_delta", {"type": "some_new_delta", "fresh": {"at": "x" * 400}}, 103),
        ("content_block_start", {"type": "compaction", "content": "x" * 400}, 100),
        ("content_block_start", {"type": "compaction", "content": None}, 0),
        ("content_block_start", {"type": "web_search_tool_result", "content": [{"title": "x" * 400}]}, 0),
        ("content_block_delta", {"type": "signature_delta", "signature": "x" * 400}, 0),
        ("content_block_delta", {"type": "citations_delta", "citation": {"cited_text": "x" * 400}}, 0),
    ],
)
def test_what_a_model_says_in_a_form_that_is_new_counts_by_its_size(
    kind: str, content: dict[str, Any], produced: int
) -> None:
    name = "delta" if kind.endswith("delta") else "content_block"
    said = event(kind, index=0, **{name: content})
    assert opened().feed(said).produced == produced
    other = messages_as_chat.MessagesAsChat(MINE, legacy=False)
    assert other.feed(said).produced == produced
    body = json.dumps({"content": [content]}).encode()
    assert dialect.answer(body, wish=WISH, label=MINE).produced == produced


def test_a_later_report_keeps_what_only_an_earlier_one_said() -> None:
    stream = opened()
    assert stream.feed(START).usage == TokenUsage(10, 0, cached_input=2, cache_write=3, total=10)
    assert stream.feed(event("message_delta", delta={}, usage={"output_tokens": 4})).usage == USED
    late = {"output_tokens": 5, "cache_read_input_tokens": 0}
    usage = stream.feed(event("message_delta", delta={"stop_reason": "refusal"}, usage=late)).usage
    assert usage == TokenUsage(8, 5, cache_write=3, total=13)


def test_a_prompt_of_nothing_in_the_first_event_is_no_count() -> None:
    stream = opened()
    nothing = {"input_tokens": 0, "output_tokens": 0}
    begun = event("message_start", message={"id": "msg_1", "content": [], "usage": nothing})
    assert stream.feed(begun).usage is None
    assert stream.feed(event("message_delta", delta={}, usage={"output_tokens": 4})).usage is None
    late = {"input_tokens": 7, "output_tokens": 5}
    assert stream.feed(event("message_delta", delta={}, usage=late)).usage == TokenUsage(7, 5, total=12)


def test_an_error_in_the_stream_is_told_in_its_words_and_is_the_last_that_comes() -> None:
    stream = opened()
    stream.feed(START)
    step = stream.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    assert (step.out, step.error) == (b"", "Overloaded")
    error = {"type": "error", "error": {"type": "api_error", "message": "broke"}, "request_id": "req_7"}
    sent = stream.error_event(type="upstream_error", code="upstream_failed", message="broke", param=None)
    assert sent.startswith(b"event: error\n")
    assert json.loads(sse.data(sent) or b"") == error
    assert stream.terminator() == b""


def kinds(raw: bytes) -> list[Any]:
    found = [json.loads(sse.data(each) or b"{}") for each in sse.events(raw)]
    return [(each["type"], each.get("index")) if "index" in each else each["type"] for each in found]


def test_a_stream_that_is_ended_here_ends_every_open_block_and_says_why() -> None:
    stream = opened()
    for each in (START, *HELLO, ALL_KINDS[6].replace(b'"name":"look"', b'"name":""'), HELLO[0]):
        stream.feed(each)
    stream.feed(event("content_block_delta", index=2, delta={"type": "text_delta", "text": "too dear"}))
    ended = stream.final_chunk(finish_reason="length", reason="insufficient_balance")
    ended += stream.usage_chunk(TokenUsage(10, 6, cached_input=2, cache_write=3, total=16)) + stream.terminator()
    assert kinds(ended) == [("content_block_stop", 0), ("content_block_stop", 2), "message_delta", "message_stop"]
    delta = json.loads(sse.data(sse.events(ended)[2]) or b"")
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"].items() >= (USAGE | {"output_tokens": 6}).items()
    assert delta["penstock"] == {"reason": "insufficient_balance"}


def test_a_block_whose_beginning_was_too_dear_is_not_ended() -> None:
    stream = opened()
    stream.feed(START)
    stream.feed(ALL_KINDS[6])  # with a name, that costs
    ended = stream.final_chunk(finish_reason="length", reason="insufficient_balance") + stream.terminator()
    assert kinds(ended) == ["message_delta", "message_stop"]


def test_a_stream_without_its_end_gets_one() -> None:
    stream = opened()
    for each in (START, *HELLO, END[0]):
        assert not stream.feed(each).done
    assert stream.terminator() == END[1]


@pytest.mark.parametrize("label", [MINE, AS_IT_IS])
@given(data=st.data())
def test_whatever_comes_is_read(label: Label, data: st.DataObject) -> None:
    stream = opened(label)
    odd = st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
        max_leaves=8,
    )
    events = st.one_of(
        st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"") + b"\n\n"),
        odd.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
        st.builds(lambda kind, fields: event(kind, **fields), KINDS, st.dictionaries(FIELDS, odd, max_size=4)),
    )
    for each in data.draw(st.lists(events, max_size=6)):
        step = stream.feed(each)
        assert isinstance(step, Step)
        assert step.produced >= 0
    stream.final_chunk(finish_reason="length", reason="x")
    assert stream.terminator().endswith(b"\n\n")


KINDS = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error"]
)
FIELDS = st.sampled_from(["index", "message", "content_block", "delta", "usage", "error"])
NAMES = st.sampled_from(
    ["text", "type", "usage", "model", "stop_reason", "thinking", "output_tokens", "message", "partial_json", "input"]
)


def test_blocks_without_end_are_not_remembered() -> None:
    stream = opened()
    stream.feed(START)
    for index in range(100_000):
        begun = event("content_block_start", index=index, content_block={"type": "text", "text": "word"})
        assert stream.feed(begun).produced == 1
    assert len(sse.events(stream.final_chunk(finish_reason="length", reason="x"))) <= dialect.MOST_OPEN
