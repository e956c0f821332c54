"""What a request names because a provider keeps it is told in each dialect, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from penstock.dialects import Dialect, anthropic_messages, openai_chat, openai_responses
from penstock.errors import InvalidRequest
from penstock.relay.tailor import require_open
from tests.rules.offers import offer

WEATHER = {"type": "function", "name": "weather", "parameters": {"properties": {"file_id": {"type": "string"}}}}


def stored(dialect: Dialect, **fields: Any) -> str | None:
    body = {"model": "m", **({"max_tokens": 9} if dialect is anthropic_messages else {}), **fields}
    return dialect.peek(json.dumps(body).encode(), max_output_tokens=100).stored


def said(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Hi"}, {"role": "user", "content": [{"type": "text", "text": "See."}, *parts]}]


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file_id": "file-1"}, "file_id"),
        ({"type": "image_url", "image_url": {"url": "gs://theirs/a.png"}}, "image_url"),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, "image_url"),
        ({"type": "video_url", "video_url": {"url": "ms://file-1"}}, "video_url"),
        ({"type": "audio_url", "audio_url": {"url": "FILE:/etc/passwd"}}, "audio_url"),
    ],
)
def test_a_chat_that_names_what_a_provider_keeps_is_told_apart(part: Any, name: str) -> None:
    assert stored(openai_chat, messages=said(part)) == f"messages[1].content[1].{name}"


def test_an_answer_in_sound_that_is_continued_is_kept_by_a_provider() -> None:
    messages = [*said(), {"role": "assistant", "content": "", "audio": {"id": "audio_1"}}]
    assert stored(openai_chat, messages=messages) == "messages[2].audio.id"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "file_id"}},
        {"type": "file", "file": {"file_id": None}},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png?file_id=1"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image_url", "image_url": {"url": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAf"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
def test_what_is_in_a_chat_itself_or_on_the_web_is_nobodys(part: Any) -> None:
    assert stored(openai_chat, messages=said(part)) is None


@pytest.mark.parametrize(
    ("item", "name"),
    [
        (said({"type": "input_file", "file_id": "file-1"})[1], "content[1].file_id"),
        (said({"type": "input_image", "file_id": "file-1"})[1], "content[1].file_id"),
        (said({"type": "input_image", "image_url": "gs://a/b"})[1], "content[1].image_url"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_id": "file-1"}]},
            "output[0].file_id",
        ),
        (
            {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "file_id": "f"}},
            "output.file_id",
        ),
        ({"type": "image_generation_call", "id": "ig_1"}, "id"),
    ],
)
def test_an_item_that_names_what_a_provider_keeps_is_told_apart(item: Any, name: str) -> None:
    assert stored(openai_responses, input=[item]) == f"input[0].{name}"


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        ({"type": "file_search", "vector_store_ids": ["vs_1"]}, "vector_store_ids"),
        ({"type": "code_interpreter", "container": "cntr_1"}, "container"),
        ({"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}, "container"),
        ({"type": "shell", "environment": {"type": "container_reference", "container_id": "c"}}, "environment"),
        ({"type": "shell", "environment": {"type": "container_auto", "skills": [{"skill_id": "s"}]}}, "environment"),
        ({"type": "image_generation", "input_image_mask": {"file_id": "file-1"}}, "input_image_mask"),
    ],
)
def test_a_tool_that_names_what_a_provider_keeps_is_told_apart(tool: Any, name: str) -> None:
    assert stored(openai_responses, input="x", tools=[WEATHER, tool]) == f"tools[1].{name}"


def test_what_is_in_a_response_request_itself_is_nobodys() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBO", "file_id": None}
    made = {"type": "image_generation_call", "id": "ig_1", "result": "iVBO"}
    code = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}
    assert stored(openai_responses, input=[said(image)[1], made], tools=[WEATHER, code]) is None


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ({"type": "document", "source": {"type": "file", "file_id": "file_1"}}, "messages.content.source.file_id"),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "messages.content.source.file_id"),
        ({"type": "image", "source": {"type": "url", "url": "gs://a/b"}}, "messages.content.source.url"),
        ({"type": "container_upload", "file_id": "file_1"}, "messages.content.file_id"),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_block_that_names_what_a_provider_keeps_is_told_apart(block: Any, name: str, within: bool) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    assert stored(anthropic_messages, messages=said(result if within else block)) == name


@pytest.mark.parametrize(
    ("container", "name"),
    [
        ("container_1", "container"),
        ({"id": "container_1"}, "container"),
        ({"skills": [{"type": "custom", "skill_id": "skill_1"}]}, "container"),
        ({"skills": [{"type": "anthropic", "skill_id": "pptx"}]}, None),
        (None, None),
    ],
)
def test_a_container_that_is_there_already_is_told_apart(container: Any, name: str | None) -> None:
    assert stored(anthropic_messages, messages=said(), container=container) == name


BLANKS = r" \n\u0000" * 7  # in JSON
ODD_CHAT = [
    f'{{"type": "image_url", "image_url": {{"url": "{BLANKS}file:///etc/passwd"}}}}',
    '{"type": "file", "file": {"file_id": "f", "x": 1e999}}',
    '{"type": "video_url", "video_url": {"url": "file:///etc/passwd", "x": 1e999}}',
]
ODD_RESPONSES = [
    f'{{"role": "user", "content": [{{"type": "input_image", "image_url": "{BLANKS}gs://a/b"}}]}}',
    '{"role": "user", "content": [{"type": "input_file", "file_url": "gs://a/b"}]}',
    '{"type": "function_call_output", "call_id": "c", "output": [{"text": 5}, {"type": "input_file", "file_id": "f"}]}',
]
ODD_MESSAGES = [
    '{"type": "document", "source": {"type": "file", "file_id": "f", "data": 0}}',
    '{"type": "document", "source": {"type": "file", "file_id": "f", "url": {}}}',
    '{"type": "document", "source": {"type": "file", "file_id": "f", "x": 1e999, "data": 0}}',
    '{"type": "image", "source": {"type": "url", "url": "gs://a/b", "data": 0}}',
]


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        *((openai_chat, f'"messages": [{{"role": "user", "content": [{odd}]}}]') for odd in ODD_CHAT),
        *((openai_responses, f'"input": [{odd}]') for odd in ODD_RESPONSES),
        (
            openai_responses,
            '"input": "x", "tools": [{"type": "code_interpreter", "container": {"file_ids": ["f"], "x": 1e999}}]',
        ),
        *(
            (anthropic_messages, f'"max_tokens": 9, "messages": [{{"role": "user", "content": [{odd}]}}]')
            for odd in ODD_MESSAGES
        ),
        (
            anthropic_messages,
            '"max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "container": {"id": "c", "x": 1e999}',
        ),
    ],
)
def test_what_is_written_so_that_we_do_not_read_it_is_told_apart_all_the_same(dialect: Dialect, body: str) -> None:
    assert dialect.peek(f'{{"model": "m", {body}}}'.encode(), max_output_tokens=100).stored is not None


def test_what_is_in_a_message_itself_is_nobodys() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
    page = {"type": "document", "source": {"type": "url", "url": "https://a.example/b.pdf"}}
    found = {
        "type": "search_result",
        "source": "gs://a",
        "title": "file_id",
        "content": [{"type": "text", "text": "x"}],
    }
    assert stored(anthropic_messages, messages=said(image, page, found)) is None


def test_it_is_refused_by_name_unless_the_operator_lets_callers_share_it() -> None:
    with pytest.raises(InvalidRequest) as caught:
        require_open("messages[0].content[0].file_id", offer("one"))
    assert caught.value.param == "messages[0].content[0].file_id"
    require_open("messages[0].content[0].file_id", replace(offer("one"), shared_files=True))
