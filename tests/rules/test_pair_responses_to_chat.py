"""Responses over chat, as transcripts: what goes up, what comes back, and what is refused because chat has no word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.dialects import Wish, openai_responses, sse
from penstock.dialects.pairs import responses_to_chat
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest, UpstreamFailed
from tests.upstream_responses import chunk
from tests.wishes import labelled

LABEL = labelled("mine", None)
VALID: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
F: Any = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True, "description": "d"}
PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
SPACE: Any = {"type": "namespace", "name": "mcp__files__", "description": "Files", "tools": [{**F, "name": "read"}]}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}
LINKED = {"type": "input_file", "file_url": "https://x/y.pdf"}
DONE = b"data: [DONE]\n\n"


def asked(**fields: Any) -> Wish:
    body = json.dumps({"model": "m", "input": "Hello", **fields}).encode()
    return openai_responses.peek(body, max_output_tokens=1_000)


def sent(limit: int | None = None, **fields: Any) -> Any:
    body = responses_to_chat.request(
        asked(**fields), model="theirs", output_limit=limit, limit_field="max_completion_tokens", ask_usage=True
    )
    return json.loads(body)


def messages(*items: Any, **fields: Any) -> Any:
    return sent(input=list(items), **fields)["messages"]


def said(message: dict[str, Any], reason: str = "stop", **fields: Any) -> Any:
    """The response that a chat message comes to; valid."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    document = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
    plain = responses_to_chat.answer(json.dumps(document).encode(), wish=asked(**fields), label=LABEL)
    response = json.loads(plain.body)
    Response.model_validate(response)
    return response


def streamed(*events: bytes, **fields: Any) -> list[Any]:
    """The events that a chat stream comes to; each valid, all of them numbered, and no item left open."""
    stream = responses_to_chat.open_stream(wish=asked(**fields), label=LABEL)
    steps = [stream.feed(each) for each in events]
    counted = [step.usage for step in steps if step.usage]
    out = b"".join(step.out for step in steps)
    if counted:
        out += stream.usage_chunk(counted[-1])
    return load(out + stream.terminator())


def load(out: bytes) -> list[Any]:
    found = [json.loads(sse.data(each) or b"null") for each in sse.events(out)]
    for each in found:
        VALID.validate_python(each)
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    begun = [each["output_index"] for each in found if each["type"] == "response.output_item.added"]
    ended = [each["output_index"] for each in found if each["type"] == "response.output_item.done"]
    assert sorted(ended) == begun == list(range(len(begun)))
    return found


def call(index: int, arguments: str, **more: Any) -> bytes:
    named = {"name": more.pop("name")} if "name" in more else {}
    return chunk({"tool_calls": [{"index": index, **more, "function": {"arguments": arguments, **named}}]})


# Requests.


def test_the_fields_of_a_request() -> None:
    assert sent(
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "json_object"}},
        include=["reasoning.encrypted_content"],
        store=False,
        metadata={"a": "b"},
        truncation="disabled",
        background=False,
        conversation=None,
        stream=True,
        client_metadata={"x": "y"},
    ) == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "response_format": {"type": "json_object"},
        "verbosity": "low",
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert sent(20, max_output_tokens=50)["max_completion_tokens"] == 20


def test_a_schema_is_carried_whole() -> None:
    format = {"type": "json_schema", "name": "n", "description": "d", "strict": True, "schema": {"type": "object"}}
    assert sent(text={"format": format})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": True, "schema": {"type": "object"}},
    }


