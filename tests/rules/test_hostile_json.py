"""Bodies, answers and streams made to be misread: what we read of them is what everybody else reads."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.dialects import openai_chat, openai_embeddings
from penstock.errors import InvalidRequest, UpstreamFailed
from tests import properties
from tests.wishes import WISH, labelled

# Structure-aware: the names that matter, spelt in every way, more than once, in any order, with telling values.

OURS = ("model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "input")
OTHERS = ("n_predict", "max_new_tokens", "best_of", "tools", "user", "include_usage", "\ufeffmodel", "model\x00", "")


def escaped(name: str) -> str:
    return '"' + "".join(f"\\u{ord(character):04X}" for character in name) + '"'


def listed(items: list[str]) -> str:
    return "[" + ",".join(items) + "]"


def spellings(name: str) -> st.SearchStrategy[str]:
    """A name as JSON: plain, in other case, in characters that only fold to it, escaped in part or whole."""
    cased = st.sampled_from([name, name, name, name.upper(), name.title()])
    folded = cased.flatmap(
        lambda text: st.sampled_from([text, text.replace("s", "\u017f"), text.replace("k", "\u212a")])
    )
    return folded.flatmap(
        lambda text: st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False), escaped(text)])
    )


SCALARS = st.sampled_from(
    ["null", "true", "false", "0", "-0", "1", "2", "5", "7", "128", "129", "1.0", "5e0", "1E2", "1e999", "-1",
     "1000000", "1000001", "9" * 30, "9" * 5000, '"5"', '""', '"m"', '"upstream"', '"\\u0000"', '"\\ud800"',
     '"\\ud83e\\udd99"', "[]", "{}", "[" * 600 + "]" * 600, '{"include_usage":true}',
     '{"include_usage":true,"Include_Usage":false}',
     '{"include_usage":false,"include_usage":true}', '{"include_usage":true,"x":[1]}', '{"include_\\u0075sage":true}',
     "NaN", "tru", "01", "+1", "'m'"]
)  # fmt: skip
PARTS = st.sampled_from(
    ['{"type":"text","text":"Hi"}', '{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}',
     '{"type":"image_url","image_url":"data:image/png;base64,\\u0041\\/A"}', '"bare"', "null", "5",
     '{"type":"image_url","image_url":{"url":"data:text/plain,Hello","url":"data:image/x,y"}}',
     '{"type":"text","text":"Hello","TEXT":"more","image_url":{"url":"data:image/png;base64,AAAA"}}']
)  # fmt: skip
MESSAGES = st.lists(PARTS, max_size=3).map(lambda parts: f'[{{"role":"user","content":{listed(parts)}}}]') | (
    st.sampled_from(['[{"role":"user","content":"Hi"}]', '[{"role":"user"}]', "[{}]", '[{"role":"u","content":null}]'])
)

INPUTS = st.recursive(
    st.sampled_from(["1", "0", "50256", '"Hi"', "1.5"]),
    lambda inner: st.lists(inner, max_size=4).map(listed),
    max_leaves=8,
)
VALUES = {"messages": MESSAGES | MESSAGES | SCALARS, "model": st.just('"m"') | SCALARS, "input": INPUTS | SCALARS}
FIELDS = st.sampled_from([*OURS, *OTHERS]).flatmap(lambda name: st.tuples(spellings(name), VALUES.get(name, SCALARS)))
OPTIONS = st.lists(
    st.tuples(spellings("include_usage") | st.just('"x"'), st.sampled_from(["true", "false", "true", "null"])),
    max_size=3,
).map(lambda fields: "{" + ",".join(f"{name}:{value}" for name, value in fields) + "}")
BLANKS = st.sampled_from(["", " ", "\n\t", "\r"])


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object that has what is needed, nearly always, and a few fields more."""
    begin = draw(st.sampled_from([[('"model"', '"m"'), ('"messages"', '[{"role":"user","content":"Hi"}]')]] * 5 + [[]]))
    if draw(st.booleans()):
        begin = [*begin, ('"stream"', "true"), ('"stream_options"', draw(OPTIONS))]
    fields = draw(st.permutations([*begin, *draw(st.lists(FIELDS, max_size=5))]))
    blank = draw(BLANKS)
    text = "{" + ",".join(f"{name}{blank}:{blank}{value}" for name, value in fields) + "}" + blank
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=600)
@given(bodies())
def test_what_we_read_of_a_request_is_what_every_upstream_reads(body: bytes) -> None:
    properties.chat_request(body)
    properties.embeddings_request(body.replace(b'"messages"', b'"input"'))


