"""A session of Codex CLI as its published source sends it, through Responses to a chat upstream: nothing is lost.

The shapes are those of `codex-rs`: headers, instructions, developer and user messages without ids, tools (a shell
function, `update_plan`, the freeform `apply_patch`, an MCP namespace), encrypted reasoning asked for, nothing stored,
always streamed. Codex reads `output_item.done` and `response.completed`; so does this.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from penstock.config import Settings
from tests.stories.gateway import LLAMA, ROUTER_V1, Person, Running, settings_for
from tests.upstream import Received, ScriptedUpstream, Stream
from tests.upstream_responses import Events, chunk

SESSION = "0199a213-81c0-7800-8aa1-bbab2a035a53"
HEADERS = {
    "originator": "codex_cli_rs",
    "version": "0.60.1",
    "user-agent": "codex_cli_rs/0.60.1 (Debian 13.0.0; x86_64) xterm-256color",
    "openai-beta": "responses=experimental",
    "session_id": SESSION,
    "conversation_id": SESSION,
    "accept": "text/event-stream",
}
SHELL: Any = {
    "type": "function",
    "name": "shell",
    "description": "Runs a shell command and returns its output.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"command": {"type": "array", "items": {"type": "string"}}, "workdir": {"type": "string"}},
        "required": ["command"],
        "additionalProperties": False,
    },
}
PLAN: Any = {
    "type": "function",
    "name": "update_plan",
    "description": "Updates the task plan.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"plan": {"type": "array", "items": {"type": "object"}}}},
}
APPLY_PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Use the `apply_patch` tool to edit files. This is a FREEFORM tool.",
    "format": {
        "type": "grammar",
        "syntax": "lark",
        "definition": 'start: begin_patch hunk+ end_patch\nbegin_patch: "x"',
    },
}
MCP: Any = {
    "type": "namespace",
    "name": "mcp__docs",
    "description": "Tools in the mcp__docs namespace.",
    "tools": [{"type": "function", "name": "lookup", "strict": False, "parameters": {"type": "object"}}],
}
TASK: list[Any] = [
    {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
    for role, text in (
        ("developer", "<permissions>ask</permissions>"),
        ("user", "<environment_context/>"),
        ("user", "Fix the bug."),
    )
]
PATCH = '*** Begin Patch\n*** Update File: a.py\n@@\n-x = 1\n+x = "ü"\n*** End Patch\n'


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream) -> Settings:
    return settings_for(store_url, upstream=upstream.base_url)


def request(history: list[Any]) -> dict[str, Any]:
    """The body of one turn."""
    return {
        "model": LLAMA,
        "instructions": "You are Codex, a coding agent.",
        "input": [*TASK, *history],
        "tools": [SHELL, PLAN, APPLY_PATCH, MCP],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": SESSION,
        "text": {"verbosity": "medium"},
        "client_metadata": {"x-codex-installation-id": "5f1d"},
    }


async def turn(gateway: Running, ada: Person, history: list[Any]) -> dict[str, Any]:
    """One turn: adds what came to the history as Codex does; the response at its end."""
    answer = await gateway.post(f"{ROUTER_V1}/responses", ada, headers=HEADERS, body=request(history))
    assert answer.headers["content-type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    for event in events:
        if event["type"] == "response.output_item.done":
            # Codex keeps items without ids, and of reasoning what it may send again.
            left_out = {"id", "content"} if event["item"]["type"] == "reasoning" else {"id"}
            history.append({name: value for name, value in event["item"].items() if name not in left_out})
    assert events[-1]["type"] == "response.completed"
    response: dict[str, Any] = events[-1]["response"]
    return response


def called(index: int, call_id: str, name: str, *arguments: str) -> list[bytes]:
    """A tool call in pieces."""
    opening = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    pieces = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
    return [chunk({"tool_calls": [each]}) for each in (opening, *pieces)]


def ending(reason: str, prompt: int, completion: int) -> list[bytes]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return [chunk({}, reason), chunk(usage=usage), b"data: [DONE]\n\n"]


async def test_a_session_of_codex_loses_nothing_over_chat(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    patch = json.dumps({"input": PATCH}, ensure_ascii=False)
    upstream.script(
        Events(
            [
                chunk({"role": "assistant", "reasoning_content": "Look first."}),
                *called(0, "call_1", "shell", '{"command":', '["cat","a.py"]}'),
                *called(1, "call_2", "update_plan", '{"plan":[]}'),
                *called(2, "call_3", "mcp__docs__lookup", "{}"),
                *ending("tool_calls", 100, 30),
            ]
        ),
        Events([*called(0, "call_4", "apply_patch", patch[:9], patch[9:]), *ending("tool_calls", 150, 40)]),
        Events([chunk({"content": "Fixed"}), chunk({"content": "."}), *ending("stop", 200, 2)]),
    )
    history: list[Any] = []
    await turn(gateway, ada, history)
    reasoning, shell, plan, lookup = history
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Look first."}]
    assert (shell["type"], shell["name"], shell["call_id"]) == ("function_call", "shell", "call_1")
    assert json.loads(shell["arguments"]) == {"command": ["cat", "a.py"]}
    assert (plan["name"], lookup["namespace"], lookup["name"]) == ("update_plan", "mcp__docs", "lookup")
    for number in (1, 2, 3):
        history.append({"type": "function_call_output", "call_id": f"call_{number}", "output": f"output {number}"})

    await turn(gateway, ada, history)
    assert (history[-1]["type"], history[-1]["name"], history[-1]["input"]) == (
        "custom_tool_call",
        "apply_patch",
        PATCH,
    )
    history.append({"type": "custom_tool_call_output", "call_id": "call_4", "output": "Done!"})

    last = await turn(gateway, ada, history)
    assert last["output"][0]["content"][0]["text"] == "Fixed."
    assert last["usage"]["input_tokens"] == 200
    _all_of_it_arrived(upstream.requests[2], patch)
    spent = 450 * 590 + 72 * 790
    assert await gateway.nano(ada) == 1_000_000_000 - spent
    assert [record.ended for record in await gateway.usage(ada)] == ["answer"] * 3


def _all_of_it_arrived(received: Received, patch: str) -> None:
    """What the upstream was sent in the last turn."""
    body = received.json
    assert "originator" not in received.headers
    assert (body["reasoning_effort"], body["verbosity"], body["prompt_cache_key"]) == ("medium", "medium", SESSION)
    assert body["parallel_tool_calls"] is True
    names = [tool["function"]["name"] for tool in body["tools"]]
    assert names == ["shell", "update_plan", "apply_patch", "mcp__docs__lookup"]
    system, *said = body["messages"]
    assert system["content"] == "You are Codex, a coding agent.\n\n<permissions>ask</permissions>"
    assert [each["role"] for each in said] == ["user", "user", "assistant", "tool", "tool", "tool", "assistant", "tool"]
    first, second = said[2], said[6]
    assert first["reasoning_content"] == "Look first."
    assert [call["id"] for call in first["tool_calls"]] == ["call_1", "call_2", "call_3"]
    assert [each["content"] for each in said[3:6]] == ["output 1", "output 2", "output 3"]
    assert json.loads(second["tool_calls"][0]["function"]["arguments"]) == json.loads(patch)
    assert said[7] == {"role": "tool", "tool_call_id": "call_4", "content": "Done!"}


SEARCH = {"type": "web_search", "external_web_access": False}


async def test_a_search_that_codex_always_offers_is_left_out_and_the_response_shows_it(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    body = request([]) | {"tools": [SHELL, SEARCH], "stream": False}
    answer = await gateway.post(f"{ROUTER_V1}/responses", ada, headers=HEADERS, body=body)
    assert answer.status_code == 200
    assert answer.json()["tools"] == [SHELL]
    assert [tool["function"]["name"] for tool in upstream.requests[0].json["tools"]] == [SHELL["name"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [SEARCH]}, "tools[0]"),
        ({"tools": [SHELL, SEARCH], "tool_choice": {"type": "web_search"}}, "tools[1]"),
    ],
    ids=["the only tool", "asked for"],
)
async def test_a_search_that_is_meant_is_refused_by_name(
    fields: dict[str, Any], param: str, gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    refused = await gateway.post(f"{ROUTER_V1}/responses", ada, headers=HEADERS, body=request([]) | fields)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert "web_search" in refused.json()["error"]["message"]


async def test_when_codex_is_interrupted_the_upstream_stops_and_what_came_is_paid(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=50, hold_after=3))
    headers = HEADERS | {"authorization": f"Bearer {ada.personal_key.key}"}
    async with (
        httpx2.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as http,
        http.stream("POST", f"{ROUTER_V1}/responses", headers=headers, json=request([])) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["type"] == "response.output_text.delta":
                break
    received = await upstream.arrival(1)
    await received.over.wait()
    assert not received.finished
    await gateway.office.store.settled()
    (record,) = await gateway.usage(ada)
    assert record.ended == "caller_gone"
    assert 1 <= record.output_tokens <= 3
    assert await gateway.nano(ada) == 1_000_000_000 - record.amount
