"""Legacy completions: as they are to an upstream that has them, and as a chat to one that has not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.dialects import Dialect, Pair, Step, Wish, openai_chat, openai_completions, sse
from penstock.dialects.pairs import between, completions_to_chat
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest, ModelMissing, UpstreamFailed
from tests.wishes import labelled

COMPLETION = (
    b'{"id":"cmpl-up","object":"text_completion","created":1741569952,"model":"up","choices":[{"text":" there was",'
    b'"index":0,"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":4,"completion_tokens":2,'
    b'"total_tokens":6},"system_fingerprint":"fp_1"}'
)
LABEL = labelled("mine", None)


def wish(prompt: Any = "Once upon a time", **fields: Any) -> Wish:
    body = json.dumps({"model": "mine", "prompt": prompt, **fields}).encode()
    return openai_completions.peek(body, max_output_tokens=1000)


def upstream_body(pair: Pair, wish: Wish, *, limit_field: str = "max_tokens") -> Any:
    body = pair.request(wish, model="up", output_limit=wish.output_limit, limit_field=limit_field, ask_usage=True)
    return json.loads(body)


def frame(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
    return {"id": "cmpl-up", "object": "text_completion", "created": 9, "model": "up", "choices": [choice]}


def chat_piece(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 9, "model": "up", "choices": [choice], **more}


def through(stream: Any, *events: bytes) -> list[Step]:
    return [stream.feed(event) for event in events]


def sent(steps: list[Step]) -> list[Any]:
    return [json.loads(sse.data(step.out) or b"") for step in steps if step.out]


# Requests.


@pytest.mark.parametrize(
    ("prompt", "texts", "tokens", "prompts"),
    [
        ("Grüezi", 7, 0, 1),
        (["one", "two"], 6, 0, 2),
        ([1, 2, 3], 0, 3, 1),
        ([[1, 2], [3]], 0, 3, 2),
    ],
)
def test_a_prompt_may_be_texts_or_tokens_and_each_is_answered(
    prompt: Any, texts: int, tokens: int, prompts: int
) -> None:
    read = wish(prompt, n=3)
    assert (read.text_bytes, read.token_ids, read.choices) == (texts, tokens, 3 * prompts)
    assert upstream_body(openai_completions, read)["prompt"] == prompt


def test_what_is_to_follow_the_text_is_in_the_estimate_too() -> None:
    assert wish("Grüezi", suffix="Ciao").text_bytes == 11


@pytest.mark.parametrize("prompt", [None, [], ["a", 1], [["a"]], 5, {}, True, [None], ["x"] * 2049])
def test_what_is_no_prompt_is_refused_by_name(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wish(prompt)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    "fields",
    [
        *[{"max_tokens": -1}, {"max_tokens": 1001}, {"max_tokens": "5"}, {"n": 0}, {"n": 129}, {"stream": "yes"}],
        *[{"best_of": 2}, {"n_predict": 5}, {"max_new_tokens": 5}, {"max_completion_tokens": 5}, {"Prompt": "x"}],
    ],
)
def test_a_field_that_is_malformed_or_means_another_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wish(**fields)
    assert refused.value.param == next(iter(fields))


def test_the_model_is_asked_for_first() -> None:
    with pytest.raises(ModelMissing):
        openai_completions.peek(b'{"prompt":5}', max_output_tokens=10)


def test_without_a_limit_it_is_the_published_one() -> None:
    assert (wish().output_limit, wish(max_tokens=None).output_limit, wish(max_tokens=0).output_limit) == (16, 16, 0)


def test_all_else_passes_and_the_limit_keeps_its_name() -> None:
    asked = wish(suffix=" end", echo=True, logprobs=2, temperature=0, top_k=5, max_tokens=9, stream=True)
    assert upstream_body(openai_completions, asked, limit_field="max_completion_tokens") == {
        "model": "up",
        "prompt": "Once upon a time",
        "suffix": " end",
        "echo": True,
        "logprobs": 2,
        "temperature": 0,
        "top_k": 5,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_chat_gets_the_prompt_as_what_a_user_says() -> None:
    asked = wish(["Say hi."], suffix=None, echo=False, logprobs=None, temperature=0.5, stop=["\n"], n=2, max_tokens=9)
    assert upstream_body(completions_to_chat, asked, limit_field="max_completion_tokens") == {
        "model": "up",
        "messages": [{"role": "user", "content": "Say hi."}],
        "temperature": 0.5,
        "stop": ["\n"],
        "n": 2,
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("suffix", " end"), ("echo", True), ("logprobs", 0), ("logprobs", 2), ("max_tokens", 0)],
        *[("prompt", ["a", "b"]), ("prompt", [1, 2]), ("prompt", [[1], [2]])],
    ],
)
def test_what_a_chat_cannot_do_is_refused_by_name(name: str, value: Any) -> None:
    asked = wish(**{name: value})
    with pytest.raises(InvalidRequest) as refused:
        upstream_body(completions_to_chat, asked)
    assert refused.value.param == name


def test_an_upstream_that_has_completions_gets_them_and_one_that_has_only_chat_gets_a_chat() -> None:
    dialect: Dialect = openai_completions
    assert between(dialect, ("openai_chat", "openai_completions")) is openai_completions
    assert between(dialect, ("openai_chat",)) is completions_to_chat
    assert between(dialect, ("anthropic_messages",)) is None


# Plain answers.


def test_an_answer_is_read_and_renamed() -> None:
    plain = openai_completions.answer(COMPLETION, wish=wish(), label=labelled("mine", "cmpl-"))
    assert plain.body == COMPLETION.replace(b'"model":"up"', b'"model":"mine"')
    assert plain.usage == TokenUsage(input=4, output=2, total=6)
    assert plain.produced == 2


@pytest.mark.parametrize(("fields", "produced"), [({}, 6 + 3), ({"echo": True}, 2 + 2)])
def test_what_was_not_counted_is_estimated_without_the_echo(fields: dict[str, Any], produced: int) -> None:
    texts = ["Once upon a time there", "and more text"]
    choices = [{"text": text, "index": index, "finish_reason": "stop"} for index, text in enumerate(texts)]
    asked = wish(["Once upon a time", "and m"], **fields)
    body = json.dumps({"choices": choices}).encode()
    assert openai_completions.answer(body, wish=asked, label=LABEL).produced == produced + (not fields) * 1


def test_a_chats_answer_becomes_a_completion() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "x": 1}
    message = {"role": "assistant", "content": "Hi!", "reasoning_content": "Say hi."}
    choices = [
        {"index": 0, "message": message, "finish_reason": "stop"},
        {"index": 1, "message": {"content": None, "refusal": "No."}, "finish_reason": "stop"},
    ]
    chat = {"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "up", "choices": choices}
    body = json.dumps(chat | {"usage": usage, "system_fingerprint": "fp_1"}).encode()
    plain = completions_to_chat.answer(body, wish=wish(n=2), label=LABEL)
    assert json.loads(plain.body) == {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 7,
        "model": "mine",
        "system_fingerprint": "fp_1",
        "choices": [
            {"text": "Hi!", "index": 0, "logprobs": None, "finish_reason": "stop"},
            {"text": "No.", "index": 1, "logprobs": None, "finish_reason": "stop"},
        ],
        "usage": usage,
    }
    assert (plain.usage, plain.produced) == (TokenUsage(3, 5, total=8), 5)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"error":{"message":"No."}}', b'{"choices":5}'])
def test_what_is_no_chat_is_a_failure(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        completions_to_chat.answer(body, wish=wish(), label=LABEL)


# Streams.


def test_a_stream_passes_with_the_models_name_swapped_and_is_counted_by_the_text() -> None:
    stream = openai_completions.open_stream(wish=wish(stream=True), label=LABEL)
    usage = piece("") | {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}
    events = [frame(piece(" there")), frame(piece(" was")), frame(piece("", "length")), frame(usage)]
    steps = through(stream, *events, b"data: [DONE]\n\n")
    assert sent(steps) == [each | {"model": "mine"} for each in (piece(" there"), piece(" was"), piece("", "length"))]
    assert [step.produced for step in steps] == [1, 1, 0, 0, 0]
    assert (steps[2].finish_reason, steps[3].usage) == ("length", TokenUsage(4, 2, total=6))
    assert steps[4].done


def test_an_echo_in_a_stream_is_not_counted() -> None:
    asked = wish(["Once upon a time", "and"], echo=True, stream=True)
    stream = openai_completions.open_stream(wish=asked, label=LABEL)
    events = [piece("Once upon"), piece(" a time"), piece(" there"), piece("and so", index=1)]
    assert [step.produced for step in through(stream, *map(frame, events))] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("beside", "tokens"),
    [
        ({"reasoning": "I wonder."}, 1),
        ({"reasoning": "word " * 100}, 125),
        ({"new": {"said": "word " * 100}}, 128),
        ({"logprobs": {"tokens": ["a"] * 50}, "token_ids": [1] * 50, "content_filter_results": {"hate": {}}}, 0),
    ],
)
def test_what_a_choice_has_beside_its_text_is_counted_unless_it_only_repeats_it(
    beside: dict[str, Any], tokens: int
) -> None:
    stream = openai_completions.open_stream(wish=wish(stream=True), label=LABEL)
    event = piece("")
    event["choices"][0] |= beside
    long = piece("word" * 1_500)
    long["choices"][0] |= beside
    assert [step.produced for step in through(stream, frame(event), frame(long))] == [tokens, 1_500 + tokens]
    body = json.dumps({"choices": [{"index": 0, "text": "word", **beside}]}).encode()
    assert openai_completions.answer(body, wish=wish(), label=LABEL).produced in (1 + tokens, 2 + tokens)


def test_choices_that_nobody_asked_for_are_counted_and_not_remembered() -> None:
    stream = openai_completions.open_stream(wish=wish(["a", "b"], n=2, echo=True, stream=True), label=LABEL)
    for start in range(0, 100_000, 1_000):
        many = [{"index": index, "text": "word"} for index in range(start, start + 1_000)]
        assert stream.feed(frame({"choices": many})).produced == 1_000
    (final,) = sent([Step(stream.final_chunk(finish_reason="length", reason="x"))])
    assert [choice["index"] for choice in final["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "event", [b"data: {\n\n", b": ping\n\n", b"data: 5\n\n", frame({"choices": [{"text": 5}]}), frame({"choices": {}})]
)
def test_what_is_not_understood_passes(event: bytes) -> None:
    stream = openai_completions.open_stream(wish=wish(stream=True), label=labelled(None, None))
    (step,) = through(stream, event)
    assert step.out == event
    assert not step.done


@pytest.mark.parametrize("dialect", [openai_completions, completions_to_chat])
def test_an_error_in_a_stream_is_told_apart(dialect: Pair) -> None:
    stream = dialect.open_stream(wish=wish(stream=True), label=LABEL)
    (step,) = through(stream, frame({"error": {"message": "Out of memory."}}))
    assert (step.error, step.out) == ("Out of memory.", b"")


@pytest.mark.parametrize(
    ("dialect", "first"), [(openai_completions, piece("a")), (completions_to_chat, chat_piece({"content": "a"}))]
)
def test_what_we_add_is_of_the_same_stream(dialect: Pair, first: dict[str, Any]) -> None:
    stream = dialect.open_stream(wish=wish(stream=True), label=LABEL)
    (step,) = through(stream, frame(first))
    (begun,) = sent([step])
    final = json.loads(sse.data(stream.final_chunk(finish_reason="length", reason="insufficient_balance")) or b"")
    usage = json.loads(sse.data(stream.usage_chunk(TokenUsage(4, 2, total=6))) or b"")
    for event in (final, usage):
        assert {name: event[name] for name in ("id", "object", "created", "model")} == {
            name: begun[name] for name in ("id", "object", "created", "model")
        }
    assert final["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert final["penstock"] == {"reason": "insufficient_balance"}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 2)
    assert stream.terminator() == openai_chat.DONE


def test_a_streamed_chat_becomes_a_streamed_completion() -> None:
    stream = completions_to_chat.open_stream(wish=wish(stream=True), label=LABEL)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    events = [
        chat_piece({"role": "assistant", "content": ""}),
        chat_piece({"reasoning_content": "Hm."}),
        chat_piece({"content": "Hi"}),
        chat_piece({"content": "!"}, "stop"),
        chat_piece({}) | {"choices": [], "usage": usage},
    ]
    steps = through(stream, *map(frame, events), b": ping\n\n", b"data: [DONE]\n\n")
    envelope = {"id": "cmpl-1", "object": "text_completion", "created": 9, "model": "mine"}
    assert sent(steps[:5]) == [
        envelope | {"choices": [{"text": "Hi", "index": 0, "logprobs": None, "finish_reason": None}]},
        envelope | {"choices": [{"text": "!", "index": 0, "logprobs": None, "finish_reason": "stop"}]},
    ]
    assert [step.produced for step in steps] == [0, 1, 1, 1, 0, 0, 0]
    assert steps[4].usage == TokenUsage(3, 4, total=7)
    assert (steps[5].out, steps[6].done) == (b": ping\n\n", True)


def test_the_usage_of_a_chat_is_shown_to_who_asked_for_it() -> None:
    asked = wish(stream=True, stream_options={"include_usage": True})
    stream = completions_to_chat.open_stream(wish=asked, label=LABEL)
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    (event,) = sent(through(stream, frame(chat_piece({}) | {"choices": [], "usage": usage})))
    assert (event["object"], event["choices"], event["usage"]) == ("text_completion", [], usage)


@pytest.mark.parametrize("event", [b"data: {\n\n", b"data: 5\n\n", frame({"choices": 7}), frame({"own": "business"})])
def test_what_is_no_chat_is_counted_and_not_shown(event: bytes) -> None:
    stream = completions_to_chat.open_stream(wish=wish(stream=True), label=LABEL)
    (step,) = through(stream, event)
    assert (step.out, step.error) == (b"", None)
