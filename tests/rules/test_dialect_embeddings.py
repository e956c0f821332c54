"""Embeddings: what is read, refused and passed on."""

from __future__ import annotations

import pytest

from penstock.dialects import Dialect, openai_chat, openai_embeddings
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest, ModelMissing, UpstreamFailed
from tests.wishes import WISH, labelled

DIALECTS: tuple[Dialect, ...] = (openai_chat, openai_embeddings)


def test_each_dialect_says_where_it_lives() -> None:
    assert [dialect.PATH for dialect in DIALECTS] == ["chat/completions", "embeddings"]


@pytest.mark.parametrize("input", ['"hi"', '["hi","there"]', "[1,2,3]", "[[1,2],[3]]"])
def test_every_shape_of_input_passes_unchanged(input: str) -> None:
    body = f'{{"model":"m","input":{input},"dimensions":8}}'.encode()
    wish = openai_embeddings.peek(body, max_output_tokens=1)
    assert (wish.stream, wish.output_limit, wish.choices, wish.input_bytes) == (False, None, 1, len(body))
    sent = openai_embeddings.request(wish, model="up", output_limit=5, limit_field="max_tokens", ask_usage=True)
    assert sent == body.replace(b'"m"', b'"up"')


@pytest.mark.parametrize(
    "input", ["null", '""', "[]", "5", "true", "{}", "[null]", '["a",1]', "[1.5]", '[["a"]]', "[[1],2]"]
)
def test_input_of_the_wrong_shape_is_refused(input: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        openai_embeddings.peek(f'{{"model":"m","input":{input}}}'.encode(), max_output_tokens=1)
    assert refusal.value.param == "input"


def test_the_model_comes_before_the_input() -> None:
    with pytest.raises(ModelMissing):
        openai_embeddings.peek(b'{"input":[]}', max_output_tokens=1)


def test_an_answer_names_the_callers_model_and_reports_the_input() -> None:
    usage = b'"usage":{"prompt_tokens":5,"total_tokens":5}'
    body = b'{"object":"list","data":[{"embedding":[0.10,-2e-3]}],"model":"up",' + usage + b"}"
    plain = openai_embeddings.answer(body, wish=WISH, label=labelled("m", "cmpl-"))
    assert plain.body == body.replace(b'"up"', b'"m"')
    assert (plain.usage, plain.produced) == (TokenUsage(input=5, output=0, total=5), 0)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":{"message":"overloaded"}}'])
def test_what_is_no_answer_is_a_failure_of_the_upstream(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        openai_embeddings.answer(body, wish=WISH, label=labelled("m", None))


def test_embeddings_are_never_streamed() -> None:
    with pytest.raises(InvalidRequest):
        openai_embeddings.open_stream(wish=WISH, label=labelled("m", None))
