"""Messages requests: what is read, what is refused and with which words, and that the rest goes upstream as it came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Wish
from penstock.dialects import anthropic_messages as dialect
from penstock.dialects.openai_chat import TEMPLATE_BYTES
from penstock.errors import InvalidRequest, ModelMissing

MOST = 1_000_000
HELLO = [{"role": "user", "content": "hi"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PNG = "iVBORw0KGgo" * 100
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}}
TOOL = {"name": "look", "input_schema": {"type": "object"}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 64, "messages": HELLO, **fields}).encode()


def peek(raw: bytes) -> Wish:
    return dialect.peek(raw, max_output_tokens=MOST)


def upstream(wish: Wish, limit: int | None = None) -> Any:
    return json.loads(dialect.request(wish, model="up", output_limit=limit, limit_field="x", ask_usage=True))


def test_an_ordinary_request_is_read() -> None:
    raw = body(stream=True, system="Be brief.")
    wish = peek(raw)
    assert (wish.model, wish.stream, wish.output_limit, wish.choices, wish.images) == ("m", True, 64, 1, 0)
    assert (wish.input_bytes, wish.text_bytes) == (len(raw), len("hi" + "Be brief.") + 2 * TEMPLATE_BYTES)
    assert wish.needs == frozenset()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": MOST + 1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"system": 5}, "system"),
        ({"tools": "all"}, "tools"),
        ({"Max_Tokens": 5}, "Max_Tokens"),
        ({"max_tokens_to_sample": 5}, "max_tokens_to_sample"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"n_predict": 5}, "n_predict"),
        ({"Model": "dearer"}, "Model"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        peek(body(**fields))
    assert refusal.value.param == param
    assert param in refusal.value.message


def test_a_limit_and_messages_are_required() -> None:
    for name in ("max_tokens", "messages"):
        with pytest.raises(InvalidRequest, match=f"'{name}' field is required") as refusal:
            peek(json.dumps({key: value for key, value in json.loads(body()).items() if key != name}).encode())
        assert refusal.value.param == name


@pytest.mark.parametrize("raw", [b'{"max_tokens":5}', b'{"model":"","max_tokens":5}', b'{"model":5}'])
def test_a_missing_model_is_said_first(raw: bytes) -> None:
    with pytest.raises(ModelMissing):
        peek(raw)


def test_a_prompt_may_be_cached_without_an_answer() -> None:
    assert peek(body(max_tokens=0)).output_limit == 0


def test_images_are_counted_wherever_they_are_and_their_data_is_no_text() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "seen"}, IMAGE]}
    within = {"type": "document", "source": {"type": "content", "content": [IMAGE]}}
    link = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    raw = body(messages=[{"role": "user", "content": [IMAGE, result, within, link]}])
    wish = peek(raw)
    assert wish.images == 4
    assert wish.input_bytes == len(raw) - 3 * len(PNG)
    assert wish.text_bytes == len("seen") + TEMPLATE_BYTES
    assert wish.needs == {"images"}


def test_documents_are_counted_and_their_data_stays_in_the_prompts_size() -> None:
    raw = body(messages=[{"role": "user", "content": [PDF]}])
    wish = peek(raw)
    assert (wish.images, wish.input_bytes, wish.needs) == (1, len(raw), frozenset())


def test_all_text_that_a_model_reads_is_counted() -> None:
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ddd"}}
    search = {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"type": "error"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "ü"}, plain]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
                search,
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]},
    ]
    wish = peek(body(messages=messages))
    texts = ["ü", "ddd", "hm", '{"a": 1}', '{"type": "error"}', "ok"]
    assert wish.text_bytes == sum(len(text.encode()) for text in texts) + 3 * TEMPLATE_BYTES


def test_what_a_model_must_be_able_to_do_is_read() -> None:
    schema = {"format": {"type": "json_schema", "schema": {}}}
    assert peek(body(tools=[TOOL], output_config=schema)).needs == {"tools", "json_schema"}
    assert peek(body(tools=[])).needs == frozenset()


def test_content_nested_deep_is_not_read_again_and_again() -> None:
    content: Any = "x" * 1000
    for _ in range(60):
        content = [{"type": "tool_result", "tool_use_id": "t", "content": content}]
    assert peek(body(messages=[{"role": "user", "content": content}])).text_bytes > 1000


@given(st.dictionaries(st.text().filter(lambda name: name.isidentifier()), JSON, max_size=4))
def test_unknown_fields_reach_the_upstream_as_they_came(extra: dict[str, Any]) -> None:
    ours = {
        "model",
        "messages",
        "max_tokens",
        "stream",
        "thinking",
        "system",
        "tools",
        "thread",
        "n",
        "n_cmpl",
        "best_of",
        "max_tokens_to_sample",
        "max_completion_tokens",
        "max_new_tokens",
        "n_predict",
    }
    extra = {name: value for name, value in extra.items() if name.casefold() not in ours}
    assert upstream(peek(body(**extra))) == json.loads(body(**extra)) | {"model": "up"}


def test_bytes_inside_a_field_stay_as_they_were() -> None:
    raw = b'{"model":"m","max_tokens":5,"messages":[ {"role":"user","content":"\\u00e9"} ],"x":1.0e2}'
    sent = dialect.request(peek(raw), model="up", output_limit=None, limit_field="", ask_usage=True)
    assert sent == raw.replace(b'"m"', b'"up"')


@pytest.mark.parametrize(
    ("thinking", "limit", "expected"),
    [
        ({"type": "enabled", "budget_tokens": 8000}, 10_000, {"type": "enabled", "budget_tokens": 8000}),
        ({"type": "enabled", "budget_tokens": 8000}, 8000, {"type": "enabled", "budget_tokens": 6400}),
        ({"type": "enabled", "budget_tokens": 8000}, 1100, {"type": "enabled", "budget_tokens": 1024}),
        ({"type": "enabled", "budget_tokens": 8000}, 1024, {"type": "disabled"}),
        ({"type": "enabled", "budget_tokens": 20_000}, 5, {"type": "enabled", "budget_tokens": 20_000}),
        ({"type": "adaptive"}, 5, {"type": "adaptive"}),
        (None, 5, None),
        ("odd", 5, "odd"),
    ],
)
def test_a_lower_limit_leaves_the_thinking_valid(thinking: Any, limit: int, expected: Any) -> None:
    sent = upstream(peek(body(max_tokens=10_000, thinking=thinking)), limit)
    assert (sent["max_tokens"], sent["thinking"]) == (limit, expected)


def test_thinking_of_another_upstream_is_not_shown_to_one_that_checks_signatures() -> None:
    ours = {"type": "thinking", "thinking": "hm", "signature": "penstock:reasoning_content"}
    theirs = {"type": "thinking", "thinking": "hm", "signature": "EqQBCg"}
    said = {"type": "text", "text": 'about "penstock:'}
    messages = [
        {"role": "user", "content": 'what is "penstock:'},
        {"role": "assistant", "content": [ours, theirs, said]},
        {"role": "assistant", "content": [ours]},
        {"role": "user", "content": [said]},
    ]
    sent = upstream(peek(body(messages=messages)))["messages"]
    assert sent == [messages[0], {"role": "assistant", "content": [theirs, said]}, messages[3]]


def test_a_prompt_is_counted_without_a_limit() -> None:
    assert dialect.peek_prompt(b'{"model":"m","messages":[{"role":"user","content":"hi"}]}').text_bytes == 18
    assert json.loads(dialect.counted(7)) == {"input_tokens": 7}


BIG = "y" * 4_000


@pytest.mark.parametrize(
    ("block", "more"),
    [
        ({"type": "search_result", "source": BIG, "title": "t", "content": [{"type": "text", "text": "a"}]}, {}),
        ({"type": "search_result", "source": "s", "title": BIG, "content": [{"type": "text", "text": "a"}]}, {}),
        ({"type": "document", "context": BIG, "source": {"type": "text", "data": "a"}}, {}),
        ({"type": "redacted_thinking", "data": BIG}, {}),
        ({"type": "text", "text": "a"}, {"output_config": {"format": {"type": "json_schema", "schema": {"a": BIG}}}}),
    ],
)
def test_all_that_a_model_reads_of_a_prompt_is_in_its_estimate(block: dict[str, Any], more: dict[str, Any]) -> None:
    wish = peek(body(messages=[{"role": "user", "content": [block]}], **more))
    assert 4_000 < wish.text_bytes < 4_200
