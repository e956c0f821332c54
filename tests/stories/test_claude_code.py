"""A session as Claude Code has them, over a provider that speaks chat: what it sends survives, what it reads is whole.

The requests have the headers, fields and order that Claude Code is known to send: a title asked for beside the first
turn, a system prompt in blocks with marks for the cache, thinking, tools called side by side, their results in one turn
with reminders behind, a turn that is cancelled in the middle and taken up again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from penstock.config import ModelSettings, OfferSettings, PriceSettings, Settings
from penstock.dialects.pairs.messages_to_chat import function_name
from tests.rules.test_chat_as_messages import message_of
from tests.stories.caller import calling, eventually
from tests.stories.gateway import ANTHROPIC, Person, Running
from tests.upstream import Raw, ScriptedUpstream, Stream

SONNET, HAIKU = "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001"
MARK = {"type": "ephemeral"}
BETAS = (
    "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14,"
    "context-management-2025-06-27,prompt-caching-scope-2026-01-05,effort-2025-11-24"
)
HEADERS = {
    "accept": "application/json",
    "anthropic-beta": BETAS,
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
    "user-agent": "claude-cli/2.1.92 (external, cli)",
    "x-app": "cli",
    "x-claude-code-session-id": "5b1c7a3e-0c7e-4a53-8a4b-1f6f0a0d8d11",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
}
USER_ID = json.dumps(
    {"device_id": "14ff65a7" * 8, "account_uuid": "", "session_id": HEADERS["x-claude-code-session-id"]}
)
SYSTEM = [
    {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.92.a3f; cc_entrypoint=cli; cch=97bd6;"},
    {"type": "text", "text": "You are Claude Code.", "cache_control": MARK},
    {"type": "text", "text": "# Tone\nBe concise.", "cache_control": {**MARK, "ttl": "1h", "scope": "global"}},
]
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
PICTURE = "iVBORw0KGgo="
MCP = "mcp__a_project_management_server__search_for_issues_in_all_of_the_projects"


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"$schema": SCHEMA, "type": "object", "properties": properties, "required": list(properties)}
    return {"name": name, "description": f"What {name} does.", "input_schema": schema | {"additionalProperties": False}}


TEXT = {"type": "string", "description": "A text"}
TOOLS = [
    tool("Bash", command=TEXT, timeout={"type": "number"}),
    tool("Read", file_path=TEXT, offset={"type": "integer", "exclusiveMinimum": 0}),
    tool("Edit", file_path=TEXT, old_string=TEXT, new_string=TEXT),
    tool("TodoWrite", todos={"type": "array", "items": {"type": "object", "properties": {"content": TEXT}}}),
    *(tool(f"Tool{number}", value=TEXT) for number in range(20)),
    tool(MCP, query=TEXT),
]
FIRST = {
    "role": "user",
    "content": [
        {"type": "text", "text": "<system-reminder>\nToday is Thursday.\n</system-reminder>"},
        {"type": "text", "text": "Why does the build fail?", "cache_control": MARK},
    ],
}


def turn(*messages: Any) -> dict[str, Any]:
    """A request of the main loop."""
    return {
        "model": SONNET,
        "messages": list(messages),
        "system": SYSTEM,
        "tools": TOOLS,
        "metadata": {"user_id": USER_ID},
        "max_tokens": 32_000,
        "thinking": {"type": "enabled", "budget_tokens": 31_999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stream": True,
    }


TITLE = {
    "model": HAIKU,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Why does the build fail?"}]}],
    "system": [SYSTEM[0], {"type": "text", "text": "Write a title."}],
    "tools": [],
    "metadata": {"user_id": USER_ID},
    "max_tokens": 32_000,
    "temperature": 1,
    "output_config": {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"title": {"type": "string"}},
                "required": ["title"],
                "additionalProperties": False,
            },
        }
    },
    "stream": True,
}


def chunks(*deltas: Any, finish: str = "stop") -> Raw:
    """A streamed chat completion of these deltas."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    usage = {"prompt_tokens": 12_000, "completion_tokens": 60, "total_tokens": 12_060}
    events = [{"model": "up", "choices": [choice]} for choice in choices] + [{"choices": [], "usage": usage}]
    raw = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return Raw(raw.encode(), content_type="text/event-stream")


def piece(index: int, arguments: str, id: str | None = None, name: str | None = None) -> Any:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    price = PriceSettings(input=590_000_000, output=790_000_000)
    models = tuple(
        ModelSettings(name, offers=(OfferSettings("main", f"up-{place}"),), price=price)
        for place, name in enumerate((SONNET, HAIKU))
    )
    return replace(settings, models=(*settings.models, *models))


