"""OpenAI Responses as bytes: what is read of a request, what is replaced, and how a stream passes and ends."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.dialects import Wish, openai_responses, sse
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest, ModelMissing, UpstreamFailed
from tests.upstream import Received
from tests.upstream_responses import UPSTREAM_ID, message, response_of, usage_of
from tests.upstream_responses import sse as event
from tests.wishes import labelled

LABEL = labelled("mine", "cmpl-")
VALID: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RECEIVED = Received(1, "POST", "/v1/responses", {}, b"{}")
RECEIVED.prompt_tokens, RECEIVED.tokens_produced = 7, 3
IMAGE = "data:image/png;base64," + "A" * 1_000


def asked(**fields: Any) -> Wish:
    body = json.dumps({"model": "m", "input": "Hello", **fields}).encode()
    return openai_responses.peek(body, max_output_tokens=1_000)


def sent(wish: Wish, limit: int | None = None) -> Any:
    body = openai_responses.request(wish, model="theirs", output_limit=limit, limit_field="max_tokens", ask_usage=True)
    return json.loads(body)


def transcript() -> list[bytes]:
    """A response of one message with three words."""
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    whole, empty = message(RECEIVED, "a b c"), message(RECEIVED, "", "in_progress") | {"content": []}
    begun = response_of(RECEIVED, "in_progress", [])
    ended = response_of(RECEIVED, "completed", [whole], usage_of(RECEIVED, reasoning=1, cached=2))
    plan: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": empty}),
        ("response.content_part.added", {**where, "part": part}),
        *[("response.output_text.delta", {**where, "delta": word, "logprobs": []}) for word in ("a", " b", " c")],
        ("response.output_text.done", {**where, "text": "a b c", "logprobs": []}),
        ("response.content_part.done", {**where, "part": {**part, "text": "a b c"}}),
        ("response.output_item.done", {"output_index": 0, "item": whole}),
        ("response.completed", {"response": ended}),
    ]  # fmt: skip
    return [event(type, sequence_number=number, **fields) for number, (type, fields) in enumerate(plan)]


def load(stream: bytes) -> list[Any]:
    """The data of every event, each of them valid."""
    found = [json.loads(sse.data(each) or b"null") for each in sse.events(stream)]
    for each in found:
        VALID.validate_python(each)
    return found


def test_what_is_read_of_a_request() -> None:
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": IMAGE}]
    wish = asked(
        input=[{"role": "user", "content": content}],
        stream=True,
        max_output_tokens=50,
        tools=[{"type": "function", "name": "f"}],
        text={"format": {"type": "json_schema", "name": "n", "schema": {}}},
    )
    assert (wish.model, wish.stream, wish.output_limit, wish.images) == ("m", True, 50, 1)
    assert wish.needs == {"tools", "images", "json_schema"}
    assert wish.input_bytes < 400 < wish.input_bytes + len(IMAGE)
    assert len("What is this?") < wish.text_bytes < 150


def test_images_that_a_tool_showed_are_counted() -> None:
    output = [{"type": "input_image", "image_url": IMAGE}]
    wish = asked(input=[{"type": "function_call_output", "call_id": "c", "output": output}])
    assert (wish.images, set(wish.needs)) == (1, {"images"})
    assert wish.input_bytes < 200


BIG = "y" * 4_000


@pytest.mark.parametrize(
    "fields",
    [
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"description": BIG}}}},
        {"input": [{"type": "function_call", "arguments": BIG}]},
        {"input": [{"type": "function_call_output", "output": {"a": BIG}}]},
        {"input": [{"type": "shell_call_output", "output": [{"stdout": BIG, "stderr": ""}]}]},
        {"input": [{"type": "local_shell_call", "action": {"command": [BIG]}}]},
        {"input": [{"type": "apply_patch_call", "operation": {"diff": BIG}}]},
        {"input": [{"type": "compaction", "encrypted_content": BIG}]},
        {
            "input": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": BIG}], "encrypted_content": BIG}
            ]
        },
        {"input": [{"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": BIG}]}]},
        {"input": [{"type": "something_new", "said": BIG}]},
    ],
)
def test_all_that_a_model_reads_of_a_prompt_is_in_its_estimate(fields: dict[str, Any]) -> None:
    wish = asked(**fields)
    assert 4_000 < wish.text_bytes < 4_200
    assert (wish.images, wish.unmeasured) == (0, 0)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": IMAGE + BIG}},
        {"type": "image_generation_call", "result": BIG},
        {"role": "user", "content": [{"type": "input_image", "image_url": IMAGE + BIG}]},
    ],
)
def test_an_image_is_no_text(item: dict[str, Any]) -> None:
    assert asked(input=[item]).text_bytes == 16


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("input", {"input": None}),
        ("input", {"input": 3}),
        ("input", {"input": [{"role": 3}]}),
        ("input[0]", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("input[0]", {"input": [{"id": "msg_1"}]}),
        ("stream", {"stream": "yes"}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("max_output_tokens", {"max_output_tokens": 1_001}),
        ("max_tokens", {"max_tokens": 5}),
        ("Store", {"Store": True}),
        ("Previous_Response_ID", {"Previous_Response_ID": "resp_1"}),
        ("previous_response_id", {"previous_response_id": 3}),
        ("background", {"background": True}),
        ("conversation", {"conversation": {"id": "conv_1"}}),
        ("prompt", {"prompt": {"id": "pmpt_1"}}),
        ("include", {"include": "all"}),
        ("tools", {"tools": [3]}),
    ],
)
def test_a_bad_request_names_its_field(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


def test_without_a_model_that_comes_first() -> None:
    with pytest.raises(ModelMissing):
        openai_responses.peek(b'{"input": 3}', max_output_tokens=1)


def test_a_request_passes_but_for_name_limit_and_memory() -> None:
    wish = asked(
        input=[{"role": "user", "content": "x", "new": 1}], previous_response_id="resp_1", store=True, novel={"a": 1}
    )
    assert sent(wish) == {
        "model": "theirs", "input": [{"role": "user", "content": "x", "new": 1}], "store": False, "novel": {"a": 1},
    }  # fmt: skip
    assert sent(wish, 20)["max_output_tokens"] == 20


def test_what_only_names_something_kept_upstream_does_not_go_there() -> None:
    thought = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "gAAA"}
    open_thought = {
        "type": "reasoning",
        "id": "rs_4",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "t"}],
    }
    input = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        thought,
        {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "penstock.1.W10="},
        open_thought,
        {"type": "message", "id": "msg_1", "role": "assistant", "content": "x"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ]
    assert sent(asked(input=input))["input"] == [
        thought, open_thought, {"type": "message", "role": "assistant", "content": "x"}, input[-1],
    ]  # fmt: skip


def test_an_item_is_to_an_upstream_what_it_is_here() -> None:
    twice = '{"type": "item_reference", "type": "message", "id": "msg_1", "role": "user", "content": "x"}'
    body = b'{"model": "m", "input": [' + twice.encode() + b"]}"
    assert sent(openai_responses.peek(body, max_output_tokens=9))["input"] == [
        {"type": "message", "role": "user", "content": "x"}
    ]
    with pytest.raises(InvalidRequest, match="'Type'"):
        sent(asked(input=[{"role": "user", "content": "x", "Type": "item_reference"}]))


@pytest.mark.parametrize("levels", range(800, 1_000, 3))
def test_an_input_that_is_nearly_too_deep_is_sent_or_refused(levels: int) -> None:
    body = b'{"model":"m","input":[{"role":"user","content":"x","new":' + b"[" * levels + b"]" * levels + b"}]}"
    with suppress(InvalidRequest):
        wish = openai_responses.peek(body, max_output_tokens=1)
        assert sent_from_below(9, wish)


def sent_from_below(frames: int, wish: Wish) -> bytes:
    """What is sent where so many more calls are under way than when the body was read."""
    if frames:
        return sent_from_below(frames - 1, wish)
    return openai_responses.request(wish, model="m", output_limit=None, limit_field="max_tokens", ask_usage=True)


def test_thoughts_are_asked_for_when_the_response_is_kept() -> None:
    assert sent(asked(reasoning={"effort": "low"}))["include"] == ["reasoning.encrypted_content"]
    assert "include" not in sent(asked(reasoning={"effort": "low"}, store=False))
    assert "include" not in sent(asked())


def test_an_answer_gets_our_names_and_memory() -> None:
    whole = response_of(RECEIVED, "completed", [message(RECEIVED, "Hi")], usage_of(RECEIVED, reasoning=1, cached=2))
    plain = openai_responses.answer(
        json.dumps({**whole, "novel": 1.50}).encode(), wish=asked(previous_response_id="resp_0"), label=LABEL
    )
    named = json.loads(plain.body)
    changed = {"id": "resp_1", "model": "mine", "store": True, "previous_response_id": "resp_0"}
    assert named == {**whole, "novel": 1.5, **changed}
    assert plain.usage == TokenUsage(7, 3, cached_input=2, reasoning=1, total=10)
    assert plain.produced == 3


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"error": {"message": "no"}}', b'{"output": [], "status": "failed", "error": {"message": "no"}}'],
)
def test_what_is_no_response_is_a_failure(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        openai_responses.answer(body, wish=asked(), label=LABEL)


def test_a_stream_passes_byte_for_byte_but_where_the_response_is() -> None:
    stream, given_events = openai_responses.open_stream(wish=asked(store=False), label=LABEL), transcript()
    steps = [stream.feed(each) for each in given_events]
    assert [step.out for step in steps[2:-1]] == given_events[2:-1]
    assert [step.produced for step in steps] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    last = steps[-1]
    assert (last.out, last.done, last.finish_reason) == (b"", True, "stop")
    assert last.usage == TokenUsage(7, 3, cached_input=2, reasoning=1, total=10)
    for each in (*load(steps[0].out + steps[1].out), *load(stream.terminator())):
        response = each["response"]
        assert (response["id"], response["model"], response["store"]) == ("resp_1", "mine", False)
        assert UPSTREAM_ID not in json.dumps(each)


@given(st.integers(0, 9))
def test_a_stream_can_be_ended_after_any_event(count: int) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    out = b"".join(stream.feed(each).out for each in transcript()[:count])
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    stream.feed(event("response.output_text.delta", sequence_number=count, **where, delta="unpaid", logprobs=[]))
    out += stream.final_chunk(finish_reason="length", reason="insufficient_balance")
    out += stream.usage_chunk(TokenUsage(7, 2, total=9)) + stream.terminator()
    events = load(out)
    assert "unpaid" not in out.decode()
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["penstock"] == {"reason": "insufficient_balance"}
    assert last["response"]["usage"]["output_tokens"] == 2
    _each_item_is_ended(events)


def test_a_broken_stream_ends_as_failed() -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    for each in transcript()[:6]:
        stream.feed(each)
    words: Any = {"type": "upstream_error", "code": "upstream_failed", "message": "It broke.", "param": None}
    error, failed = load(stream.error_event(**words) + stream.terminator())
    assert error == {
        "type": "error",
        "code": "upstream_failed",
        "message": "It broke.",
        "param": None,
        "sequence_number": 6,
    }
    assert failed["response"]["error"] == {"code": "server_error", "message": "It broke."}


@pytest.mark.parametrize(
    "failed",
    [
        event("error", code="rate_limit_exceeded", message="Slow down.", param=None, sequence_number=1),
        event("error", error={"code": "rate_limit_exceeded", "message": "Slow down."}),
        event("response.failed", response={"error": {"code": "rate_limit_exceeded", "message": "Slow down."}}),
        b'data: {"error": {"code": "rate_limit_exceeded", "message": "Slow down."}}\n\n',
    ],
)
def test_an_upstreams_error_is_an_error(failed: bytes) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    step = stream.feed(failed)
    assert (step.out, step.error) == (b"", "Slow down.")
    stream.error_event(type="upstream_error", code="upstream_failed", message="Slow down.", param=None)
    (end,) = load(stream.terminator())
    assert end["response"]["error"] == {"code": "rate_limit_exceeded", "message": "Slow down."}


def test_an_item_that_comes_whole_is_counted() -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "x" * 100}
    assert stream.feed(event("response.output_item.done", output_index=0, item=call)).produced == 26
    image = {"type": "image_generation_call", "id": "ig_1", "result": "x" * 1_000}
    assert stream.feed(event("response.output_item.done", output_index=1, item=image)).produced == 4


@pytest.mark.parametrize(
    ("item", "produced"),
    [
        ({"type": "local_shell_call", "action": {"type": "exec", "command": ["x" * 400]}}, 108),
        ({"type": "shell_call", "call_id": "c", "action": {"commands": ["x" * 400]}}, 105),
        ({"type": "apply_patch_call", "status": "completed", "operation": {"diff": "x" * 400}}, 103),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * 400}]}, 109),
        ({"type": "reasoning", "content": [{"text": "x" * 400}], "encrypted_content": "x" * 404}, 104),
        ({"type": "something_new", "thought": "x" * 400, "score": 3}, 100),
        ({"type": "reasoning", "summary": [], "content": [], "encrypted_content": ""}, 0),
        ({"type": "message", "role": "assistant", "content": []}, 0),
        ({"type": "mcp_list_tools", "server_label": "s", "tools": [{"name": "x" * 400}]}, 0),
        ({"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "x" * 400}]}, 0),
        ({"type": "file_search_call", "queries": ["x"], "results": [{"text": "x" * 400}]}, 2),
    ],
)
def test_an_item_of_any_kind_that_had_no_deltas_counts_what_a_model_said_in_it(
    item: dict[str, Any], produced: int
) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    done = event("response.output_item.done", output_index=0, item={"id": "item_1", **item})
    assert stream.feed(done).produced == produced
    grown = openai_responses.open_stream(wish=asked(), label=LABEL)
    assert grown.feed(event("response.new.delta", output_index=0, item_id="item_1", delta={"text": "x" * 20})).produced
    assert grown.feed(done).produced == 0


def terse() -> list[bytes]:
    """A response as llama.cpp's server streams it: events have no number nor place, calls no id."""
    text: dict[str, Any] = {"type": "output_text", "text": ""}
    thought: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [], "encrypted_content": ""}
    said: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    calls = [{"type": "function_call", "call_id": f"fc_{number}", "name": "f", "arguments": ""} for number in (1, 2)]
    grown = "response.function_call_arguments.delta"
    return [
        event("response.created", response={"id": "resp_1", "object": "response", "status": "in_progress"}),
        event("response.output_item.added", item=thought),
        event("response.reasoning_text.delta", item_id="rs_1", delta="hm"),
        event("response.output_item.added", item=said),
        event("response.content_part.added", item_id="msg_1", part=text),
        *[event("response.output_text.delta", item_id="msg_1", delta=word) for word in ("a", " b")],
        event("response.output_item.added", item=calls[0]),
        event("response.output_item.added", item=calls[1]),
        *[event(grown, item_id=id, delta=more) for id, more in (("fc_1", "{"), ("fc_2", "{}"), ("fc_1", "}"))],
        event("response.output_item.done", item=thought | {"content": [{"type": "reasoning_text", "text": "hm"}]}),
        event("response.output_text.done", item_id="msg_1", text="a b"),
        event("response.content_part.done", item_id="msg_1", part=text | {"text": "a b"}),
        event("response.output_item.done", item=said | {"content": [text | {"text": "a b"}]}),
        *[event("response.output_item.done", item=call | {"arguments": "{}"}) for call in calls],
        event("response.completed", response={"id": "resp_1", "status": "completed", "output": []}),
    ]


