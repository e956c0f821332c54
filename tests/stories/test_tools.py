"""Tools of a connected worker in whole calls: run by the gateway, paid round by round, written down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.config import HealthSettings, PriceSettings, Settings
from penstock.db.ledger import Extension
from penstock.db.tools import find_turns, write_turns
from penstock.db.workers import WorkerRow, note_workers
from penstock.errors import StoreUnavailable
from penstock.operations.actor import LOCAL
from penstock.operations.tools import clear_tool_policy, set_tool_policy
from penstock.relay import hold
from penstock.tools import ToolResult
from tests import toolcalls
from tests.stories.caller import eventually
from tests.stories.gateway import (
    DEEPSEEK,
    FORWARD,
    HELLO,
    LLAMA,
    ROUTER,
    TRUST,
    UPSTREAM_KEY,
    Running,
    events,
    running,
    settings_for,
    with_provider,
)
from tests.stories.toolworker import Shelf, says, working
from tests.toolcalls import Turn, call
from tests.upstream import Hang, Raw, Refusal, ScriptedUpstream

INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
MANY = 20_000
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def stream_of(answer: Any) -> tuple[str, str, dict[str, Any]]:
    """Text, last finish reason and last usage of a streamed answer, which must be complete."""
    found = events(answer.content)
    assert found[-1] == "[DONE]"
    chunks = found[:-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    finish = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(finish) == 1
    return text, finish[0], next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), {})


async def test_a_tool_is_run_and_the_completion_goes_on(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    shelf = Shelf(double=lambda arguments: ToolResult(str(2 * arguments["n"])))
    upstream.script(
        toolcalls.chat(Turn("Let me see.", (call("double", {"n": 21}),), prompt=100, output=20)),
        toolcalls.chat(Turn("It is 42.", prompt=150, output=10)),
    )
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada)
    document = answer.json()
    assert document["choices"][0]["message"]["content"] == "Let me see.\n\nIt is 42."
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["usage"]["total_tokens"] == 280
    assert shelf.asked == [("double", {"n": 21})]
    offered = upstream.requests[0].json["tools"]
    assert [tool["function"]["name"] for tool in offered] == ["double"]
    assert upstream.requests[1].json["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "call_double",
        "content": "42",
    }
    assert await gateway.nano(ada) == 10**9 - (250 * INPUT + 30 * OUTPUT)
    (record,) = await gateway.usage(ada)
    assert (record.input_tokens, record.output_tokens, record.estimated, record.ended) == (250, 30, False, "answer")
    (used,) = record.tools
    assert (used.name, used.round, used.ok, used.bytes) == ("double", 1, True, 2)
    assert answer.headers["x-penstock-tools"] == "double"


async def test_a_stream_goes_on_as_one_stream(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(
        toolcalls.chat_stream(Turn("Let me see.", (call("a"), call("b")), prompt=100, output=20)),
        toolcalls.chat_stream(Turn("", (call("a"),), prompt=120, output=5), id="chatcmpl-other"),
        toolcalls.chat_stream(Turn("It is so.", prompt=150, output=10), id="chatcmpl-third"),
    )
    async with working(gateway, ada, Shelf(a=says("A"), b=says("B"))):
        answer = await gateway.chat(ROUTER, ada, stream=True, stream_options={"include_usage": True})
    text, finish, usage = stream_of(answer)
    assert (text, finish, usage["total_tokens"]) == ("Let me see.\n\nIt is so.", "stop", 405)
    assert b"tool_calls" not in answer.content
    assert {chunk["id"] for chunk in events(answer.content)[:-1]} == {"chatcmpl-x"}
    assert await gateway.nano(ada) == 10**9 - (370 * INPUT + 35 * OUTPUT)
    (record,) = await gateway.usage(ada)
    assert [(used.name, used.round) for used in record.tools] == [("a", 1), ("b", 1), ("a", 2)]


async def test_without_a_worker_and_elsewhere_than_on_the_router_nothing_is_added(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada, bob = await gateway.person(usd="1", tokens=100_000), await gateway.person(usd="1")
    async with working(gateway, ada, Shelf(a=says("A"))):
        for base, person in ((TRUST, ada), (FORWARD, ada), (ROUTER, bob)):
            assert (await gateway.chat(base, person)).status_code == 200
    assert (await gateway.chat(ROUTER, ada)).status_code == 200  # the worker has gone
    assert not any("tools" in received.json for received in upstream.requests)


async def test_a_provider_that_takes_no_tools_serves_without_them(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Refusal(400, "This model does not support tools."), toolcalls.chat(Turn("Without.")), Refusal(400))
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada)
        assert answer.json()["choices"][0]["message"]["content"] == "Without."
        upstream.script(Refusal(400, "Too long."))  # that is the caller's to know
        refused = await gateway.chat(ROUTER, ada)
    assert ["tools" in received.json for received in upstream.requests] == [True, False, True, False]
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "Too long.")
    assert [record.attempts for record in await gateway.usage(ada)] == [1, 1]


async def test_the_callers_own_tools_go_back_to_the_caller(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat(Turn("", (call("weather"),))))
    shelf = Shelf(weather=says("never"), a=says("A"))
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada, tools=[WEATHER])
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert shelf.asked == []
    assert [tool["function"]["name"] for tool in upstream.requests[0].json["tools"]] == ["weather", "a"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_mixed_round_is_complete_in_the_next_request(
    gateway: Running, upstream: ScriptedUpstream, streamed: bool
) -> None:
    ada = await gateway.person(usd="1")
    turn = Turn("Both.", (call("a", {"q": 1}, "id_a"), call("weather", {"q": "Rome"}, "id_w")))
    upstream.script(toolcalls.chat_stream(turn) if streamed else toolcalls.chat(turn))
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada, tools=[WEATHER], stream=streamed)
        assert answer.status_code == 200
        function = {"name": "weather", "arguments": '{"q":"Rome"}'}
        seen = {"role": "assistant", "content": "Both.", "tool_calls": [{"id": "id_w", "function": function}]}
        given = {"role": "tool", "tool_call_id": "id_w", "content": "sunny"}
        await gateway.chat(ROUTER, ada, tools=[WEATHER], messages=[*HELLO, seen, given])
    asked = upstream.requests[1].json["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant", "tool", "tool"]
    assert [each["id"] for each in asked[1]["tool_calls"]] == ["id_a", "id_w"]
    assert [(message["tool_call_id"], message["content"]) for message in asked[2:]] == [
        ("id_a", "A"),
        ("id_w", "sunny"),
    ]


async def test_of_very_much_that_was_kept_the_newest_comes_back(gateway: Running) -> None:
    now_ms, store = gateway.office.clock.now_ms(), gateway.office.store
    for name, text in (("old", "o"), ("new", "nn"), ("newest", "NNN")):
        await store.write(write_turns(name, text.encode(), now_ms + 60_000))
    await store.write(write_turns("gone", b"", now_ms))
    named = ("old", "new", "new", "unknown", "gone", "newest")
    found = {most: await store.read(find_turns(named, now_ms, most)) for most in (6, 5, 4)}
    assert found == {
        6: {"old": b"o", "new": b"nn", "newest": b"NNN"},
        5: {"new": b"nn", "newest": b"NNN"},
        4: {"newest": b"NNN"},
    }
    assert await store.read(find_turns(("gone",), now_ms, 6)) == {}


async def test_a_tool_that_fails_or_takes_too_long_is_told_to_the_model(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    await set_tool_policy(gateway.office, LOCAL, account=ada.account, timeout_s=0.2, result_bytes=100)

    async def never(arguments: Any) -> ToolResult:
        await asyncio.Event().wait()
        return ToolResult("never")

    def breaks(arguments: Any) -> ToolResult:
        raise ZeroDivisionError

    shelf = Shelf(never=never, breaks=breaks, long=says("x" * 500))
    upstream.script(
        toolcalls.chat(Turn("", (call("never"), call("breaks"), call("long"), call("long", "[]", "id_broken")))),
        toolcalls.chat(Turn("Well.")),
    )
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada)
    assert answer.json()["choices"][0]["message"]["content"] == "Well."
    results = {each["tool_call_id"]: each["content"] for each in upstream.requests[1].json["messages"][2:]}
    assert results["call_never"] == "Error: The tool took longer than 0.2 seconds and was stopped."
    assert results["call_breaks"] == "Error: The tool failed."
    assert results["call_long"] == "x" * 100 + "\n[cut: 400 bytes more]"
    assert results["id_broken"] == "Error: The arguments were not a JSON object."
    (record,) = await gateway.usage(ada)
    assert sorted((used.name, used.ok) for used in record.tools) == [
        ("breaks", False), ("long", False), ("long", True), ("never", False),
    ]  # fmt: skip


async def test_after_the_rounds_there_is_a_last_one_without_tools(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    await set_tool_policy(gateway.office, LOCAL, account=ada.account, rounds=2)
    upstream.script(
        toolcalls.chat(Turn("", (call("a"),))),
        toolcalls.chat(Turn("", (call("a"),))),
        toolcalls.chat(Turn("Enough.", (call("a"),))),
    )
    shelf = Shelf(a=says("A"))
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada)
    message = answer.json()["choices"][0]
    assert (message["message"]["content"], message["finish_reason"]) == ("Enough.", "stop")
    assert "tool_calls" not in message["message"]
    assert ["tools" in received.json for received in upstream.requests] == [True, True, False]
    assert len(shelf.asked) == 2


async def test_rules_of_the_account_decide_what_is_offered(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    shelf = Shelf(web_fetch=says("F"), web_search=says("S"), box__a=says("A"), box__b=says("B"))

    async def offered() -> list[str]:
        policy = gateway.gateway.relay.tools
        policy._policies.clear()  # what a second would do
        assert (await gateway.chat(ROUTER, ada)).status_code == 200
        return [tool["function"]["name"] for tool in upstream.requests[-1].json.get("tools", [])]

    async with working(gateway, ada, shelf):
        assert len(await offered()) == 4
        await set_tool_policy(gateway.office, LOCAL, account=ada.account, allow=["web_*", "box__*"], deny=["*__b"])
        assert await offered() == ["web_fetch", "web_search", "box__a"]
        await set_tool_policy(gateway.office, LOCAL, account=ada.account, definitions=1)
        assert await offered() == ["web_fetch"]
        await set_tool_policy(gateway.office, LOCAL, account=ada.account, enabled=False)
        assert await offered() == []
        await clear_tool_policy(gateway.office, LOCAL, account=ada.account)
        assert len(await offered()) == 4


async def test_what_no_provider_would_take_as_a_tool_is_not_offered(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    odd = {"a b": says("x"), "x\r\ny: z": says("x"), "x" * 65: says("x"), "\u2603": says("x")}
    async with working(gateway, ada, Shelf(**odd, good=says("G"))):
        assert (await gateway.chat(ROUTER, ada)).status_code == 200
    assert [tool["function"]["name"] for tool in upstream.requests[0].json["tools"]] == ["good"]


async def test_calls_of_tools_are_limited_a_minute(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    await set_tool_policy(gateway.office, LOCAL, account=ada.account, calls_per_minute=2)
    upstream.script(
        toolcalls.chat(Turn("", tuple(call("a", {}, f"id_{n}") for n in range(3)))), toolcalls.chat(Turn("Ok."))
    )
    shelf = Shelf(a=says("A"))
    async with working(gateway, ada, shelf):
        await gateway.chat(ROUTER, ada)
    contents = [each["content"] for each in upstream.requests[1].json["messages"][2:]]
    assert sorted(contents) == ["A", "A", "Error: Too many tool calls of this account."]
    assert len(shelf.asked) == 2


# Upstreams and callers of other formats.


@pytest.fixture
async def over_messages(store_url: str, upstream: ScriptedUpstream) -> AsyncIterator[Running]:
    """A gateway whose provider speaks Anthropic's Messages."""
    settings = settings_for(store_url, upstream=upstream.base_url)
    async with running(with_provider(settings, "main", kind="anthropic")) as gateway:
        yield gateway


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_work_over_an_upstream_that_speaks_messages(
    over_messages: Running, upstream: ScriptedUpstream, streamed: bool
) -> None:
    ada = await over_messages.person(usd="1")
    write = toolcalls.message_stream if streamed else toolcalls.message
    upstream.script(
        write(Turn("Let me see.", (call("a", {"q": 1}),), prompt=100, output=20)),
        write(Turn("It is so.", prompt=150, output=10)),
    )
    async with working(over_messages, ada, Shelf(a=says("A"))):
        answer = await over_messages.chat(ROUTER, ada, stream=streamed, stream_options={"include_usage": True})
    assert answer.status_code == 200
    if streamed:
        text, finish, usage = stream_of(answer)
    else:
        choice, usage = answer.json()["choices"][0], answer.json()["usage"]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text.replace("\n", ""), finish) == ("Let me see.It is so.", "stop")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (250, 30)
    assert b"tool_use" not in answer.content
    assert b"tool_calls" not in answer.content
    assert upstream.requests[1].json["messages"][-1]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_a", "content": "A"}
    ]
    assert await over_messages.nano(ada) == 10**9 - (250 * INPUT + 30 * OUTPUT)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_mixed_round_over_messages_is_complete_in_the_next_request(
    over_messages: Running, upstream: ScriptedUpstream, streamed: bool
) -> None:
    ada = await over_messages.person(usd="1")
    write = toolcalls.message_stream if streamed else toolcalls.message
    upstream.script(
        write(Turn("Both.", (call("a", {"q": 1}, "id_a"), call("weather", {"q": "Rome"}, "id_w")))),
        toolcalls.message(Turn("Sunny.")),
    )
    async with working(over_messages, ada, Shelf(a=says("A"))):
        await over_messages.chat(ROUTER, ada, tools=[WEATHER], stream=streamed)
        function = {"name": "weather", "arguments": '{"q": "Rome"}'}
        calls = [{"id": "id_w", "type": "function", "function": function}]
        seen = {"role": "assistant", "content": "Both.", "tool_calls": calls}
        given = {"role": "tool", "tool_call_id": "id_w", "content": "sunny"}
        answer = await over_messages.chat(ROUTER, ada, tools=[WEATHER], messages=[*HELLO, seen, given])
    assert answer.status_code == 200
    _, turn, results = upstream.requests[1].json["messages"]
    assert [block.get("id") for block in turn["content"]] == [None, "id_a", "id_w"]
    assert [block["tool_use_id"] for block in results["content"]] == ["id_a", "id_w"]