def test_tools_of_every_kind_are_functions() -> None:
    tools = sent(tools=[F, PATCH, SPACE, {"type": "local_shell"}])["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["f", "apply_patch", "mcp__files__read", "local_shell"]
    assert tools[0]["function"] == {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert tools[1]["function"]["parameters"]["required"] == ["input"]
    assert 'start: "x"' in tools[1]["function"]["description"]


@pytest.mark.parametrize(
    ("choice", "names", "chosen"),
    [
        ("auto", ["f", "apply_patch"], "auto"),
        ("none", ["f", "apply_patch"], "none"),
        ("required", ["f", "apply_patch"], "required"),
        ({"type": "function", "name": "f"}, ["f", "apply_patch"], {"type": "function", "function": {"name": "f"}}),
        (
            {"type": "custom", "name": "apply_patch"},
            ["f", "apply_patch"],
            {"type": "function", "function": {"name": "apply_patch"}},
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
            ["f"],
            "required",
        ),
    ],
)
def test_every_choice_of_a_tool(choice: Any, names: list[str], chosen: Any) -> None:
    body = sent(tools=[F, PATCH], tool_choice=choice, parallel_tool_calls=False)
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (chosen, False)


def test_without_tools_there_is_no_word_of_them() -> None:
    assert sent(tools=[], tool_choice="auto", parallel_tool_calls=True).keys() == {"model", "messages"}


def test_a_turn_of_the_assistant_is_one_message() -> None:
    assert messages(
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Do."}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": None},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Doing."}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "apply_patch", "input": "*** x"},
        {"type": "function_call", "call_id": "3", "namespace": "mcp__files__", "name": "read", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "two"},
        {"type": "function_call_output", "call_id": "3", "output": [{"type": "input_text", "text": "three"}]},
        {"role": "user", "content": "Thanks."},
        instructions="First.",
    ) == [
        {"role": "system", "content": "First.\n\nRules."},
        {"role": "user", "content": "Do."},
        {
            "role": "assistant",
            "content": "Doing.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "apply_patch", "arguments": '{"input":"*** x"}'}},
                {"id": "3", "type": "function", "function": {"name": "mcp__files__read", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "tool", "tool_call_id": "3", "content": "three"},
        {"role": "user", "content": "Thanks."},
    ]


def test_parts_that_are_not_text() -> None:
    (message,) = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "See.", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "high"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "See.", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "high"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]


def test_what_tools_showed_follows_their_answers() -> None:
    shown = [{"type": "input_text", "text": "Here."}, {"type": "input_image", "image_url": "data:image/png;base64,AA"}]
    found = messages(
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": ""},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": shown},
        {"type": "function_call_output", "call_id": "2", "output": "two"},
    )
    assert [each["role"] for each in found] == ["assistant", "tool", "tool", "user"]
    assert found[1]["content"] == "Here."
    assert [part["type"] for part in found[3]["content"]] == ["text", "image_url"]


def test_a_local_shell_is_called_and_answered() -> None:
    action = {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 5, "user": None}
    assistant, tool = messages(
        {"type": "local_shell_call", "id": "l", "call_id": "1", "action": action, "status": "completed"},
        {"type": "local_shell_call_output", "id": "1", "output": "files"},
    )
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {
        "command": ["ls", "-l"], "env": {}, "timeout_ms": 5,
    }  # fmt: skip
    assert tool == {"role": "tool", "tool_call_id": "1", "content": "files"}


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("tools[0]", {"tools": [{"type": "mcp", "server_label": "x"}]}),
        ("tools[0]", {"tools": [{"type": "computer_use_preview"}]}),
        ("tools[1].name", {"tools": [F, {**PATCH, "name": "f"}]}),
        ("tools[0].defer_loading", {"tools": [{**F, "defer_loading": True}]}),
        ("tools[0].tools[0]", {"tools": [{**SPACE, "tools": [{"type": "web_search"}]}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "function", "name": "g"}}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "custom", "name": "f"}}),
        ("tool_choice.tools[0]", {"tools": [F], "tool_choice": ALLOWED}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": []}}),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": {}, "name": "f"}}),
        ("tool_choice", {"tools": [F], "tool_choice": [{"type": "function", "name": "f"}]}),
        ("tool_choice.tools[0]", {"tools": [F], "tool_choice": {**ALLOWED, "tools": [{"type": []}]}}),
        ("truncation", {"truncation": "auto"}),
        ("context_management", {"context_management": [{"type": "compaction"}]}),
        ("include", {"include": ["everything"]}),
        ("text.format", {"text": {"format": {"type": "grammar"}}}),
        ("text.novel", {"text": {"novel": 1}}),
        ("reasoning.mode", {"reasoning": {"mode": "pro"}}),
        ("instructions", {"instructions": ["x"]}),
        ("seed", {"seed": 3}),
        ("input[0]", {"input": [{"type": "web_search_call", "id": "ws"}]}),
        ("input[0].role", {"input": [{"role": "critic", "content": "x"}]}),
        ("input[0].content", {"input": [{"role": "user"}]}),
        ("input[0].content[0].file_url", {"input": [{"role": "user", "content": [LINKED]}]}),
        ("input[0].content[0]", {"input": [{"role": "assistant", "content": [{"type": "input_image"}]}]}),
        ("input[0].call_id", {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}),
        ("input[0].name", {"input": [{"type": "function_call", "call_id": "1"}]}),
    ],
)  # fmt: skip
def test_what_chat_has_no_word_for_is_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sent(**fields)
    assert refused.value.param == param
    assert f"'{param}'" in refused.value.message or param in ("tool_choice", "instructions")