def test_deltas_count_where_no_event_says_where_its_item_is() -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    steps = [stream.feed(each) for each in terse()]
    assert [step.out for step in steps[1:-1]] == terse()[1:-1]
    assert [step.produced for step in steps] == [0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("count", range(1, len(terse())))
def test_such_a_stream_is_ended_in_order_after_any_event(count: int) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    given_events = [json.loads(sse.data(stream.feed(each).out) or b"") for each in terse()[:count]]
    stream.feed(event("response.output_text.delta", item_id="msg_1", delta="unpaid"))
    out = stream.final_chunk(finish_reason="length", reason="insufficient_balance") + stream.terminator()
    ours = [json.loads(sse.data(each) or b"") for each in sse.events(out)]
    begun, ended = (
        [each for each in given_events + ours if each["type"] == f"response.output_item.{what}"]
        for what in ("added", "done")
    )
    output = ours[-1]["response"]["output"]
    assert len(begun) == len(ended) == len(output)
    assert [each["type"] for each in output] == [each["item"]["type"] for each in begun]
    assert b"unpaid" not in out
    if count == 12:
        assert [each.get("arguments") for each in output] == [None, None, "{}", "{}"]
        assert output[1]["content"][0]["text"] == "a b"
        assert {each["item_id"] for each in ours if each["type"].endswith("arguments.done")} == {"fc_1", "fc_2"}


def test_deltas_of_an_item_that_nobody_has_heard_of_count_once() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "x" * 100}
    for named in ({"item_id": "fc_1"}, {"item_id": ""}, {"item_id": 3}, {}):
        stream = openai_responses.open_stream(wish=asked(), label=LABEL)
        delta = event("response.function_call_arguments.delta", **named, delta="x" * 100)
        assert stream.feed(delta).produced == 25
        item = call if "fc_1" in named.values() else {**call, "id": None, "call_id": None}
        assert stream.feed(event("response.output_item.done", item=item)).produced == 0
        assert stream.feed(event("response.output_item.done", item={**call, "id": "fc_2"})).produced == 26


