"""Chat answers in one piece: names swapped, usage read in every shape it comes in, output estimated without it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from penstock.dialects import openai_chat
from penstock.dialects.usage import MOST_TOKENS, TokenUsage, estimate_delta_tokens, estimate_tokens, read_usage
from penstock.errors import UpstreamFailed
from tests.wishes import WISH, labelled

ANSWER = (
    b'{"id":"chatcmpl-B9M","object":"chat.completion","created":1741569952,"model":"gpt-4o-2024-08-06","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello!","refusal":null},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":8},'
    b'"completion_tokens_details":{"reasoning_tokens":4}},"system_fingerprint":"fp_1"}'
)


def choices(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"} for message in messages]}).encode()


def produced(body: bytes) -> int:
    return openai_chat.answer(body, wish=WISH, label=labelled(None, None)).produced


def test_an_answer_is_read_and_renamed() -> None:
    plain = openai_chat.answer(ANSWER, wish=WISH, label=labelled("fast", "cmpl-"))
    assert plain.body == ANSWER.replace(b"gpt-4o-2024-08-06", b"fast").replace(b"chatcmpl-B9M", b"cmpl-B9M")
    assert plain.usage == TokenUsage(input=19, output=10, cached_input=8, reasoning=4, total=29)
    assert plain.produced == 10


def test_an_answer_with_nothing_to_rename_stays_as_it_is() -> None:
    spaced = ANSWER.replace(b",", b" , ")
    assert openai_chat.answer(spaced, wish=WISH, label=labelled(None, None)).body == spaced


@pytest.mark.parametrize(
    ("id", "expected"),
    [('"chatcmpl-1"', '"cmpl-1"'), ('"cmpl-1"', '"cmpl-1"'), ('"gen-1"', '"cmpl-gen-1"'), ("null", "null"), ("7", "7")],
)
def test_an_id_gets_our_prefix_once(id: str, expected: str) -> None:
    plain = openai_chat.answer(f'{{"id":{id},"choices":[]}}'.encode(), wish=WISH, label=labelled(None, "cmpl-"))
    assert plain.body == f'{{"id":{expected},"choices":[]}}'.encode()


def test_an_answer_without_a_model_gets_the_callers() -> None:
    plain = openai_chat.answer(b'{"choices":[]}', wish=WISH, label=labelled("m", None))
    assert plain.body == b'{"choices":[],"model":"m"}'


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"choices":', b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_not_a_json_object_is_a_failure_of_the_upstream(body: bytes) -> None:
    with pytest.raises(UpstreamFailed) as failure:
        openai_chat.answer(body, wish=WISH, label=labelled("m", None))
    assert failure.value.began


@pytest.mark.parametrize("error", ['{"error":{"message":"overloaded"}}', '{"error":"overloaded"}'])
def test_an_error_with_a_good_status_is_a_failure_of_the_upstream(error: str) -> None:
    with pytest.raises(UpstreamFailed, match="overloaded"):
        openai_chat.answer(error.encode(), wish=WISH, label=labelled("m", None))


def test_an_empty_error_beside_an_answer_is_none() -> None:
    body = b'{"error":null,"object":"chat.completion"}'
    assert openai_chat.answer(body, wish=WISH, label=labelled(None, None)).usage is None


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ('{"prompt_tokens":3,"completion_tokens":4}', TokenUsage(3, 4, total=7)),
        ('{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}', TokenUsage(0, 0)),
        ('{"prompt_tokens":3,"completion_tokens":0,"total_tokens":3}', TokenUsage(3, 0, total=3)),
        ('{"prompt_tokens":3,"total_tokens":9}', TokenUsage(3, 6, total=9)),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_cache_hit_tokens":8}',
            TokenUsage(9, 1, 8, 0, 10),
        ),
        ('{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":null}', TokenUsage(3, 4, total=7)),
        (
            '{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":99}}',
            TokenUsage(3, 4, 3, 0, 7),
        ),
        ('{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":"?"}', TokenUsage(3, 4, total=7)),
        ('{"prompt_tokens":3.0,"completion_tokens":4,"total_tokens":"7"}', TokenUsage(3, 4, total=7)),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":15,"completion_tokens_details":{"reasoning_tokens":5}}',
            TokenUsage(9, 6, 0, 5, 15),
        ),
        ("null", None),
        ("{}", None),
        ("[]", None),
        ('"12"', None),
        ('{"completion_tokens":4}', None),
        ('{"prompt_tokens":4}', None),
        ('{"prompt_tokens":-1,"completion_tokens":4}', None),
        ('{"prompt_tokens":true,"completion_tokens":4}', None),
        ('{"prompt_tokens":"3","completion_tokens":4}', None),
        (f'{{"prompt_tokens":{MOST_TOKENS + 1},"completion_tokens":4}}', None),
        ('{"prompt_tokens":1e400,"completion_tokens":4}', None),
        ('{"prompt_tokens":' + "9" * 400 + ',"completion_tokens":4}', None),
    ],
)
def test_usage_is_read_in_every_shape_it_comes_in(report: str, expected: TokenUsage | None) -> None:
    assert read_usage(Raw(report.encode())) == expected


def test_an_explicit_zero_is_not_estimated() -> None:
    body = choices({"content": "x" * 400})[:-1] + b',"usage":{"prompt_tokens":5,"completion_tokens":0}}'
    assert produced(body) == 0


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ({"content": "x" * 400}, 100),
        ({"content": "é" * 200}, 100),
        ({"content": None, "reasoning_content": "x" * 40, "reasoning": "x" * 40}, 10),
        ({"content": "x" * 4, "refusal": "x" * 4}, 2),
        ({"tool_calls": [{"function": {"name": "f" * 4, "arguments": "x" * 8}}]}, 3),
        ({"function_call": {"name": "f", "arguments": "x" * 3}}, 1),
        ({"content": ""}, 0),
    ],
)
def test_output_is_estimated_when_usage_is_missing(message: dict[str, Any], tokens: int) -> None:
    assert produced(choices(message)) == tokens
    assert produced(choices(message, message)) == 2 * tokens


def test_output_of_an_unknown_shape_is_estimated_by_its_size() -> None:
    body = choices({"content": [{"type": "thinking", "thinking": "x" * 400}]})
    assert produced(body) >= 100


def test_estimates_follow_the_size() -> None:
    assert [estimate_tokens(size) for size in (0, 1, 4, 5, 400)] == [0, 1, 1, 2, 100]
    assert [estimate_delta_tokens(size) for size in (0, 1, 16, 17, 400)] == [0, 1, 1, 5, 100]


@given(
    st.binary()
    | st.dictionaries(st.sampled_from(["id", "model", "choices", "usage", "error"]), st.text()).map(
        lambda body: json.dumps(body).encode()
    )
)
def test_arbitrary_bytes_are_an_answer_or_a_failure(body: bytes) -> None:
    try:
        plain = openai_chat.answer(body, wish=WISH, label=labelled("m", "cmpl-"))
    except UpstreamFailed:
        return
    json.loads(plain.body)