# Answers.


def test_an_answer_is_a_whole_response() -> None:
    response = said({"content": "Hi."}, instructions="Be brief.", temperature=0.5, metadata={"a": "b"}, user="u")
    (message,) = response.pop("output")
    assert message == {
        "id": "msg_10001", "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}],
    }  # fmt: skip
    assert response == {
        "id": "resp_1", "object": "response", "created_at": 1_700_000_000, "status": "completed", "error": None,
        "incomplete_details": None, "model": "mine", "background": False, "instructions": "Be brief.",
        "max_output_tokens": None, "max_tool_calls": None, "metadata": {"a": "b"}, "parallel_tool_calls": True,
        "previous_response_id": None, "prompt_cache_key": None, "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None, "service_tier": None, "store": True, "temperature": 0.5,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": None,
        "truncation": "disabled", "user": "u",
        "usage": {
            "input_tokens": 7, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
    ],
)
def test_how_an_answer_ended(reason: str, status: str, why: Any) -> None:
    response = said({"content": "Hi."}, reason)
    assert (response["status"], response["incomplete_details"]) == (status, why)
    assert response["output"][0]["status"] == status


def test_everything_a_model_says_has_its_item() -> None:
    citation = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 2}}
    calls = [
        {"id": "1", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "2", "function": {"name": "apply_patch", "arguments": '{"input":"*** x"}'}},
        {"id": "3", "function": {"name": "mcp__files__read", "arguments": "{}"}},
        {"id": "4", "function": {"name": "local_shell", "arguments": '{"command":["ls"],"timeout_ms":5}'}},
    ]
    message = {"content": "Hi.", "refusal": "No.", "reasoning": "Hm.", "annotations": [citation], "tool_calls": calls}
    output = said(message, tools=[F, PATCH, SPACE, {"type": "local_shell"}])["output"]
    assert [item["type"] for item in output] == [
        "reasoning", "message", "function_call", "custom_tool_call", "function_call", "local_shell_call",
    ]  # fmt: skip
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert output[1]["content"][0]["annotations"] == [
        {"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 2}
    ]
    assert output[1]["content"][1] == {"type": "refusal", "refusal": "No."}
    assert output[2]["arguments"] == '{"a":1}'
    assert (output[3]["name"], output[3]["input"]) == ("apply_patch", "*** x")
    assert (output[4]["namespace"], output[4]["name"]) == ("mcp__files__", "read")
    assert output[5]["action"] == {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": 5}
    assert len({item["id"] for item in output}) == 6


@pytest.mark.parametrize("arguments", ["*** x", '"*** x"', '{"patch":"*** x"}', '{"input":"*** x","other":1}'])
def test_a_custom_tools_input_is_found_however_a_model_gives_it(arguments: str) -> None:
    calls = [{"id": "1", "function": {"name": "apply_patch", "arguments": arguments}}]
    assert said({"tool_calls": calls}, tools=[PATCH])["output"][0]["input"] == "*** x"


def test_reasoning_is_a_summary_for_who_asks_for_one() -> None:
    (item,) = said({"reasoning_content": "Hm."}, reasoning={"summary": "auto"})["output"]
    assert (item["summary"], item.get("content")) == ([{"type": "summary_text", "text": "Hm."}], None)


def test_what_a_provider_wants_back_of_reasoning_goes_round() -> None:
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "c2ln"}]
    (item,) = said({"reasoning_content": "Hm.", "reasoning_details": details})["output"]
    assert item["encrypted_content"].startswith("penstock.1.")
    (message,) = messages(item)
    assert (message["reasoning_details"], message["reasoning_content"]) == (details, "Hm.")