@pytest.mark.parametrize("speaks", ["chat", "messages"])
async def test_a_caller_of_messages_gets_one_message_and_its_own_calls(
    store_url: str, upstream: ScriptedUpstream, speaks: str
) -> None:
    """First a stream with a round of ours, then its own call in a mixed round, then the result of that."""
    settings = settings_for(store_url, upstream=upstream.base_url)
    settings = settings if speaks == "chat" else with_provider(settings, "main", kind="anthropic")
    stream, plain = (
        (toolcalls.chat_stream, toolcalls.chat) if speaks == "chat" else (toolcalls.message_stream, toolcalls.message)
    )
    upstream.script(
        stream(Turn("Let me see.", (call("a", {"q": 1}, "id_1"),), prompt=100, output=20)),
        stream(Turn("Both.", (call("a", {}, "id_2"), call("weather", {"q": "Rome"}, "id_w")), prompt=50, output=5)),
        plain(Turn("Sunny.", prompt=60, output=6)),
    )
    tool: Any = {"name": "weather", "description": "Tells.", "input_schema": {"type": "object"}}
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        asked: dict[str, Any] = {"model": LLAMA, "max_tokens": 500, "tools": [tool]}
        async with working(gateway, ada, Shelf(a=says("A"))), gateway.anthropic(ada) as client:
            async with client.messages.stream(**asked, messages=HELLO) as streaming:
                first = await streaming.get_final_message()
            results = [{"type": "tool_result", "tool_use_id": "id_w", "content": "sunny"}]
            turns: Any = [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
            second = await client.messages.create(**asked, messages=[*HELLO, *turns])
        assert await gateway.nano(ada) == 10**9 - (210 * INPUT + 31 * OUTPUT)
    assert [block.type for block in first.content if block.type != "text"] == ["tool_use"]
    assert (
        "".join(block.text for block in first.content if block.type == "text").replace("\n", "") == "Let me see.Both."
    )
    assert (first.stop_reason, first.usage.output_tokens) == ("tool_use", 25)
    assert [block.text for block in second.content if block.type == "text"] == ["Sunny."]
    sent = json.dumps(upstream.requests[2].json["messages"])
    assert all(sent.count(f'"{id}"') == 2 for id in ("id_1", "id_2", "id_w"))  # each call, and its result


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_of_responses_gets_one_response(
    gateway: Running, upstream: ScriptedUpstream, streamed: bool
) -> None:
    ada = await gateway.person(usd="1")
    write = toolcalls.chat_stream if streamed else toolcalls.chat
    upstream.script(write(Turn("Let me see.", (call("a"),))), write(Turn("It is so.")))
    async with working(gateway, ada, Shelf(a=says("A"))), gateway.sdk(ROUTER, ada) as client:
        asked: Any = await client.responses.create(model=LLAMA, input="Hello!", stream=streamed)
        if streamed:
            events = [event async for event in asked]
            assert not any("function_call" in event.type for event in events)
            asked = events[-1].response
    assert asked.output_text == "Let me see.\n\nIt is so."
    assert asked.usage.total_tokens == 30
    assert len(upstream.requests) == 2


# Money.


@pytest.mark.parametrize("streamed", [False, True])
async def test_when_the_next_prompt_cannot_be_paid_the_answer_ends_there(
    gateway: Running, upstream: ScriptedUpstream, streamed: bool
) -> None:
    ada = await gateway.person(usd="0.002")
    turn = Turn("Let me see.", (call("a"),), prompt=100, output=20)
    upstream.script(toolcalls.chat_stream(turn) if streamed else toolcalls.chat(turn))
    async with working(gateway, ada, Shelf(a=says("x" * 50_000))):  # as a prompt it may cost $0.0295
        answer = await gateway.chat(ROUTER, ada, stream=streamed, max_tokens=50)
    if streamed:
        text, finish, _ = stream_of(answer)
    else:
        choice = answer.json()["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text, finish) == ("Let me see.", "length")
    assert b'"insufficient_balance"' in answer.content
    assert len(upstream.requests) == 1
    assert await gateway.nano(ada) == 2_000_000 - (100 * INPUT + 20 * OUTPUT)
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.status, record.uncollected) == ("money", 200, 0)


async def test_a_long_call_of_a_tool_is_paid_while_it_is_written(gateway: Running, upstream: ScriptedUpstream) -> None:
    """Nobody sees it, and it costs all the same: it stops where the money does."""
    ada = await gateway.person(usd="0.001")
    long = json.dumps({"q": "x" * 20_000})  # some 5,000 tokens, $0.004
    upstream.script(toolcalls.chat_stream(Turn("Look.", (call("a", long),), prompt=10, output=5_000)))
    shelf = Shelf(a=says("A"))
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada, stream=True)
    text, finish, _ = stream_of(answer)
    assert (text, finish) == ("Look.", "length")
    assert shelf.asked == []
    (record,) = await gateway.usage(ada)
    assert record.ended == "money"
    assert await gateway.nano(ada) >= 0


