"""Chat requests for a Messages upstream: what is carried, how, and what is refused by name."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import openai_chat
from penstock.dialects.pairs import chat_to_messages
from penstock.errors import InvalidRequest

HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "What time it is."}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def sent(*, model: str = "claude-opus-4-8", limit: int | None = 4_096, **fields: Any) -> dict[str, Any]:
    """What goes upstream for a chat request with these fields."""
    body = json.dumps({"model": "m", "messages": HELLO, **fields}).encode()
    wish = openai_chat.peek(body, max_output_tokens=100_000)
    made = chat_to_messages.request(
        wish, model=model, output_limit=limit, limit_field="max_tokens", ask_usage=bool(wish.stream)
    )
    found: dict[str, Any] = json.loads(made)
    return found


def turns(*messages: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(turn["role"], turn["content"]) for turn in sent(messages=list(messages))["messages"]]


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def called(*calls: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    listed = [{"id": id, "type": "function", "function": {"name": name, "arguments": a}} for id, name, a in calls]
    return {"role": "assistant", "content": None, "tool_calls": listed, **more}


def refused(**fields: Any) -> str | None:
    with pytest.raises(InvalidRequest) as caught:
        sent(**fields)
    assert caught.value.param is not None
    assert caught.value.param in caught.value.message
    return caught.value.param


def test_a_plain_request_has_a_model_a_limit_and_turns() -> None:
    turn = {"role": "user", "content": [text("Hello!")]}
    assert sent() == {"model": "claude-opus-4-8", "max_tokens": 4_096, "messages": [turn]}


def test_the_limit_is_the_holds_then_the_callers_then_one_that_every_model_has() -> None:
    assert sent(limit=7, max_tokens=9)["max_tokens"] == 7
    assert sent(limit=None, max_completion_tokens=9)["max_tokens"] == 9
    assert sent(limit=None, stream=True)["max_tokens"] == 32_000


def test_a_stream_is_asked_for_and_its_usage_comes_by_itself() -> None:
    body = sent(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert body["stream"] is True
    assert "stream_options" not in body


def test_system_messages_go_in_front_wherever_they_stood() -> None:
    body = sent(
        messages=[
            {"role": "system", "content": "Be brief."},
            user("Hello!"),
            {"role": "developer", "content": [text("In French."), text("")]},
        ]
    )
    assert body["system"] == [text("Be brief."), text("In French.")]
    assert body["messages"] == [user([text("Hello!")])]


def test_neighbours_of_one_role_are_one_turn_and_a_participants_name_is_said() -> None:
    assert turns(user("a"), user("b", name="ada"), {"role": "assistant", "content": "c"}) == [
        ("user", [text("a"), text("ada:"), text("b")]),
        ("assistant", [text("c")]),
    ]


def test_empty_messages_are_left_out() -> None:
    assert turns(user(""), {"role": "assistant", "content": ""}, user("x")) == [("user", [text("x")])]
    assert refused(messages=[user("")]) == "messages"
    assert refused(messages=[{"role": "system", "content": "Alone."}]) == "messages"


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        ),
        (
            {"type": "image_url", "image_url": "https://x.test/a.png"},
            {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"}},
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            },
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;base64,aGkh"}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi!"}},
        ),
        ({**text("x"), "cache_control": {"type": "ephemeral"}}, text("x", cache_control={"type": "ephemeral"})),
        (
            {**text("x"), "prompt_cache_breakpoint": {"mode": "explicit"}},
            text("x", cache_control={"type": "ephemeral"}),
        ),
    ],
)
def test_parts_become_blocks(part: dict[str, Any], block: dict[str, Any]) -> None:
    assert turns(user([text("see"), part])) == [("user", [text("see"), block])]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "input_audio"),
        ({"type": "video_url", "video_url": {"url": "https://x.test"}}, "video_url"),
        ({"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,PHN2Zz4="}}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "ftp://x.test/a.png"}}, "image_url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,UEs="}}, "file.file_data"),
        ({"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}}, "file.file_data"),
        ({"type": "file"}, "file.file_data"),
        ({"type": "a b"}, "type"),
    ],
)
def test_a_part_that_cannot_be_carried_is_refused_by_its_place(part: dict[str, Any], param: str) -> None:
    assert refused(messages=[user("x"), user([part])]) == f"messages[1].content[0].{param}"


def test_a_round_of_tools_is_one_turn_each_way() -> None:
    conversation = turns(
        user("Paris and Rome?"),
        called(("call_1", "weather", '{"city":"Paris"}'), ("call_2", "weather", ""), content="Let me look."),
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": [text("sun"), {"type": "image_url", "image_url": PNG}]},
        user("Well?"),
    )
    assert [role for role, _ in conversation] == ["user", "assistant", "user"]
    assert conversation[1][1] == [
        text("Let me look."),
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
    ]
    first, second, words = conversation[2][1]
    assert first == {"type": "tool_result", "tool_use_id": "call_1", "content": [text("rain")]}
    assert [block["type"] for block in second["content"]] == ["text", "image"]
    assert words == text("Well?")


def test_ids_of_calls_are_written_as_the_api_takes_them_on_both_sides() -> None:
    conversation = turns(
        user("x"),
        called(("functions.weather:0", "weather", "{}")),
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": ""},
    )
    assert conversation[1][1][0]["id"] == "functions_weather_0"
    assert conversation[2][1] == [{"type": "tool_result", "tool_use_id": "functions_weather_0"}]


def test_functions_of_old_are_tools_one_at_a_time() -> None:
    definition = {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}}
    messages = [
        user("x"),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"a":1}'}},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    body = sent(functions=[definition], function_call={"name": "weather"}, messages=messages)
    use, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert (use["name"], use["input"], use["id"]) == ("weather", {"a": 1}, result["tool_use_id"])
    assert body["tools"] == [{"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    assert sent(functions=[definition], function_call="none")["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize("arguments", ["[1]", "{", '"x"'])
def test_arguments_that_are_no_object_are_refused_by_their_place(arguments: str) -> None:
    place = "messages[1].tool_calls[0].function.arguments"
    assert refused(messages=[user("x"), called(("a", "b", arguments))]) == place


def test_tools_keep_their_schema_byte_for_byte_and_whether_they_are_strict() -> None:
    schema = {"type": "object", "properties": {"z": {"type": "number"}, "a": {}}, "additionalProperties": False}
    strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}
    assert sent(tools=[strict, CLOCK])["tools"] == [
        {"name": "f", "input_schema": schema, "strict": True},
        {"name": "clock", "description": "What time it is.", "input_schema": {"type": "object"}},
    ]
    assert refused(tools=[{"type": "custom", "custom": {"name": "f"}}]) == "tools[0].type"


@pytest.mark.parametrize(
    ("choice", "carried"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "clock"}}, {"type": "tool", "name": "clock"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK]}}, {"type": "any"}),
        (None, None),
    ],
)
def test_a_choice_of_tools_is_carried_in_every_form(choice: Any, carried: Any) -> None:
    body = sent(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert body.get("tool_choice") == carried
    allowed = ["clock"] if "allowed_tools" in str(choice) else ["weather", "clock"]
    assert [tool["name"] for tool in body["tools"]] == allowed


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"function_call": "maybe"}, "function_call"),
    ],
)
def test_a_choice_that_is_none_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(**{"tools": [WEATHER], **fields}) == param


def test_one_tool_at_a_time_is_carried_with_any_choice() -> None:
    for choice, carried in (("auto", "auto"), ("required", "any"), (None, "auto")):
        body = sent(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
        assert body["tool_choice"] == {"type": carried, "disable_parallel_tool_use": True}
    assert sent(tools=[WEATHER], tool_choice="none", parallel_tool_calls=False)["tool_choice"] == {"type": "none"}
    assert "tool_choice" not in sent(tools=[WEATHER], parallel_tool_calls=True)
    assert "tool_choice" not in sent(parallel_tool_calls=False, tool_choice="auto")


@pytest.mark.parametrize(
    ("effort", "model", "limit", "carried"),
    [
        ("low", "claude-opus-4-8", 4_096, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ("minimal", "claude-sonnet-5", 9, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        ("max", "claude-opus-4-6", 9, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}),
        ("high", "claude-opus-4-5", 64_000, {"thinking": {"type": "enabled", "budget_tokens": 16_384}}),
        ("high", "claude-sonnet-4-20250514", 10_000, {"thinking": {"type": "enabled", "budget_tokens": 5_000}}),
        ("low", "anthropic.claude-haiku-4-5-20251001-v1:0", 1_000, {}),
        ("medium", "claude-3-7-sonnet-latest", 64_000, {"thinking": {"type": "enabled", "budget_tokens": 8_192}}),
        ("none", "claude-opus-4-6", 4_096, {"thinking": {"type": "disabled"}}),
        (None, "claude-opus-4-6", 4_096, {}),
    ],
)
def test_effort_becomes_what_the_model_understands(
    effort: str | None, model: str, limit: int, carried: dict[str, Any]
) -> None:
    body = sent(reasoning_effort=effort, model=model, limit=limit)
    assert {name: body[name] for name in ("thinking", "output_config") if name in body} == carried


def test_thinking_that_was_signed_comes_back_and_other_thinking_is_left() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm.", "signature": "s1"},
        {"type": "reasoning.encrypted", "data": "d1"},
        {"type": "reasoning.summary", "summary": "no signature"},
    ]
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "reasoning_details": details}
    assert turns(user("x"), said)[1][1] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "s1"},
        {"type": "redacted_thinking", "data": "d1"},
        text("Yes."),
    ]


def test_no_budget_is_given_while_tools_are_answered_that_were_called_without_thought() -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": "rain"}
    signed = [{"type": "reasoning.text", "text": "Hm.", "signature": "s"}]
    for thought, thinks in ((None, False), (signed, True)):
        messages = [user("x"), called(("a", "weather", "{}"), reasoning_details=thought), result]
        body = sent(model="claude-opus-4-5", reasoning_effort="low", messages=messages)
        assert ("thinking" in body) is thinks


def test_a_schema_is_the_format_beside_the_effort() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    body = sent(response_format=form, reasoning_effort="low")
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert "output_config" not in sent(response_format={"type": "text"})
    assert refused(response_format={"type": "json_object"}) == "response_format"
    assert refused(response_format={"type": "json_schema"}) == "response_format.json_schema.schema"


def test_sampling_is_carried_where_it_says_something() -> None:
    body = sent(temperature=0.5, top_p=0.9, top_k=40, stop="END")
    assert (body["temperature"], body["top_p"], body["top_k"], body["stop_sequences"]) == (0.5, 0.9, 40, ["END"])
    assert sent(stop=["a", "b"])["stop_sequences"] == ["a", "b"]
    assert sent(temperature=1, top_p=1.0, stop=None) == sent()
    for field, value in (("temperature", 1.5), ("temperature", -1), ("top_p", 2), ("stop", [" "]), ("stop", 5)):
        assert refused(**{field: value}) == field


def test_whom_it_is_for_is_metadata() -> None:
    assert sent(user="u", safety_identifier="s")["metadata"] == {"user_id": "u"}
    assert sent(safety_identifier="s")["metadata"] == {"user_id": "s"}


def test_its_own_fields_pass_as_they_are() -> None:
    own: dict[str, Any] = {
        "thinking": {"type": "adaptive", "display": "summarized"},
        "cache_control": {"type": "ephemeral"},
    }
    assert {name: sent(**own)[name] for name in own} == own


@pytest.mark.parametrize(
    ("field", "off", "asked"),
    [
        ("n", 1, 2),
        ("frequency_penalty", 0.0, 0.1),
        ("presence_penalty", 0, -2),
        ("logprobs", False, True),
        ("top_logprobs", 0, 3),
        ("logit_bias", {}, {"50256": -100}),
        ("seed", None, 7),
        ("modalities", ["text"], ["text", "audio"]),
        ("audio", None, {"voice": "alloy"}),
        ("store", False, True),
        ("service_tier", "auto", "flex"),
        ("verbosity", "medium", "low"),
        ("web_search_options", None, {}),
        ("a_field_of_tomorrow", None, True),
    ],
)
def test_a_field_that_cannot_be_carried_is_refused_unless_it_asks_for_nothing(field: str, off: Any, asked: Any) -> None:
    assert sent(**{field: off}) == sent()
    assert refused(**{field: asked}) == field


def test_hints_and_marks_for_the_providers_books_are_left() -> None:
    hints: dict[str, Any] = {
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "prediction": {"type": "content", "content": "x"},
    }
    assert sent(**hints) == sent()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "narrator", "content": "x"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "audio": {"id": "a"}},
    ],
)
def test_a_message_of_no_known_kind_is_refused_by_its_place(message: dict[str, Any]) -> None:
    param = refused(messages=[user("x"), message])
    assert param is not None
    assert param.startswith("messages[1].")


# Whatever a caller sends.

FIELDS = sorted(
    {"tools", "functions", "tool_choice", "function_call", "stop", "response_format", "reasoning_effort", "temperature"}
    | {"top_p", "top_k", "thinking", "user", "cache_control", "parallel_tool_calls", "n", "logit_bias", "seed"}
)
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.sampled_from(["", "auto", "text", "x"])
NAMES = st.sampled_from(["type", "function", "name", "parameters", "schema", "json_schema", "allowed_tools", "tools"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3))
MESSAGE_NAMES = ["content", "tool_calls", "function_call", "tool_call_id", "reasoning_details", "audio", "name"]
PART_NAMES = st.sampled_from(["type", "text", "image_url", "url", "file", "file_data", "id", "function", "arguments"])
PARTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PART_NAMES, inner, max_size=3)
)
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function", "x"])
MESSAGES = st.lists(
    st.tuples(ROLES, st.dictionaries(st.sampled_from(MESSAGE_NAMES), PARTS, max_size=3)).map(
        lambda drawn: {"role": drawn[0], **drawn[1]}
    ),
    min_size=1,
    max_size=3,
)


@given(MESSAGES, st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_whatever_comes_is_carried_or_refused_by_name(messages: list[Any], fields: dict[str, Any]) -> None:
    param: str | None = "none"
    try:
        body = sent(messages=messages, **fields)
    except InvalidRequest as error:
        param, body = error.param, {"messages": []}
    assert param
    assert all(turn["content"] for turn in body["messages"])
    roles = [turn["role"] for turn in body["messages"]]
    assert all(one != other for one, other in itertools.pairwise(roles))