@given(
    st.binary(max_size=300)
    | bodies().flatmap(lambda body: st.integers(0, len(body)).map(lambda at: body[:at] + body[at + 1 :]))
)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    properties.chat_request(body)
    properties.embeddings_request(body)


MESSAGE = '"messages":[{"role":"user","content":"Hi"}]'


@pytest.mark.parametrize(
    "field",
    ['"Max_Tokens":9000', '"MAX_COMPLETION_TOKENS":9000', '"max_to\\u212Aens":9000', '"max_token\u017f":9000',
     '"n_predict":-1', '"N_Predict":-1', '"max_new_tokens":9000', '"N":100', '"best_of":20', '"Stream":true',
     '"MODEL":"dear"', '"Stream_Options":{"include_usage":false}', '"Messages":[]', '"\\u004dodel":"dear"'],
)  # fmt: skip
def test_a_field_that_some_upstream_takes_for_ours_is_refused_by_name(field: str) -> None:
    body = f'{{"model":"m","max_tokens":5,{MESSAGE},{field}}}'
    with pytest.raises(InvalidRequest) as refusal:
        openai_chat.peek(body.encode(), max_output_tokens=10_000)
    assert refusal.value.param == next(iter(json.loads(f"{{{field}}}")))


def test_names_that_only_begin_like_ours_pass() -> None:
    body = f'{{"model":"m",{MESSAGE},"max_tokens_to_sample":5,"modelling":1,"nn":2,"streams":true}}'
    assert openai_chat.peek(body.encode(), max_output_tokens=10).output_limit is None


def test_tokens_given_by_number_are_counted_one_by_one() -> None:
    for input, count in (("[1,2,3]", 3), ("[[1,2],[3],[]]", 3), ('["a","b"]', 0), ('"a"', 0)):
        body = f'{{"model":"m","input":{input}}}'.encode()
        assert openai_embeddings.peek(body, max_output_tokens=1).token_ids == count
    with pytest.raises(InvalidRequest):
        openai_embeddings.peek(b'{"model":"m","Input":"more","input":"a"}', max_output_tokens=1)


# Answers and streams.

TEXTS = st.sampled_from(
    ['"a"', '"Hello, world"', '"%s"' % ("x" * 40), '"\\ud800"', '"\\u00fc\\n"', "null", "5", "[]", '""']
)
DELTAS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "content",
                "reasoning_content",
                "reasoning",
                "refusal",
                "role",
                "Content",
                "cont\\u0065nt",
                "tool_calls",
                "x",
            ]
        ),
        TEXTS | st.just('[{"index":0,"function":{"name":"f","arguments":"{}"}}]'),
    ),
    max_size=3,
).map(lambda fields: "{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}")
INDEXES = st.just("0") | st.sampled_from(["0", "1", "127", "128", "-1", "1e3", "9" * 25, "null", '"0"'])
CHOICES = st.lists(
    st.tuples(INDEXES, st.sampled_from(["delta", "delta", "message", "text"]), DELTAS | TEXTS, TEXTS).map(
        lambda drawn: f'{{"index":{drawn[0]},"{drawn[1]}":{drawn[2]},"finish_reason":{drawn[3]}}}'
    ),
    max_size=3,
).map(lambda choices: "[" + ",".join(choices) + "]")
COUNTS = st.sampled_from(["0", "5", "-5", "1.0", "1.5", "1e3", "1e300", "9" * 30, "null", "true", '"5"', "[]", "NaN"])
USAGES = st.lists(
    st.tuples(
        st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens", "prompt_cache_hit_tokens"]), COUNTS
    ),
    max_size=4,
).map(lambda fields: "{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}")
ERRORS = st.sampled_from(
    ["null", "{}", '"no"', '{"message":"no"}', '{"message":5}', "false", "[1]", '{"message":"\\ud800"}']
)
ANSWER_FIELDS = st.sampled_from(
    ["choices", "choices", "usage", "error", "id", "model", "object", "\xff", "\\ud800", "x"]
).flatmap(
    lambda name: st.tuples(
        st.just(name), {"choices": CHOICES | TEXTS, "usage": USAGES | TEXTS, "error": ERRORS}.get(name, TEXTS)
    )
)
DOCUMENTS = st.lists(ANSWER_FIELDS, max_size=5).map(
    lambda fields: ("{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}").encode("latin-1")
)
LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    end = draw(LINE_ENDS)
    label = draw(
        st.sampled_from([b"data: ", b"data: ", b"data:", b"data :", b"DATA: ", b"", b": ", b"event: x\ndata: "])
    )
    data = draw(DOCUMENTS | st.sampled_from([b"[DONE]", b" [DONE] ", b"[DONE]x", b"text", b"", b"\xff", b"[" * 2_000]))
    if draw(st.booleans()):
        data = data.replace(b",", b"," + end + label, 1)
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + label + data + end + end