def test_items_that_begin_full_or_in_any_number_are_counted() -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)

    def begun(index: int, text: str) -> int:
        part = {"type": "output_text", "text": text}
        item = {"type": "message", "id": f"msg_{index}", "role": "assistant", "content": [part]}
        return stream.feed(event("response.output_item.added", output_index=index, item=item)).produced

    assert begun(0, "") == 0
    assert begun(1, "x" * 40_000) >= 10_000
    stream.feed(event("response.output_item.done", output_index=1, item={}))
    assert {begun(index, "") for index in range(2, 250)} == {0}
    assert all([begun(index, "") for index in range(250, 300)][-40:])


DEEP = b'{"content":' + b"[" * 5_000 + b"]" * 5_000 + b"}"


@pytest.mark.parametrize("item", [b"null", b"3", b"[]", b'{"type":["message"]}', b"", DEEP])
def test_an_item_that_is_none_passes_counted_by_its_size_and_the_one_that_is_open_is_ended(item: bytes) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    out = b"".join(stream.feed(each).out for each in transcript()[:6])
    field = b',"item":' + item if item else b""
    odd = b'data: {"type":"response.output_item.done","output_index":0' + field + b"}\n\n"
    step = stream.feed(odd)
    assert (step.out, step.produced > 0) == (odd, True)
    stream.feed(transcript()[6])
    out += stream.final_chunk(finish_reason="length", reason="insufficient_balance") + stream.terminator()
    events = load(out)
    _each_item_is_ended(events)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "a b"


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TYPES = ["response.created", "response.completed", "response.failed", "error", "response.output_item.added", ""]
TYPES += ["response.content_part.added", "response.output_text.delta", "response.output_item.done", "response.queued"]
NAMES = [
    "output_index",
    "item_id",
    "content_index",
    "summary_index",
    "delta",
    "item",
    "part",
    "response",
    "sequence_number",
    "text",
]
STRANGE = st.builds(
    lambda type, fields: {"type": type, **fields},
    st.sampled_from(TYPES) | ODD,
    st.dictionaries(st.sampled_from(NAMES), ODD | st.sampled_from([0, {"type": "message", "content": []}]), max_size=6),
)


@given(
    st.lists(
        st.builds(lambda each: b"data: " + json.dumps(each).encode() + b"\n\n", STRANGE) | st.binary(max_size=40),
        max_size=8,
    )
)
def test_nothing_an_upstream_sends_is_too_much(events: list[bytes]) -> None:
    stream = openai_responses.open_stream(wish=asked(), label=LABEL)
    for each in events:
        assert stream.feed(each).produced >= 0
    assert stream.final_chunk(finish_reason="length", reason="r") is not None
    assert b"response.incomplete" in stream.terminator() or any(b"completed" in each for each in events)


def _each_item_is_ended(events: list[Any]) -> None:
    begun = [each["output_index"] for each in events if each["type"] == "response.output_item.added"]
    ended = [each["output_index"] for each in events if each["type"] == "response.output_item.done"]
    assert sorted(begun) == sorted(ended)
    parts = [each["type"].rpartition(".")[2] for each in events if "content_part" in each["type"]]
    assert parts.count("added") == parts.count("done")