async def test_the_callers_limit_is_for_all_rounds_together(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(
        toolcalls.chat(Turn("", (call("a"),), prompt=10, output=30)),
        toolcalls.chat(Turn("", (call("a"),), prompt=10, output=20)),
    )
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada, max_tokens=50)
    assert [received.json["max_tokens"] for received in upstream.requests] == [50, 20]
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    (record,) = await gateway.usage(ada)
    assert (record.output_tokens, record.ended) == (50, "answer")


async def test_a_price_for_each_request_is_paid_for_each_round(store_url: str, upstream: ScriptedUpstream) -> None:
    settings = settings_for(store_url, upstream=upstream.base_url)
    price = PriceSettings(input=590_000_000, output=790_000_000, per_request=1_000_000)
    models = tuple(replace(model, price=price) if model.id == LLAMA else model for model in settings.models)
    async with running(replace(settings, models=models)) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(toolcalls.chat(Turn("", (call("a"),))), toolcalls.chat(Turn("Ok.")))
        async with working(gateway, ada, Shelf(a=says("A"))):
            await gateway.chat(ROUTER, ada)
        assert await gateway.nano(ada) == 10**9 - (20 * INPUT + 10 * OUTPUT + 2 * 1_000_000)


async def test_rounds_that_nobody_counted_are_charged_by_estimate(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    first = toolcalls.chat_stream(Turn("Look.", (call("a"),)))
    second = toolcalls.chat_stream(Turn("It is so."))
    uncounted = [replace(each, body=each.body.replace(b'"usage"', b'"usages"')) for each in (first, second)]
    upstream.script(*uncounted)
    async with working(gateway, ada, Shelf(a=says("x" * 4_000))):
        answer = await gateway.chat(ROUTER, ada, stream=True)
    assert stream_of(answer)[0] == "Look.\n\nIt is so."
    (record,) = await gateway.usage(ada)
    assert record.estimated
    assert 1_000 < record.input_tokens < 1_500
    assert 0 < record.output_tokens < 30


async def test_a_round_of_very_many_calls_takes_a_time_like_their_number(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="100")
    many = Turn("", tuple(call("a", "{", f"c{number}") for number in range(MANY)))
    upstream.script(toolcalls.chat_stream(many), toolcalls.chat_stream(Turn("So.")))
    async with working(gateway, ada, Shelf(a=says("A"))):
        began_s = time.process_time()
        answer = await gateway.chat(ROUTER, ada, stream=True)
        assert time.process_time() - began_s < 20  # five or so; when each call wrote all notes again, 35
    assert stream_of(answer)[0] == "So."
    (record,) = await gateway.usage(ada)
    assert len(record.tools) == MANY


# Endings.


async def test_a_header_names_some_of_very_many_tools(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat(Turn("", tuple(call("a", {}, f"id_{number}") for number in range(5_000)))))
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada)
    assert answer.headers["x-penstock-tools"] == ", ".join(["a"] * 64) + ", and 4936 more"


