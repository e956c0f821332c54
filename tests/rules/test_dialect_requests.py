"""Chat requests: what is read, what is refused and with which words, and that the rest goes upstream as it came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Wish, openai_chat
from penstock.dialects.openai_chat import TEMPLATE_BYTES
from penstock.errors import InvalidRequest, ModelMissing

MOST = 1_000_000
MESSAGES = '[{"role":"user","content":"hi"}]'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OURS = {"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"}
ALIKE = {"n_predict", "max_new_tokens", "best_of"}


def peek(body: str | bytes) -> Wish:
    return openai_chat.peek(body.encode() if isinstance(body, str) else body, max_output_tokens=MOST)


def chat(extra: str = "") -> str:
    return f'{{"model":"m","messages":{MESSAGES}{"," if extra else ""}{extra}}}'


def upstream_body(
    wish: Wish, *, model: str = "up", limit: int | None = None, field: str = "max_tokens", ask: bool = False
) -> bytes:
    return openai_chat.request(wish, model=model, output_limit=limit, limit_field=field, ask_usage=ask)


def test_an_ordinary_request_is_read() -> None:
    extra = '"stream":true,"max_tokens":64,"n":2,"stream_options":{"include_usage":true}'
    wish = peek(chat(extra))
    assert (wish.model, wish.stream, wish.output_limit, wish.choices, wish.include_usage) == ("m", True, 64, 2, True)
    assert (wish.input_bytes, wish.images) == (len(chat(extra)), 0)


@pytest.mark.parametrize("extra", ["", '"stream":null,"n":null,"max_tokens":null,"stream_options":null'])
def test_absent_and_null_mean_the_same(extra: str) -> None:
    wish = peek(chat(extra))
    assert (wish.stream, wish.output_limit, wish.choices, wish.include_usage) == (False, None, 1, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model":"m"} x',
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":"m","x":NaN}',
        b'{"model":"m","x":-Infinity}',
        b'{"model":"m","x":"\\ud800"}',
        b'{"model":"m","x":"\xff"}',
        b'{"model":"m","x":"\xed\xa0\x80"}',
        b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"x":' * 100_000,
    ],
)
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        peek(body)
    assert refusal.value.message
    assert not isinstance(refusal.value, ModelMissing)


@pytest.mark.parametrize(
    "model", ["", '"model":null', '"model":""', '"model":5', '"model":["m"]', '"model":"\\u0000","model":""']
)
def test_a_missing_model_is_said_before_anything_about_messages(model: str) -> None:
    for messages in ("", '"messages":5', f'"messages":{MESSAGES}'):
        with pytest.raises(ModelMissing) as refusal:
            peek("{" + ",".join(filter(None, [model, messages])) + "}")
        assert (refusal.value.code, refusal.value.param) == ("missing_model", "model")


@pytest.mark.parametrize(
    "messages",
    [
        "null",
        "[]",
        "{}",
        '"hi"',
        "5",
        "[null]",
        '["hi"]',
        "[{}]",
        '[{"role":null}]',
        '[{"role":5}]',
        '[{"content":"hi"}]',
        '[{"role":"user","content":5}]',
        '[{"role":"user"},{"role":7}]',
    ],
)
def test_messages_of_the_wrong_type_are_refused(messages: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        peek(f'{{"model":"m","messages":{messages}}}')
    assert refusal.value.param == "messages"


def test_absent_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'messages' field is required"):
        peek('{"model":"m"}')


@pytest.mark.parametrize(
    ("field", "value"),
    [("stream", value) for value in ("1", '"true"', "[]")]
    + [
        (field, value)
        for field in openai_chat.LIMIT_FIELDS
        for value in ("0", "-1", "1.0", '"5"', "true", str(MOST + 1))
    ]
    + [("max_tokens", "9" * 30), ("max_tokens", "9" * 5000), ("max_tokens", "1e999")]
    + [("n", value) for value in ("0", "129", "1.5", "true", '"1"')]
    + [("stream_options", value) for value in ("true", "[]", '{"include_usage":1}', '{"include_usage":"yes"}')],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        peek(chat(f'"{field}":{value}'))
    assert refusal.value.param == field
    assert field in refusal.value.message


def test_two_output_limits_must_agree() -> None:
    assert peek(chat('"max_tokens":5,"max_completion_tokens":5')).output_limit == 5
    assert peek(chat('"max_tokens":null,"max_completion_tokens":6')).output_limit == 6
    with pytest.raises(InvalidRequest, match="must not differ"):
        peek(chat('"max_tokens":5,"max_completion_tokens":6'))


def test_a_repeated_key_goes_upstream_once_and_as_we_read_it() -> None:
    wish = peek(chat('"max_tokens":9,"max_tokens":7,"mod\\u0065l":"other"'))
    assert (wish.model, wish.output_limit) == ("other", 7)
    assert upstream_body(wish).count(b"max_tokens") == 1
    assert upstream_body(wish).count(b"model") == 1


def test_inline_images_count_as_images_and_not_as_text() -> None:
    data = "data:image/png;base64," + "A" * 5000
    parts = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": data, "detail": "low"}},
        {"type": "image_url", "image_url": data},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]})
    wish = peek(body)
    assert (wish.images, wish.input_bytes) == (3, len(body) - 2 * len(data))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "A" * 900, "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 900}},
        {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
        {"type": "image_url", "image_url": {"url": "data:text/plain;base64," + "A" * 900}},
    ],
)
def test_other_media_count_as_a_part_and_by_their_size(part: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]})
    assert (peek(body).images, peek(body).input_bytes) == (1, len(body))


def test_an_escaped_type_is_still_an_image() -> None:
    part = '{"type":"image\\u005furl","image_url":{"url":"https:\\/\\/example.com\\/cat.png"}}'
    assert peek(f'{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}').images == 1


def test_only_the_model_changes() -> None:
    body = (
        '{ "model" : "m", "messages":'
        + MESSAGES
        + ', "seed": 1e2, "x" : [ 1 , 2.50 ], "big":123456789012345678901234567890}'
    )
    sent = upstream_body(peek(body), model='up/"1"')
    assert sent == (
        b'{"model":"up/\\"1\\"","messages":' + MESSAGES.encode() + b',"seed":1e2,"x":[ 1 , 2.50 ],'
        b'"big":123456789012345678901234567890}'
    )


@pytest.mark.parametrize("caller", ["", '"max_tokens":500', '"max_completion_tokens":500', '"max_tokens":null'])
@pytest.mark.parametrize("field", openai_chat.LIMIT_FIELDS)
def test_a_limit_of_ours_goes_upstream_once_in_the_upstreams_field(caller: str, field: str) -> None:
    sent = json.loads(upstream_body(peek(chat(caller)), limit=100, field=field))
    assert {name: sent[name] for name in openai_chat.LIMIT_FIELDS if name in sent} == {field: 100}


def test_without_a_limit_of_ours_the_callers_stays() -> None:
    assert b'"max_completion_tokens":500' in upstream_body(peek(chat('"max_completion_tokens":500')))


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        ('"stream":true', {"include_usage": True}),
        ('"stream":true,"stream_options":null', {"include_usage": True}),
        ('"stream":true,"stream_options":{"include_usage":false,"x":[1]}', {"include_usage": True, "x": [1]}),
        ('"stream":true,"stream_options":{"include_usage":true,"x":1}', {"include_usage": True, "x": 1}),
        ('"stream":false', None),
        ("", None),
    ],
)
def test_usage_is_asked_for_when_streaming(caller: str, expected: object) -> None:
    assert json.loads(upstream_body(peek(chat(caller)), ask=True)).get("stream_options") == expected


def test_usage_is_not_asked_of_an_upstream_that_does_not_know_it() -> None:
    assert b"stream_options" not in upstream_body(peek(chat('"stream":true')))


def test_a_wish_can_be_sent_to_one_upstream_after_another() -> None:
    wish = peek(chat('"stream":true,"max_tokens":9'))
    first = upstream_body(wish, limit=5, field="max_completion_tokens", ask=True)
    assert upstream_body(wish) == chat('"stream":true,"max_tokens":9').replace('"m"', '"up"').encode()
    assert first != upstream_body(wish)


@given(
    st.dictionaries(st.text().filter(lambda name: name.casefold() not in OURS | ALIKE), JSON),
    st.text(min_size=1),
    st.text(min_size=1),
)
def test_whatever_else_a_request_says_arrives_unchanged(extra: dict[str, Any], model: str, upstream: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi", "extra": extra}], **extra}
    raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    sent = upstream_body(peek(raw), model=upstream)
    assert json.loads(sent) == {**body, "model": upstream}
    for value in extra.values():
        assert json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() in sent


@given(st.binary() | st.dictionaries(st.sampled_from(sorted(OURS)), JSON).map(lambda body: json.dumps(body).encode()))
def test_arbitrary_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        wish = peek(body)
    except InvalidRequest:
        return
    assert wish.input_bytes <= len(body)


BIG = "y" * 4_000
USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": BIG}}]}, {}),
        ({"function_call": {"name": "f", "arguments": BIG}}, {}),
        ({"reasoning_content": BIG, "reasoning": BIG}, {}),
        ({"reasoning_details": [{"text": BIG}]}, {}),
        ({"refusal": BIG}, {}),
        ({"content": [{"type": "refusal", "refusal": BIG}]}, {}),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": BIG}]}]}, {}),
        ({"content": [BIG]}, {}),
        ({"name": BIG}, {}),
        ({"something_new": {"said": BIG}}, {}),
        ({}, {"functions": [{"name": "f", "description": BIG}]}),
        ({}, {"tools": [{"type": "function", "function": {"name": "f", "description": BIG}}]}),
        ({}, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"description": BIG}}}}),
    ],
)
def test_all_that_a_model_reads_of_a_prompt_is_in_its_estimate(message: dict[str, Any], more: dict[str, Any]) -> None:
    assistant = {"role": "assistant", "content": None, **message}
    body = json.dumps({"model": "m", "messages": [USER, assistant], **more}).encode()
    assert 4_000 < peek(body).text_bytes < 4_200


@pytest.mark.parametrize(
    "message",
    [
        {"content": 'one\nline\nand "more"\n'},
        {"content": "", "refusal": None, "tool_calls": [], "audio": None, "function_call": None, "annotations": []},
        {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + BIG}}]},
        {"content": [{"type": "input_audio", "input_audio": {"data": BIG, "format": "wav"}}]},
        {"content": [{"type": "file", "file": {"file_data": BIG}}]},
    ],
)
def test_what_is_empty_and_what_has_a_count_of_its_own_is_no_text(message: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [USER, {"role": "assistant", **message}]}).encode()
    text = message["content"] if isinstance(message["content"], str) else ""
    assert peek(body).text_bytes == 2 * TEMPLATE_BYTES + len("x") + len(text)
