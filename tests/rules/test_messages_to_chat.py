"""A Messages request as a chat completion: what each thing becomes, and what is refused by its name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Wish
from penstock.dialects import anthropic_messages as dialect
from penstock.dialects.pairs import between
from penstock.dialects.pairs import messages_to_chat as pair
from penstock.errors import InvalidRequest

HELLO = [{"role": "user", "content": "hi"}]
MARK = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOL = {"name": "look", "description": "Look at it.", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "Look at it.", "parameters": SCHEMA}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}
IMAGE_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}
LONG = "mcp__a_server_with_quite_a_name__a_tool_whose_name_is_longer_than_most"
SHORT = f"{LONG[:55]}_{hashlib.sha256(LONG.encode()).hexdigest()[:8]}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def peek(**fields: Any) -> Wish:
    body = json.dumps({"model": "m", "max_tokens": 64, "messages": HELLO, **fields}).encode()
    return dialect.peek(body, max_output_tokens=1_000_000)


def sent(limit: int | None = None, field: str = "max_tokens", **fields: Any) -> dict[str, Any]:
    wish = peek(**fields)
    raw = pair.request(wish, model="up", output_limit=limit, limit_field=field, ask_usage=True)
    found: dict[str, Any] = json.loads(raw)
    return found


def conversation(*messages: tuple[str, Any]) -> Any:
    """What a conversation becomes; a user says the last word where it needs one."""
    turns = [{"role": role, "content": content} for role, content in messages]
    ends = turns[-1]["role"] == "assistant"
    found = sent(messages=[*turns, *HELLO] if ends else turns)["messages"]
    return found[:-1] if ends else found


def test_the_pair_is_found() -> None:
    assert between(dialect, ("openai_chat", "openai_embeddings")) is pair
    assert between(dialect, ("openai_chat", "anthropic_messages")) is dialect


def test_an_ordinary_request() -> None:
    assert sent() == {"model": "up", "messages": HELLO, "max_tokens": 64}


FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "streamed": ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    "not streamed": ({"stream": False}, {}),
    "sampling": ({"temperature": 0.5, "top_p": 0.9, "top_k": 5}, {"temperature": 0.5, "top_p": 0.9, "top_k": 5}),
    "null": ({"temperature": None, "thinking": None, "tools": None, "metadata": None, "system": None}, {}),
    "stop sequences": ({"stop_sequences": ["END", "\n\n"]}, {"stop": ["END", "\n\n"]}),
    "no stop sequence": ({"stop_sequences": []}, {}),
    "a user": ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
    "a long user": ({"metadata": {"user_id": "u" * 65}}, {"user": hashlib.sha256(b"u" * 65).hexdigest()}),
    "no user": ({"metadata": {"user_id": None}}, {}),
    "little thinking": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning_effort": "low"}),
    "some thinking": ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, {"reasoning_effort": "medium"}),
    "much thinking": ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, {"reasoning_effort": "high"}),
    "thinking as it likes": ({"thinking": {"type": "adaptive", "display": "summarized"}}, {}),
    "no thinking": ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, {}),
    "an effort": ({"output_config": {"effort": "xhigh"}}, {"reasoning_effort": "xhigh"}),
    "an effort and a budget": (
        {"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 20_000}},
        {"reasoning_effort": "low"},
    ),
    "harmless": (
        {
            "cache_control": MARK,
            "service_tier": "auto",
            "speed": "standard",
            "mcp_servers": [],
            "container": None,
            "fallbacks": "default",
            "diagnostics": {"previous_message_id": None},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        },
        {},
    ),
    "tools": ({"tools": [TOOL | {"cache_control": MARK, "type": "custom"}]}, {"tools": [FUNCTION]}),
    "no tools": ({"tools": [], "tool_choice": {"type": "auto"}}, {}),
    "a schema": (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA, "strict": False},
            }
        },
    ),
    "a strict schema, as it was asked for at first": (
        {"output_format": {"type": "json_schema", "schema": SCHEMA | {"additionalProperties": False}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": SCHEMA | {"additionalProperties": False}, "strict": True},
            }
        },
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_becomes(name: str) -> None:
    given, expected = FIELDS[name]
    assert sent(**given) == {"model": "up", "messages": HELLO, "max_tokens": 64, **expected}


CLOSED = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (CLOSED, True),
        (CLOSED | {"properties": {"a": CLOSED}}, True),
        (CLOSED | {"properties": {"a": {"anyOf": [CLOSED, {"type": "object"}]}}}, False),
        (CLOSED | {"required": []}, False),
        (CLOSED | {"required": [{"a": 1}]}, False),
        (CLOSED | {"additionalProperties": True}, False),
        ({"type": "array", "items": CLOSED}, True),
        ("odd", False),
    ],
)
def test_a_schema_is_enforced_where_openai_would_enforce_it(schema: Any, strict: bool) -> None:
    asked = sent(output_config={"format": {"type": "json_schema", "schema": schema}})["response_format"]["json_schema"]
    assert (asked["schema"], asked["strict"]) == (schema, strict)


def test_usage_is_asked_for_where_it_may_be() -> None:
    raw = pair.request(peek(stream=True), model="up", output_limit=None, limit_field="max_tokens", ask_usage=False)
    assert "stream_options" not in json.loads(raw)


def test_the_limit_is_in_the_upstreams_own_field() -> None:
    assert sent(limit=7, field="max_completion_tokens").items() >= {"max_completion_tokens": 7}.items()
    assert "max_tokens" not in sent(limit=7, field="max_completion_tokens")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        ({"type": "auto", "disable_parallel_tool_use": False}, {"tool_choice": "auto"}),
    ],
)
def test_a_choice_of_tools_becomes(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    found = sent(tools=[TOOL], tool_choice=choice)
    assert {name: found[name] for name in found if name in ("tool_choice", "parallel_tool_calls")} == expected


def test_all_that_a_definition_says_reaches_the_model() -> None:
    tool = {
        "name": "look",
        "input_schema": SCHEMA,
        "strict": True,
        "input_examples": [{"at": "it"}],
        "defer_loading": True,
    }
    function = sent(tools=[tool])["tools"][0]["function"]
    assert function == {
        "name": "look",
        "description": 'Example of an input: {"at": "it"}',
        "parameters": SCHEMA,
        "strict": True,
    }


def test_a_name_that_is_too_long_is_the_same_short_one_everywhere() -> None:
    call = {"type": "tool_use", "id": "t1", "name": LONG, "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "ok"}
    found = sent(
        tools=[TOOL | {"name": LONG}],
        tool_choice={"type": "tool", "name": LONG},
        messages=[*HELLO, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}],
    )
    assert len(SHORT) == 64
    assert found["tools"][0]["function"]["name"] == SHORT
    assert found["tool_choice"]["function"]["name"] == SHORT
    assert found["messages"][1]["tool_calls"][0]["function"]["name"] == SHORT


CONVERSATIONS: dict[str, tuple[list[tuple[str, Any]], list[dict[str, Any]]]] = {
    "texts": (
        [("user", [text("a") | {"cache_control": MARK}, text("b")])],
        [{"role": "user", "content": [text("a"), text("b")]}],
    ),
    "one text": ([("user", [text("a")])], [{"role": "user", "content": "a"}]),
    "an image among texts": (
        [("user", [text("a"), IMAGE, text("b")])],
        [{"role": "user", "content": [text("a"), IMAGE_URL, text("b")]}],
    ),
    "an image elsewhere": (
        [("user", [{"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}])],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]}],
    ),
    "a document as data": (
        [("user", [IMAGE | {"type": "document", "title": "a.pdf", "context": "Old."}])],
        [
            {
                "role": "user",
                "content": [
                    text("Old."),
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": IMAGE_URL["image_url"]["url"]}},  # type: ignore[index]
                ],
            }
        ],
    ),
    "a document as text": (
        [("user", [{"type": "document", "title": "T", "source": {"type": "text", "data": "d"}}])],
        [{"role": "user", "content": [text("T"), text("d")]}],
    ),
    "a document of parts": (
        [("user", [{"type": "document", "source": {"type": "content", "content": [text("d"), IMAGE]}}])],
        [{"role": "user", "content": [text("d"), IMAGE_URL]}],
    ),
    "a search result": (
        [
            (
                "user",
                [
                    {
                        "type": "search_result",
                        "source": "https://x.test",
                        "title": "T",
                        "content": [text("a"), text("b")],
                    }
                ],
            )
        ],
        [{"role": "user", "content": "T\nhttps://x.test\n\na\nb"}],
    ),
    "a system message in between": (
        [("user", "hi"), ("system", [text("Be brief.")]), ("user", "ho")],
        [*HELLO, {"role": "system", "content": "Be brief."}, {"role": "user", "content": "ho"}],
    ),
    "what the model has said": (
        [("assistant", [text("a") | {"citations": None}, text("b")])],
        [{"role": "assistant", "content": "ab"}],
    ),
    "a call": (
        [
            (
                "assistant",
                [{"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1.5}, "caller": {"type": "direct"}}],
            )
        ],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.5}'}}
                ],
            }
        ],
    ),
    "several results and a word": (
        [
            (
                "user",
                [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [text("two"), text("three")]},
                    {"type": "tool_result", "tool_use_id": "t3"},
                    {"type": "tool_result", "tool_use_id": "t4", "content": "gone", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "t5", "is_error": True},
                    text("Go on."),
                ],
            )
        ],
        [
            {"role": "tool", "tool_call_id": "t1", "content": "one"},
            {"role": "tool", "tool_call_id": "t2", "content": [text("two"), text("three")]},
            {"role": "tool", "tool_call_id": "t3", "content": ""},
            {"role": "tool", "tool_call_id": "t4", "content": "Error: gone"},
            {"role": "tool", "tool_call_id": "t5", "content": "Error:"},
            {"role": "user", "content": "Go on."},
        ],
    ),
    "a result with an image": (
        [("user", [{"type": "tool_result", "tool_use_id": "t1", "content": [text("seen"), IMAGE]}])],
        [
            {
                "role": "tool",
                "tool_call_id": "t1",
                "content": [text("seen"), text("[1 attached below, as the result of t1]")],
            },
            {"role": "user", "content": [text("[The result of t1:]"), IMAGE_URL]},
        ],
    ),
    "a tool that was found": (
        [
            (
                "user",
                [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "tool_reference", "tool_name": "look"}],
                    }
                ],
            )
        ],
        [{"role": "tool", "tool_call_id": "t1", "content": "The tool look can be called now."}],
    ),
    "thinking goes back under the name it came from": (
        [
            (
                "assistant",
                [
                    {"type": "thinking", "thinking": "Hm", "signature": "penstock:reasoning_content"},
                    {"type": "thinking", "thinking": ", yes", "signature": "penstock:reasoning_content"},
                    text("Yes."),
                ],
            )
        ],
        [{"role": "assistant", "content": "Yes.", "reasoning_content": "Hm, yes"}],
    ),
    "other models' thinking is theirs": (
        [
            (
                "assistant",
                [
                    {"type": "thinking", "thinking": "Hm", "signature": "EqQBCg"},
                    {"type": "redacted_thinking", "data": "Em"},
                    text("Yes."),
                ],
            )
        ],
        [{"role": "assistant", "content": "Yes."}],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_becomes(name: str) -> None:
    given, expected = CONVERSATIONS[name]
    assert conversation(*given) == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be brief.", [{"role": "system", "content": "Be brief."}]),
        ([text("Be brief.") | {"cache_control": MARK}], [{"role": "system", "content": "Be brief."}]),
        ([text("a"), text("b")], [{"role": "system", "content": [text("a"), text("b")]}]),
        ([text("x-anthropic-billing-header: cch=1;"), text("a")], [{"role": "system", "content": "a"}]),
        ([text("x-anthropic-billing-header: cch=1;")], []),
        ("", []),
        ([], []),
    ],
)
def test_a_system_prompt_comes_first(system: Any, expected: Any) -> None:
    assert sent(system=system)["messages"] == [*expected, *HELLO]


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


def answered(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": [fields]}, *HELLO]}


REFUSED: dict[str, dict[str, Any]] = {
    "max_tokens": {"max_tokens": 0},
    "container": {"container": "c_1"},
    "mcp_servers": {"mcp_servers": [{"type": "url", "url": "https://x.test", "name": "x"}]},
    "inference_geo": {"inference_geo": "us"},
    "speed": {"speed": "fast"},
    "fallbacks": {"fallbacks": [{"model": "other"}]},
    "something_new": {"something_new": False},
    "tools.1.type": {"tools": [TOOL, {"max_uses": 8, "type": "web_search_20250305", "name": "web_search"}]},
    "tools.0.type": {"tools": [{"type": "bash_20250124", "name": "bash"}]},
    "tools.0.allowed_callers.0": {"tools": [TOOL | {"allowed_callers": ["code_execution_20250825"]}]},
    "tools.0.new": {"tools": [TOOL | {"new": 1}]},
    "tools.0": {"tools": [{"name": "look"}]},
    "tool_choice.type": {"tools": [TOOL], "tool_choice": {"type": "whichever"}},
    "tool_choice.name": {"tools": [TOOL], "tool_choice": {"type": "tool"}},
    "thinking.type": {"thinking": {"type": "backwards"}},
    "output_config.effort": {"output_config": {"effort": "heroic"}},
    "output_config.task_budget": {"output_config": {"task_budget": {"type": "tokens", "total": 5}}},
    "output_config.format.type": {"output_config": {"format": {"type": "grammar", "schema": {}}}},
    "metadata.team": {"metadata": {"team": "t"}},
    "context_management.edits.0.type": {"context_management": {"edits": [{"type": "compact_20260112"}]}},
    "stop_sequences.0": {"stop_sequences": [5]},
    "messages.0.role": {"messages": [{"role": "assistant", "content": "The answer is"}]},
    "messages.0.content.0.type": block(type="server_tool_use", id="s", name="web_search", input={}),
    "messages.0.content.0.source.type": block(type="image", source={"type": "file", "file_id": "file_1"}),
    "messages.0.content.0.citations": block(
        type="document", source={"type": "text", "data": "d"}, citations={"enabled": True}
    ),
    "messages.0.content.0.new": block(type="text", text="hi", new=1),
    "messages.0.content.0.content.0.type": block(
        type="tool_result", tool_use_id="t", content=[{"type": "browser_state"}]
    ),
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_its_name(param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        sent(**REFUSED[param])
    assert refusal.value.param == param
    assert f"'{param}' cannot be carried over" in refusal.value.message or param == "tool_choice.name"


@pytest.mark.parametrize(
    ("turns", "param"),
    [
        (answered(**IMAGE), "messages.0.content.0.type"),
        (answered(type="tool_result", tool_use_id="t"), "messages.0.content.0.type"),
        (block(type="thinking", thinking="hm"), "messages.0.content.0.type"),
        (block(type="tool_use", id="t", name="look", input={}), "messages.0.content.0.type"),
    ],
)
def test_what_is_in_the_wrong_mouth_is_refused(turns: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        sent(**turns)
    assert refusal.value.param == param


# Whatever is said in a conversation is there afterwards, in the same order, and said by the same.

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
INPUTS = st.dictionaries(WORDS, st.integers() | WORDS | st.none(), max_size=3)
USER_BLOCKS = st.builds(text, WORDS) | st.just(IMAGE)
USER = WORDS | st.lists(USER_BLOCKS, min_size=1, max_size=3)


@st.composite
def loops(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation with calls of tools, all of them answered, and a question at the end."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": draw(USER)}]
    for turn in range(draw(st.integers(0, 3))):
        said = draw(st.lists(st.builds(text, WORDS), max_size=2))
        inputs = draw(st.lists(INPUTS, max_size=3))
        calls = [
            {"type": "tool_use", "id": f"t{turn}-{place}", "name": "look", "input": input}
            for place, input in enumerate(inputs)
        ]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": draw(WORDS)} for call in calls]
        turns.append({"role": "assistant", "content": [*said, *calls] or "nothing"})
        asked = draw(st.lists(USER_BLOCKS, min_size=0 if results else 1, max_size=2))
        turns.append({"role": "user", "content": [*results, *asked]})
    return turns


def listed(content: Any) -> list[Any]:
    parts = [text(content)] if isinstance(content, str) else content or []
    return [IMAGE if part["type"] == "image_url" else part for part in parts if part.get("text") != ""]


def meaning_of_messages(turns: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = []
    for turn in turns:
        said = [(turn["role"], part) for part in listed(turn["content"]) if part["type"] in ("text", "image")]
        if turn["role"] == "assistant":
            words = "".join(part["text"] for _, part in said)
            said = [("assistant", text(words))] if words else []
            found += said
            found += [(part["id"], part["name"], part["input"]) for part in listed(turn["content"]) if "id" in part]
        else:
            found += [
                (part["tool_use_id"], part["content"]) for part in listed(turn["content"]) if "tool_use_id" in part
            ]
            found += said
    return found


def meaning_of_chat(messages: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = []
    for message in messages:
        if message["role"] == "tool":
            found.append((message["tool_call_id"], message["content"]))
            continue
        found += [(message["role"], part) for part in listed(message["content"])]
        for call in message.get("tool_calls", ()):
            function = call["function"]
            found.append((call["id"], function["name"], json.loads(function["arguments"])))
    return found


@given(loops())
def test_a_conversation_keeps_its_meaning(turns: list[dict[str, Any]]) -> None:
    assert meaning_of_chat(sent(messages=turns)["messages"]) == meaning_of_messages(turns)


@given(
    st.dictionaries(
        st.sampled_from(sorted(pair.READ - {"model", "messages"})),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["type", "name", "edits", "format"]), inner)
            ),
            max_leaves=6,
        ),
        max_size=3,
    )
)
def test_a_request_is_carried_over_or_refused_by_a_name(fields: dict[str, Any]) -> None:
    try:
        carried = sent(**fields)["messages"]
    except InvalidRequest as refusal:
        carried = refusal.param
    assert carried
