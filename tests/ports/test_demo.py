"""The demo engine: its answers are what an OpenAI client expects, and its usage is what its own tokenizer counts."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ports import Call
from penstock.providers.demo import CONTEXT_TOKENS, DemoProvider, tokenize

MESSAGES = [{"role": "user", "content": "What is a prepaid token?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["celsius", "kelvin"]},
                "note": {"type": "string"},
            },
            "required": ["city", "days", "unit"],
        },
    },
}


async def send(path: str, **body: Any) -> tuple[int, bytes]:
    call = Call(path, json.dumps(body).encode(), stream=bool(body.get("stream")))
    answer = await DemoProvider().open(call)
    return answer.status, await answer.read(100_000_000)


async def chat(**body: Any) -> Any:
    status, document = await send("chat/completions", **({"model": "demo", "messages": MESSAGES} | body))
    assert status == 200, document
    return json.loads(document)


async def chunks(**body: Any) -> list[Any]:
    """The events of a stream, parsed, without the terminator."""
    status, stream = await send("chat/completions", **({"model": "demo", "messages": MESSAGES, "stream": True} | body))
    assert status == 200, stream
    assert stream.endswith(b"\n\ndata: [DONE]\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n")[:-2]]


async def embed(**body: Any) -> Any:
    status, document = await send("embeddings", **({"model": "demo"} | body))
    assert status == 200, document
    return json.loads(document)


def texts(events: list[Any], index: int = 0) -> list[str]:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


async def test_it_says_what_it_is() -> None:
    document = await chat()
    assert document["system_fingerprint"] == "penstock-demo"
    assert "demo engine" in document["choices"][0]["message"]["content"]
    assert "What is a prepaid token?" in document["choices"][0]["message"]["content"]


async def test_an_answer_ends_by_itself_at_a_natural_length_and_is_the_same_again() -> None:
    first, second = await chat(), await chat()
    assert first["choices"] == second["choices"]
    assert first["choices"][0]["finish_reason"] == "stop"
    assert 40 <= first["usage"]["completion_tokens"] < 60


async def test_usage_is_exact_by_the_tokenizer() -> None:
    document = await chat()
    completion = len(tokenize(document["choices"][0]["message"]["content"]))
    prompt = 3 + len(tokenize("user")) + len(tokenize("What is a prepaid token?"))
    assert document["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [1, 2, 39])
async def test_the_output_limit_is_met_exactly(field: str, limit: int) -> None:
    document = await chat(**{field: limit})
    assert document["choices"][0]["finish_reason"] == "length"
    assert len(tokenize(document["choices"][0]["message"]["content"])) == limit
    assert document["usage"]["completion_tokens"] == limit


async def test_a_limit_beyond_the_natural_end_changes_nothing() -> None:
    assert (await chat(max_tokens=1000))["choices"] == (await chat())["choices"]


async def test_a_longer_answer_comes_when_asked_for() -> None:
    document = await chat(messages=[{"role": "user", "content": "Please write 300 tokens."}])
    assert 300 <= document["usage"]["completion_tokens"] < 320
    assert document["choices"][0]["finish_reason"] == "stop"


async def test_without_an_end_of_its_own_it_goes_on_to_the_limit() -> None:
    document = await chat(ignore_eos=True, max_tokens=1234)
    assert document["usage"]["completion_tokens"] == 1234
    assert document["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", ["prepaid", ["nowhere", "prepaid", ""]])
async def test_a_stop_sequence_ends_the_answer_before_it(stop: str | list[str]) -> None:
    document = await chat(stop=stop)
    content = document["choices"][0]["message"]["content"]
    assert content.endswith('You asked: "What is a ')
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["usage"]["completion_tokens"] == len(tokenize(content))


async def test_a_stream_has_one_token_an_event_and_the_words_of_the_plain_answer() -> None:
    document, events = await chat(), await chunks(stream_options={"include_usage": True})
    tokens = texts(events)
    assert "".join(tokens) == document["choices"][0]["message"]["content"]
    assert len(tokens) == document["usage"]["completion_tokens"]
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == document["usage"]
    assert len({event["id"] for event in events}) == 1
    assert events[0]["id"].startswith("chatcmpl-")


async def test_a_stream_has_usage_only_when_asked() -> None:
    assert all("usage" not in event and event["choices"] for event in await chunks())


async def test_choices_come_side_by_side_and_each_counts() -> None:
    document, events = await chat(n=3, max_tokens=30), await chunks(n=3, max_tokens=30)
    contents = [choice["message"]["content"] for choice in document["choices"]]
    assert ["".join(texts(events, index)) for index in range(3)] == contents
    assert len(set(contents)) == 3
    assert document["usage"]["completion_tokens"] == 90
    indexes = [event["choices"][0]["index"] for event in events]
    assert all((before + 1) % 3 == after for before, after in pairwise(indexes))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_tool_is_called_when_the_choice_forces_it(choice: Any) -> None:
    document = await chat(tools=[WEATHER], tool_choice=choice)
    (call,) = document["choices"][0]["message"]["tool_calls"]
    assert document["choices"][0]["finish_reason"] == "tool_calls"
    assert document["choices"][0]["message"]["content"] is None
    assert call["function"]["name"] == "weather"
    arguments = {"city": "What is a prepaid token?", "days": 1, "unit": "celsius"}
    assert json.loads(call["function"]["arguments"]) == arguments


async def test_a_streamed_tool_call_adds_up_to_the_plain_one() -> None:
    fields = {"tools": [WEATHER], "tool_choice": "required"}
    document = await chat(**fields)
    events = await chunks(**fields, stream_options={"include_usage": True})
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in events[:-2]]
    plain = document["choices"][0]["message"]["tool_calls"][0]["function"]
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert "".join(call["function"]["arguments"] for call in calls) == plain["arguments"]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert events[-1]["usage"] == document["usage"]


async def test_a_tool_call_keeps_to_the_output_limit() -> None:
    document = await chat(tools=[WEATHER], tool_choice="required", max_tokens=4)
    assert document["usage"]["completion_tokens"] == 4
    assert document["choices"][0]["finish_reason"] == "length"


async def test_a_tool_that_is_only_offered_is_not_called_and_its_result_is_read() -> None:
    assert (await chat(tools=[WEATHER]))["choices"][0]["message"]["content"]
    answered = [*MESSAGES, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    document = await chat(tools=[WEATHER], messages=answered)
    assert 'The tool said: "sunny"' in document["choices"][0]["message"]["content"]


async def test_embeddings_are_the_same_unit_vector_for_the_same_text() -> None:
    document = await embed(input=["a paid token", "a paid token", "a token, paid", "weather in Oslo"])
    first, same, near, far = [item["embedding"] for item in document["data"]]
    assert len(first) == 256
    assert math.isclose(math.hypot(*first), 1.0)
    assert first == same
    assert _cosine(first, near) > 0.7
    assert _cosine(first, far) < 0.3
    assert document["usage"] == {"prompt_tokens": 13, "total_tokens": 13}


@pytest.mark.parametrize("dimensions", [1, 2, 3, 1024])
async def test_embeddings_have_the_dimensions_asked_for(dimensions: int) -> None:
    document = await embed(input="a paid token", dimensions=dimensions)
    vector = document["data"][0]["embedding"]
    assert len(vector) == dimensions
    assert math.isclose(math.hypot(*vector), 1.0)


async def test_embeddings_in_base64_are_the_same_numbers_in_single_precision() -> None:
    plain, packed = await embed(input="a token"), await embed(input="a token", encoding_format="base64")
    numbers = struct.unpack("<256f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers == pytest.approx(plain["data"][0]["embedding"])


@pytest.mark.parametrize(
    ("given", "count", "tokens"), [("one two", 1, 2), (["one", "two"], 2, 2), ([1, 2, 3], 1, 3), ([[1, 2], [3]], 2, 3)]
)
async def test_embeddings_take_texts_and_token_numbers(given: Any, count: int, tokens: int) -> None:
    document = await embed(input=given)
    assert len(document["data"]) == count
    assert document["usage"]["prompt_tokens"] == tokens


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": MESSAGES}, None),
        ("chat/completions", {"model": "demo", "messages": []}, "messages"),
        ("chat/completions", {"model": "demo", "messages": "hello"}, "messages"),
        ("chat/completions", {"model": "demo", "messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"model": "demo", "messages": MESSAGES, "n": 129}, "n"),
        ("chat/completions", {"model": "demo", "messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        ("embeddings", {"model": "demo", "input": []}, "input"),
        ("embeddings", {"model": "demo", "input": ["text", 1]}, "input"),
        ("embeddings", {"model": "demo", "input": "text", "dimensions": 0}, "dimensions"),
    ],
)
async def test_a_bad_request_is_answered_in_openai_shape(path: str, body: dict[str, Any], param: str | None) -> None:
    status, document = await send(path, **body)
    error = json.loads(document)["error"]
    assert status == 400
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


async def test_a_prompt_beyond_the_context_is_refused() -> None:
    too_long = [{"role": "user", "content": "a" * 10 * CONTEXT_TOKENS}]
    status, document = await send("chat/completions", model="demo", messages=too_long)
    assert status == 400
    assert json.loads(document)["error"]["code"] == "context_length_exceeded"


async def test_other_calls_go_on_between_the_tokens_of_a_stream() -> None:
    slow = await DemoProvider().open(Call("chat/completions", json.dumps(_streamed()).encode(), stream=True))
    pieces: list[bytes] = []

    async def collect() -> None:
        pieces.extend([piece async for piece in slow])

    collecting = asyncio.create_task(collect())
    await asyncio.sleep(0)
    quick = await chat(max_tokens=1)
    assert quick["usage"]["completion_tokens"] == 1
    assert not pieces
    await collecting
    assert len(pieces) > 40


async def test_the_delay_is_for_each_token() -> None:
    loop = asyncio.get_running_loop()
    provider = DemoProvider(token_delay_s=0.002)
    for body in (_streamed(max_tokens=10), _streamed(max_tokens=10) | {"stream": False}):
        began = loop.time()
        answer = await provider.open(Call("chat/completions", json.dumps(body).encode(), stream=True))
        await answer.read(100_000)
        assert loop.time() - began >= 0.02


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _streamed(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": MESSAGES, "stream": True} | fields


@given(st.text())
def test_tokens_joined_are_the_text_and_never_more_than_its_bytes(text: str) -> None:
    tokens = tokenize(text)
    assert "".join(tokens) == text
    assert len(tokens) <= len(text.encode("utf-8", "surrogatepass"))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["chat/completions", "embeddings"]),
    st.binary()
    | st.fixed_dictionaries(
        {"model": st.just("demo")},
        optional={
            "messages": st.just(MESSAGES) | _json,
            "input": st.text() | _json,
            "tools": st.just([WEATHER]) | _json,
            "tool_choice": st.just("required") | _json,
            "stop": st.text() | _json,
            "n": st.integers(1, 3) | _json,
        },
    ).map(lambda body: json.dumps(body).encode()),
)
async def test_no_body_breaks_it(path: str, body: bytes) -> None:
    answer = await DemoProvider().open(Call(path, body, stream=False))
    assert answer.status in {200, 400}
    assert json.loads(await answer.read(1_000_000))