def test_reasoning_that_another_sealed_is_left_to_it() -> None:
    assert messages({"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAA"}) == []


def test_log_probabilities_come_along() -> None:
    token = {"token": "Hi", "bytes": [72, 105], "logprob": -0.1, "top_logprobs": []}
    events = streamed(
        chunk(choices=[{"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": [token]}}]),
        chunk({}, "stop"),
        DONE,
        include=["message.output_text.logprobs"],
    )
    assert [each["logprobs"] for each in events if "logprobs" in each] == [[token], [token]]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [token]


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b'{"choices": []}', b'{"choices": [3]}', b'{"error": {"message": "no"}}']
)
def test_what_is_no_completion_is_a_failure(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        responses_to_chat.answer(body, wish=asked(), label=LABEL)


# Streams.


def test_a_stream_in_the_published_order() -> None:
    events = streamed(
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Hm"}),
        chunk({"content": "Hi"}),
        chunk({"content": "."}),
        call(0, "", id="1", name="f"),
        call(0, "{}"),
        call(1, '{"input":"*** x"}', id="2", name="apply_patch"),
        chunk({}, "tool_calls"),
        chunk(usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}),
        DONE,
        tools=[F, PATCH],
    )
    assert [each["type"].removeprefix("response.") for each in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "output_item.added",
        "function_call_arguments.done", "output_item.done",
        "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        "reasoning", "message", "function_call", "custom_tool_call",
    ]  # fmt: skip
    assert response["usage"]["total_tokens"] == 12


def test_a_summary_has_events_of_its_own() -> None:
    events = streamed(chunk({"reasoning": "Hm"}), chunk({}, "stop"), DONE, reasoning={"summary": "auto"})
    assert [each["type"].removeprefix("response.") for each in events[2:-1]] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
    ]  # fmt: skip


def test_a_refusal_has_events_of_its_own() -> None:
    events = streamed(chunk({"refusal": "No"}), chunk({}, "stop"), DONE)
    assert [each["type"].removeprefix("response.") for each in events[3:6]] == [
        "content_part.added", "refusal.delta", "refusal.done",
    ]  # fmt: skip


def test_calls_that_come_mixed_are_kept_apart() -> None:
    events = streamed(
        call(0, "{", id="1", name="f"),
        call(1, "[", id="2", name="f"),
        call(0, "}"),
        call(1, "]"),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert [item["arguments"] for item in events[-1]["response"]["output"]] == ["{}", "[]"]


def test_the_deltas_of_a_text_are_the_text() -> None:
    events = streamed(*[chunk({"content": word}) for word in ("a", "b", "ü")], chunk({}, "stop"), DONE)
    assert "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta") == "abü"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "abü"


def test_a_stream_that_ends_without_a_reason_is_ended_in_good_order() -> None:
    assert streamed(chunk({"content": "a"}), DONE)[-1]["type"] == "response.completed"
    assert streamed()[-1]["response"]["output"] == []


SAYING = st.one_of(
    st.builds(lambda text: chunk({"content": text}), st.text(max_size=5)),
    st.builds(lambda text: chunk({"reasoning_content": text}), st.text(max_size=5)),
    st.builds(lambda text: chunk({"refusal": text}), st.text(max_size=5)),
    st.builds(
        lambda index, text, name: call(index, text, id=f"c{index}", name=name),
        st.integers(0, 3),
        st.text(max_size=5),
        st.sampled_from(["f", "apply_patch", "other"]),
    ),
    st.just(chunk({}, "stop")),
    st.just(chunk({"reasoning_details": [{"type": "reasoning.text", "signature": "s"}]})),
    st.just(b": comment\n\n"),
    st.just(b"data: nonsense\n\n"),
)