async def test_a_plain_call_whose_later_round_fails_costs_nothing_and_runs_no_tool_twice(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat(Turn("", (call("a"),))), Refusal(500))
    shelf = Shelf(a=says("A"))
    async with working(gateway, ada, shelf):
        answer = await gateway.chat(ROUTER, ada, model="deepseek/deepseek-chat")
    assert answer.status_code == 502
    assert len(shelf.asked) == 1
    assert await gateway.nano(ada) == 10**9
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.attempts, len(record.tools)) == ("upstream_failed", 1, 1)


async def test_a_plain_call_that_no_store_lets_go_on_costs_nothing(
    gateway: Running, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat(Turn("", (call("a"),), prompt=100, output=20)))
    store = gateway.office.store
    commit = store.commit

    def away(operation: Any) -> Any:
        if not isinstance(operation, Extension):
            return commit(operation)
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(StoreUnavailable("The store is away."))
        return failed

    monkeypatch.setattr(hold, "PATIENCE_S", 0.0)
    monkeypatch.setattr(store, "commit", away)
    async with working(gateway, ada, Shelf(a=says("x" * 50_000))):
        answer = await gateway.chat(ROUTER, ada, max_tokens=50)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert await gateway.nano(ada) == 10**9
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.amount, len(record.tools)) == ("fault", 0, 1)


