"""What upstreams say when they refuse, as each of them writes it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects.refusals import Said, read_refusal

MISTRAL_422 = (
    '{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","store"],'
    '"msg":"Extra inputs are not permitted","input":true}]},"type":"invalid_request_error","param":null,"code":null}'
)
OPENROUTER = (
    '{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\\"error\\":{\\"message\\":'
    '\\"too long\\",\\"param\\":\\"messages\\"}}","provider_name":"Together"}},"user_id":"u"}'
)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(
            '{"error":{"message":"too long","type":"t","param":"messages","code":"context_length_exceeded"}}',
            Said("too long", "context_length_exceeded", "messages"),
            id="OpenAI, Groq, DeepSeek, Together, vLLM",
        ),
        pytest.param(
            '{"type":"error","error":{"type":"invalid_request_error","message":"too long"},"request_id":"r"}',
            Said("too long"),
            id="Anthropic",
        ),
        pytest.param(
            '[{"error":{"code":400,"message":"Unknown name","status":"INVALID_ARGUMENT"}}]',
            Said("Unknown name", "INVALID_ARGUMENT"),
            id="Gemini",
        ),
        pytest.param(
            '{"object":"error","message":"Invalid model","type":"invalid_model","param":null,"code":"1500"}',
            Said("Invalid model", "1500"),
            id="Mistral",
        ),
        pytest.param(MISTRAL_422, Said("store: Extra inputs are not permitted", None, "store"), id="Mistral, 422"),
        pytest.param(
            '{"detail":[{"loc":["body","n"],"msg":"not a number"},{"loc":["body"],"msg":"no"}]}',
            Said("n: not a number; no", None, "n"),
            id="FastAPI",
        ),
        pytest.param('{"detail":{"error":"Model is not available"}}', Said("Model is not available"), id="DeepInfra"),
        pytest.param('{"detail":"Not authenticated"}', Said("Not authenticated"), id="DeepInfra, words alone"),
        pytest.param(
            '{"code":"invalid-argument","error":"Argument not supported: stop"}',
            Said("Argument not supported: stop", "invalid-argument"),
            id="xAI",
        ),
        pytest.param(OPENROUTER, Said("Provider returned error: too long", "400", "messages"), id="OpenRouter"),
        pytest.param(
            '{"error":{"message":"Provider returned error","metadata":{"raw":"gone"}}}',
            Said("Provider returned error: gone"),
            id="OpenRouter, words alone",
        ),
        pytest.param('{"error":"model not found"}', Said("model not found"), id="Ollama, LM Studio"),
        pytest.param(
            '{"error":{"code":400,"message":"too large","type":"exceed_context_size_error","n_ctx":4096}}',
            Said("too large", "exceed_context_size_error"),
            id="llama.cpp",
        ),
        pytest.param(
            '{"message":"Invalid","type":"t","param":"n","code":"wrong"}', Said("Invalid", "wrong", "n"), id="Cerebras"
        ),
        pytest.param('{"detail":[{"msg":"x","loc":5}]}', Said("x"), id="a mistake at no place"),
        pytest.param('{"detail":[{"msg":"x","loc":"body"}]}', Said("x"), id="a mistake at a word"),
        pytest.param("<html>", Said(), id="a page"),
        pytest.param("[]", Said(), id="an empty list"),
        pytest.param('{"error":null}', Said(), id="no error"),
        pytest.param('{"error":' * 9 + '"x"' + "}" * 9, Said(), id="too deep"),
    ],
)
def test_a_refusal_is_read_in_every_shape(body: str, said: Said) -> None:
    assert read_refusal(body) == said
    assert read_refusal(body.encode()) == said


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "msg", "loc", "code", "param", "metadata", "raw"]), inner
        )
    ),
)


@given(st.binary() | ODD.map(json.dumps))
def test_nothing_that_comes_back_is_too_strange_to_read(body: bytes | str) -> None:
    assert isinstance(read_refusal(body), Said)