async def post(gateway: Running, person: Person, body: Any, path: str = "/v1/messages?beta=true") -> bytes:
    answer = await gateway.post(ANTHROPIC + path, person, body=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return answer.content


# What is written otherwise on its way up: a name that is too long, an image, what a tool says when it fails.
OTHERWISE = {MCP: function_name(MCP), PICTURE: f"data:image/png;base64,{PICTURE}", "exit 1": "Error: exit 1"}
NOT_READ = {"cache_control", "signature", "type", "role", "thinking", "media_type"}


def words_of(value: Any) -> Iterable[str]:
    """Every text, name, id and value in something that a model reads."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "arguments":
                yield from words_of(json.loads(inner))
            elif name not in NOT_READ:
                yield from words_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words_of(inner)
    elif isinstance(value, str):
        yield value


def assert_nothing_is_lost(sent: Any, received: Any) -> None:
    """All there is to read in a request went up."""
    prompt = [sent[name] for name in ("messages", "system", "tools")]
    said = {OTHERWISE.get(each, each) for each in words_of(prompt) if not each.startswith("x-anthropic-billing-header")}
    assert said <= set(words_of(received))


async def test_a_session_loses_nothing(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    assert (await gateway.http.head("/")).status_code < 500

    upstream.script(chunks({"content": '{"title":"Build'}, {"content": ' failure"}'}))
    title = message_of(await post(gateway, ada, TITLE))
    assert title["content"] == [{"type": "text", "text": '{"title":"Build failure"}'}]

    upstream.script(
        chunks(
            {"role": "assistant", "content": None, "reasoning_content": "Let me "},
            {"reasoning_content": "look."},
            {"content": "I'll look at both."},
            {"tool_calls": [piece(0, "", "call_a", "Bash"), piece(1, "", "call_b", "Read")]},
            {"tool_calls": [piece(1, '{"file_path":"/src/a.py",')]},
            {"tool_calls": [piece(0, '{"command":"make",'), piece(1, '"offset":1}')]},
            {"tool_calls": [piece(0, '"timeout":9000}'), piece(2, '{"query":"build"}', "call_c", function_name(MCP))]},
            finish="tool_calls",
        )
    )
    first = turn(FIRST)
    answered = message_of(await post(gateway, ada, first))
    assert [block["type"] for block in answered["content"]] == ["thinking", "text", *["tool_use"] * 3]
    assert [(block["id"], block["name"], block["input"]) for block in answered["content"][2:]] == [
        ("call_a", "Bash", {"command": "make", "timeout": 9000}),
        ("call_b", "Read", {"file_path": "/src/a.py", "offset": 1}),
        ("call_c", MCP, {"query": "build"}),
    ]
    assert (answered["stop_reason"], answered["usage"]["output_tokens"]) == ("tool_use", 60)

    results = {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_a", "content": "exit 1", "is_error": True},
            {
                "type": "tool_result",
                "tool_use_id": "call_b",
                "content": [
                    {"type": "text", "text": "     1→import b"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
                ],
            },
            {"type": "tool_result", "tool_use_id": "call_c", "content": [{"type": "text", "text": "No issues."}]},
            {
                "type": "text",
                "text": "<system-reminder>\nMind the todo list.\n</system-reminder>",
                "cache_control": MARK,
            },
        ],
    }
    second = turn(FIRST, {"role": "assistant", "content": answered["content"]}, results)
    await cancelled(gateway, ada, upstream, second)

    upstream.script(chunks({"content": "The module b is missing."}))
    again = message_of(await post(gateway, ada, second))
    assert again["content"] == [{"type": "text", "text": "The module b is missing."}]
    counted = {name: second[name] for name in ("model", "messages", "system", "tools", "thinking")}
    count = json.loads(await post(gateway, ada, counted, "/v1/messages/count_tokens?beta=true"))["input_tokens"]
    assert 1_000 < count < 10_000

    received = [each.json for each in upstream.requests]
    for sent, body in zip((TITLE, first, second, second), received, strict=True):
        assert_nothing_is_lost(sent, body)
    assert received[0]["response_format"]["json_schema"]["strict"] is True
    thought = next(message for message in received[3]["messages"] if message["role"] == "assistant")
    assert thought["reasoning_content"] == "Let me look."
    roles = ["system", "user", "assistant", "tool", "tool", "tool", "user"]
    assert [message["role"] for message in received[3]["messages"]] == roles
    assert {body["reasoning_effort"] for body in received[1:]} == {"high"}
    assert {len(body["user"]) for body in received} == {64}
    assert not [name for each in upstream.requests for name in each.headers if name.startswith(("anthropic", "x-"))]
    records = await gateway.usage(ada)
    assert sorted(record.ended for record in records) == ["answer", "answer", "answer", "caller_gone"]


async def cancelled(gateway: Running, person: Person, upstream: ScriptedUpstream, body: Any) -> None:
    """The same turn, given up by its user when five words have come."""
    upstream.script(Stream(tokens=50, hold_after=5))
    number = len(upstream.requests) + 1
    raw = json.dumps(body).encode()
    headers = HEADERS | {"x-api-key": person.personal_key.key, "content-length": str(len(raw)), "host": "gateway"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with calling(gateway.url) as caller:
        await caller.send(f"POST {ANTHROPIC}/v1/messages?beta=true HTTP/1.1\r\n{head}\r\n".encode() + raw)
        assert (await caller.head()).status == 200
        words = 0
        while words < 5:
            words += b"text_delta" in await caller.event()
        caller.hang_up()
        received = await upstream.arrival(number)
        await received.over.wait()
    assert received.aborted_at is not None

    async def recorded() -> bool:
        return any(record.ended == "caller_gone" for record in await gateway.usage(person))

    await eventually(recorded)