DAMAGED = [b'"h\xff"', b"1e400"]


@pytest.mark.parametrize("damaged", DAMAGED)
async def test_a_damaged_answer_is_failed_over_until_a_tool_has_run(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream, damaged: bytes
) -> None:
    ada = await gateway.person(usd="1")
    broken = replace(toolcalls.chat(Turn("x")), body=toolcalls.chat(Turn("x")).body.replace(b'"x"', damaged))
    upstream.script(broken, toolcalls.chat(Turn("", (call("a"),), prompt=100, output=20)), broken)
    spare.script(toolcalls.chat(Turn("It is so.")))
    async with working(gateway, ada, Shelf(a=says("A"))):
        first = await gateway.chat(ROUTER, ada, model=DEEPSEEK)
        left = await gateway.nano(ada)
        second = await gateway.chat(ROUTER, ada, model=DEEPSEEK)
    assert first.json()["choices"][0]["message"]["content"] == "It is so."
    assert (second.status_code, second.json()["error"]["code"]) == (502, "upstream_failed")
    assert len(spare.requests) == 1
    assert await gateway.nano(ada) == left
    assert (await gateway.usage(ada))[0].ended == "upstream_failed"


@pytest.mark.parametrize("usage", [b"[1]", b'"x"', b"7"])
async def test_a_later_round_whose_count_is_none_is_charged_by_estimate(
    gateway: Running, upstream: ScriptedUpstream, usage: bytes
) -> None:
    ada = await gateway.person(usd="1")
    last = b'{"id":"c","choices":[{"index":0,"finish_reason":"stop","message":{"content":"So."}}],"usage":%b}' % usage
    upstream.script(toolcalls.chat(Turn("Look.", (call("a"),), prompt=100, output=20)), Raw(last))
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada)
    assert answer.json()["choices"][0]["message"]["content"] == "Look.\n\nSo."
    assert 100 < answer.json()["usage"]["prompt_tokens"] < 300
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.estimated) == ("answer", True)
    assert record.input_tokens == answer.json()["usage"]["prompt_tokens"]