@settings(max_examples=500)
@given(st.lists(events(), max_size=5), st.randoms(use_true_random=False))
def test_a_stream_is_conserved_counted_and_never_too_much(stream: list[bytes], chance: random.Random) -> None:
    properties.stream(pieces(b"".join(stream), chance))


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
def test_noise_in_a_stream_is_conserved(noise: bytes, chance: random.Random) -> None:
    properties.stream(pieces(noise, chance))
    properties.stream(pieces(b"data:" + noise + b"\n\n", chance))


def pieces(raw: bytes, chance: random.Random) -> list[bytes]:
    places = sorted(chance.randrange(len(raw) + 1) for _ in range(chance.randrange(6)))
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]


@settings(max_examples=300)
@given(DOCUMENTS | st.binary(max_size=200))
def test_an_answer_passes_or_is_none(body: bytes) -> None:
    properties.plain_answer(body)


def frame(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def test_indexes_without_end_are_not_remembered() -> None:
    reader = openai_chat.open_stream(wish=WISH, label=labelled("m", None))
    for start in range(0, 200_000, 1_000):
        many = [{"index": index, "delta": {"content": "a"}} for index in range(start, start + 1_000)]
        assert reader.feed(frame({"choices": many})).produced > 0
    assert len(reader.final_chunk(finish_reason="length", reason="x")) < 300
    assert reader.feed(frame({"choices": [{"index": -1, "delta": {"content": "a"}}]})).produced > 0


@pytest.mark.parametrize("delta", ['{"content":"\\n"}', '{"tool_calls":[]}', '{"content":"a"}'])
def test_many_events_at_once_take_time_in_proportion(delta: str) -> None:
    text = b'data: {"model":"up","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    other = b'data: {"model":"up","choices":[{"delta":' + delta.encode() + b"}]}\n\n"
    reader = openai_chat.open_stream(wish=WISH, label=labelled("ours", None))
    began_s = time.perf_counter()
    properties.in_runs(reader, (other + text) * 8_000)
    assert time.perf_counter() - began_s < 10  # a second at most; when each event looked through the rest, a minute


def test_a_whole_message_in_a_stream_is_counted() -> None:
    reader = openai_chat.open_stream(wish=WISH, label=labelled("m", None))
    assert reader.feed(frame({"choices": [{"message": {"content": "x" * 400}}]})).produced == 100


def test_an_event_with_a_name_that_is_no_text_passes_counted() -> None:
    reader = openai_chat.open_stream(wish=WISH, label=labelled("m", None))
    event = b'data: {"\xff":1,"choices":[{"delta":{"content":"Hello"}}]}\n\n'
    assert (reader.feed(event).out, reader.feed(event).produced > 0) == (event, True)


def test_a_line_that_repeats_the_data_is_not_taken_for_it() -> None:
    reader = openai_chat.open_stream(wish=WISH, label=labelled("ours", None))
    data = b'{"model":"up","choices":[{"delta":{"content":"Hi"}}]}'
    step = reader.feed(b"id: " + data + b"\ndata: " + data + b"\n\n")
    assert (step.produced, step.out) == (1, b"id: " + data + b"\ndata: " + data.replace(b"up", b"ours") + b"\n\n")


def test_our_own_events_are_text_whatever_the_upstreams_were() -> None:
    reader = openai_chat.open_stream(wish=WISH, label=labelled(None, None))
    assert reader.feed(b'data: {"id":"\xff","model":"\xfe","choices":[{"delta":{"content":"Hello"}}]}\n\n').produced > 0
    last = reader.final_chunk(finish_reason="length", reason="x")
    assert json.loads(last.removeprefix(b"data: "))["id"] == "chatcmpl-0"


@pytest.mark.parametrize("choices", ["[]", "null"])
def test_an_error_beside_no_choices_is_an_error(choices: str) -> None:
    with pytest.raises(UpstreamFailed, match="Bad key"):
        openai_chat.answer(
            f'{{"choices":{choices},"error":{{"message":"Bad key"}}}}'.encode(), wish=WISH, label=labelled("m", None)
        )


@pytest.mark.parametrize("depth", [1_000, 100_000, 1_000_000])
def test_a_million_brackets_are_no_answer_and_do_no_harm(depth: int) -> None:
    for document in (b"[" * depth, b'{"choices":' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth):
        properties.plain_answer(document)
        properties.stream([b"data: " + document + b"\n\n"])