@given(st.lists(SAYING, max_size=12), SAYING)
def test_a_stream_cut_anywhere_is_a_valid_response_of_what_was_sent(events: list[bytes], unpaid: bytes) -> None:
    wish = asked(tools=[F, PATCH])
    stream = responses_to_chat.open_stream(wish=wish, label=LABEL)
    sent_on = b"".join(stream.feed(each).out for each in events)
    stream.feed(unpaid)
    sent_on += stream.final_chunk(finish_reason="length", reason="insufficient_balance")
    sent_on += stream.usage_chunk(TokenUsage(1, 1, total=2)) + stream.terminator()
    found = load(sent_on.replace(b": comment\n\n", b""))
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["penstock"] == {"reason": "insufficient_balance"}
    deltas = "".join(each["delta"] for each in found if each["type"] == "response.output_text.delta")
    parts = [part for item in found[-1]["response"]["output"] for part in item.get("content") or ()]
    assert "".join(part["text"] for part in parts if part["type"] == "output_text") == deltas


@given(st.lists(st.binary(max_size=40) | SAYING, max_size=8))
def test_nothing_an_upstream_sends_is_too_much(events: list[bytes]) -> None:
    stream = responses_to_chat.open_stream(wish=asked(), label=LABEL)
    for each in events:
        assert stream.feed(each).produced >= 0
    words: Any = {"type": "upstream_error", "code": None, "message": "m", "param": None}
    assert stream.error_event(**words)
    assert b"response.failed" in stream.terminator()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=6)
ITEMS = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, TEXT),
    st.builds(
        lambda text: {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}, TEXT
    ),
    st.builds(lambda text: {"role": "assistant", "content": [{"type": "output_text", "text": text}]}, TEXT),
    st.builds(lambda text: {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}, TEXT),
    st.builds(lambda text: {"type": "function_call", "call_id": text, "name": "f", "arguments": text}, TEXT),
    st.builds(lambda text: {"type": "custom_tool_call", "call_id": text, "name": "apply_patch", "input": text}, TEXT),
    st.builds(lambda text: {"type": "function_call_output", "call_id": text, "output": text}, TEXT),
)


@given(st.lists(ITEMS, max_size=10))
def test_a_conversation_keeps_its_meaning(items: list[Any]) -> None:
    found = messages(*items)
    assert [each for message in found for each in _meant(message)] == _in_turns([_of_item(item) for item in items])


def _of_item(item: Any) -> tuple[str, str]:
    """What an item says, and in what role."""
    match item.get("type", "message"):
        case "reasoning":
            return "thought", item["summary"][0]["text"]
        case "function_call":
            return "call", item["arguments"]
        case "custom_tool_call":
            return "call", item["input"]
        case "function_call_output":
            return "output", item["output"]
    content = item["content"]
    return item["role"], content if isinstance(content, str) else content[0]["text"]


def _in_turns(said: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same with each turn of the assistant as chat has it: thoughts, then text, then calls."""
    order = {"thought": 0, "assistant": 1, "call": 2}
    turns: list[tuple[str, str]] = []
    turn: list[tuple[str, str]] = []
    for kind, text in [*said, ("end", "")]:
        kinds = {each for each, _ in turn}
        ends = kind not in order or (kind in ("thought", "assistant") and "assistant" in kinds and "call" not in kinds)
        if ends:
            turns += sorted(turn, key=lambda each: order[each[0]])
            turn = []
        (turn if kind in order else turns).append((kind, text))
    return turns[:-1]


def _meant(message: Any) -> list[tuple[str, str]]:
    if message["role"] == "tool":
        return [("output", message["content"])]
    if message["role"] != "assistant":
        return [(message["role"], message["content"])]
    thoughts = (message.get("reasoning_content") or "").split("\n\n") if "reasoning_content" in message else []
    texts = (message["content"] or "").split("\n\n") if message["content"] else []
    found = [("thought", text) for text in thoughts] + [("assistant", text) for text in texts]
    for each in message.get("tool_calls") or ():
        arguments = each["function"]["arguments"]
        is_patch = each["function"]["name"] == "apply_patch"
        found.append(("call", json.loads(arguments)["input"] if is_patch else arguments))
    return found