async def test_an_upstreams_words_under_status_200_are_repeated_without_secrets(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    error = Raw(json.dumps({"error": {"message": f"Bad key {UPSTREAM_KEY}."}}).encode())
    upstream.script(error, toolcalls.chat(Turn("", (call("a"),))), error)
    async with working(gateway, ada, Shelf(a=says("A"))):
        answers = [await gateway.chat(ROUTER, ada) for _ in range(2)]
    assert [answer.json()["error"]["message"] for answer in answers] == ["Bad key [redacted]."] * 2


async def test_a_count_beyond_all_counts_breaks_no_ledger(over_messages: Running, upstream: ScriptedUpstream) -> None:
    ada = await over_messages.person(usd="1")
    upstream.script(
        toolcalls.message(Turn("", (call("a"),), prompt=10**30)), toolcalls.message(Turn("So.", prompt=10**30))
    )
    async with working(over_messages, ada, Shelf(a=says("A"))):
        answer = await over_messages.chat(ROUTER, ada)
    assert answer.json()["choices"][0]["message"]["content"].strip() == "So."
    assert answer.json()["usage"]["prompt_tokens"] < 1_000


async def test_a_stream_whose_later_round_fails_is_charged_for_what_came(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat_stream(Turn("Look.", (call("a"),), prompt=100, output=20)), Refusal(500))
    async with working(gateway, ada, Shelf(a=says("A"))):
        answer = await gateway.chat(ROUTER, ada, stream=True)
    assert events(answer.content)[-2]["error"]["code"] == "upstream_failed"
    assert await gateway.nano(ada) == 10**9 - (100 * INPUT + 20 * OUTPUT)


async def test_when_the_caller_leaves_the_tool_is_stopped(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    began, stopped = asyncio.Event(), asyncio.Event()

    async def waits(arguments: Any) -> ToolResult:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ToolResult("never")

    upstream.script(toolcalls.chat_stream(Turn("Look.", (call("waits"),), prompt=100, output=20)))
    async with working(gateway, ada, Shelf(waits=waits)):
        asking = asyncio.create_task(gateway.chat(ROUTER, ada, stream=True))
        await began.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await stopped.wait()
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.status) == ("caller_gone", 499)
    assert (record.input_tokens, record.output_tokens) == (100, 20)


async def test_when_the_caller_leaves_in_a_later_round_the_upstream_is_let_go(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(toolcalls.chat(Turn("", (call("a"),), prompt=100, output=20)), Hang())
    async with working(gateway, ada, Shelf(a=says("A"))):
        asking = asyncio.create_task(gateway.chat(ROUTER, ada))
        second = await upstream.arrival(2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await second.over.wait()
    (record,) = await gateway.usage(ada)
    assert record.ended == "caller_gone"
    assert record.input_tokens > 100  # the second prompt is on its way
    assert record.estimated


async def test_a_call_that_is_drained_for_nobody_begins_no_further_round(
    store_url: str, upstream: ScriptedUpstream
) -> None:
    settings = with_provider(settings_for(store_url, upstream=upstream.base_url), "main", on_cancel="drain")
    turn = Turn("Look.", (call("a"),), prompt=100, output=20)
    held = toolcalls.Held(tuple(toolcalls.chat_events(turn)), rest=4)
    upstream.script(held)
    shelf = Shelf(a=says("A"))
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        async with working(gateway, ada, shelf):
            asking = asyncio.create_task(gateway.chat(ROUTER, ada, stream=True))
            received = await upstream.arrival(1)
            await received.events.reach(4)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await eventually(lambda: drained(gateway))
            held.resume.set()
            await received.over.wait()
            (record,) = await eventually(lambda: gateway.usage(ada))
        assert shelf.asked == []
        assert len(upstream.requests) == 1
        assert (record.ended, record.input_tokens, record.output_tokens) == ("caller_gone", 100, 20)


async def drained(gateway: Running) -> bool:
    return gateway.gateway.relay.drains.now == 1


async def test_a_worker_that_goes_while_it_runs_a_tool_is_an_error_for_the_model(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    began = asyncio.Event()

    async def waits(arguments: Any) -> ToolResult:
        began.set()
        await asyncio.Event().wait()
        return ToolResult("never")

    upstream.script(toolcalls.chat(Turn("", (call("waits"),))), toolcalls.chat(Turn("Without, then.")))
    async with working(gateway, ada, Shelf(waits=waits)):
        asking = asyncio.create_task(gateway.chat(ROUTER, ada))
        await began.wait()
    answer = await asking
    assert answer.json()["choices"][0]["message"]["content"] == "Without, then."
    assert upstream.requests[1].json["messages"][-1]["content"].startswith("Error: ")


# The endpoints.


async def get_tools(gateway: Running, key: str) -> Any:
    return await gateway.http.get("/api/tools/v1/tools", headers={"authorization": f"Bearer {key}"})


async def execute(gateway: Running, key: str, body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await gateway.http.post("/api/tools/v1/execute", content=content, headers={"x-api-key": key})


async def test_a_credential_sees_and_runs_the_tools_of_its_account(gateway: Running) -> None:
    ada, bob = await gateway.person(), await gateway.person()
    shelf = Shelf(double=lambda arguments: ToolResult(str(2 * arguments["n"])))
    async with working(gateway, ada, shelf):
        listed = (await get_tools(gateway, ada.personal_key.key)).json()
        assert [tool["function"]["name"] for tool in listed["data"]] == ["double"]
        assert (await get_tools(gateway, bob.personal_key.key)).json() == {"object": "list", "data": []}
        answer = await execute(gateway, ada.personal_key.key, {"name": "double", "arguments": {"n": 4}})
        failed = await execute(gateway, ada.personal_key.key, {"name": "double", "arguments": {}})
    assert {**answer.json(), "ms": 0} == {"name": "double", "text": "8", "failed": False, "ms": 0}
    assert failed.status_code == 200
    assert failed.json()["failed"]
    second, first = await gateway.usage(ada)
    assert (first.surface, first.status, first.cost.nano, first.tools[0].name) == ("tools", 200, 0, "double")
    assert not second.tools[0].ok


async def test_a_tool_that_was_run_and_whose_result_cannot_be_told_is_not_run_again(gateway: Running) -> None:
    ada = await gateway.person()
    shelf = Shelf(odd=says("\ud800"))
    async with working(gateway, ada, shelf):
        answer = await execute(gateway, ada.personal_key.key, {"name": "odd"})
    assert (answer.status_code, answer.json()["error"]["code"], len(shelf.asked)) == (502, "upstream_failed", 1)


async def test_what_cannot_be_run_is_refused_by_name(gateway: Running) -> None:
    ada = await gateway.person()
    key = ada.personal_key.key
    tools = await gateway.key("tools_worker", account=ada.account)

    async def never(arguments: Any) -> ToolResult:
        await asyncio.Event().wait()
        return ToolResult("never")

    async def refused(key: str, body: Any) -> tuple[int, str | None]:
        answer = await execute(gateway, key, body)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param"}
        return answer.status_code, error["code"]

    assert await refused(key, {"name": "a"}) == (503, "no_tools_worker")
    await set_tool_policy(gateway.office, LOCAL, account=ada.account, deny=["secret*"], timeout_s=0.2)
    async with working(gateway, ada, Shelf(a=says("A"), secret=says("S"), never=never)):
        assert await refused(key, {"name": "none"}) == (404, "tool_not_found")
        assert await refused(key, {"name": "secret"}) == (403, "tool_denied")
        assert await refused(key, {"name": "never"}) == (504, "upstream_timeout")
        assert await refused(key, b"nonsense") == (400, None)
        assert await refused(key, {"arguments": {}}) == (400, None)
        assert await refused(key, {"name": "a", "arguments": []}) == (400, None)
        assert await refused(tools.key, {"name": "a"}) == (401, "invalid_api_key")
        assert await refused(ada.account_key.key, {"name": "a"}) == (401, "invalid_api_key")


async def test_running_tools_counts_against_the_rate_limit_of_the_key(gateway: Running) -> None:
    ada = await gateway.person()
    slow = await gateway.key("personal", user=ada.user, requests_per_minute=2)
    async with working(gateway, ada, Shelf(a=says("A"))):
        statuses = [(await execute(gateway, slow.key, {"name": "a"})).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_tools_that_are_off_for_all_and_on_for_one_account_are_found_at_other_processes(
    settings: Settings,
) -> None:
    async with running(replace(settings, tools=replace(settings.tools, enabled=False))) as gateway:
        ada = await gateway.person(usd="1")
        await set_tool_policy(gateway.office, LOCAL, account=ada.account, enabled=True)
        offer = '{"type": "offer", "tools": [{"name": "double"}]}'
        row = WorkerRow(
            "tlw_1", "own_other", "tools_worker", "key_1", ada.account, 0, "http://127.0.0.1:1", offer, 0, 0, 1, 1
        )
        await gateway.office.store.write(note_workers([row], []))

        async def found() -> bool:
            return await gateway.gateway.relay.tools.bench(ada.account) is not None

        await eventually(found)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_was_never_sent_is_not_paid_by_a_caller_who_leaves_before(
    gateway: Running, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    ada = await gateway.person(usd="1")
    covering = asyncio.Event()

    async def waits(*_: Any, **__: Any) -> bool:
        covering.set()
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(hold.Hold, "cover_input", waits)
    turn = Turn("Look.", (call("a"),), prompt=100, output=20)
    upstream.script(toolcalls.chat_stream(turn) if stream else toolcalls.chat(turn))
    async with working(gateway, ada, Shelf(a=says("A" * 4_000))):
        asking = asyncio.create_task(gateway.chat(ROUTER, ada, stream=stream))
        await covering.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (record,) = await eventually(lambda: gateway.usage(ada))
    assert len(upstream.requests) == 1
    assert (record.ended, record.input_tokens, record.output_tokens) == ("caller_gone", 100, 20)
    assert not record.estimated


@pytest.mark.parametrize("stream", [False, True])
async def test_a_round_that_is_refused_is_no_failure_of_its_provider(
    store_url: str, upstream: ScriptedUpstream, *, stream: bool
) -> None:
    turn = Turn("Look.", (call("a"),), prompt=100, output=20)
    settings = replace(settings_for(store_url, upstream=upstream.base_url), health=HealthSettings(failures=1))
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(toolcalls.chat_stream(turn) if stream else toolcalls.chat(turn), Refusal(400, "Too long."))
        async with working(gateway, ada, Shelf(a=says("A"))):
            answer = await gateway.chat(ROUTER, ada, stream=stream)
        if not stream:
            assert answer.status_code == 400
        assert not gateway.gateway.relay.attempts.upstreams.health.out
        (record,) = await gateway.usage(ada)
        assert (record.ended, record.output_tokens) == ("refused", 20 if stream else 0)
