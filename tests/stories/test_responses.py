"""OpenAI Responses in front, with the official SDK: over an upstream that speaks chat, and one that speaks them too."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from openai import BadRequestError, NotFoundError
from openai.types.responses import Response
from pydantic import BaseModel

from penstock.api import responses
from penstock.config import ResponseSettings, Settings
from penstock.db.responses import KeptResponse, forget, keep
from penstock.db.tools import forget_turns
from penstock.dialects import response_input
from penstock.relay import memory
from tests.stories.caller import eventually
from tests.stories.gateway import (
    DEEPSEEK,
    FORWARD,
    LLAMA,
    ROUTER,
    ROUTER_V1,
    TRUST,
    Person,
    Running,
    running,
    settings_for,
    with_provider,
)
from tests.upstream import Plain, Raw, Refusal, ScriptedUpstream, Stream
from tests.upstream_responses import UPSTREAM_ID, Answered, Events, Streamed, chunk
from tests.upstream_responses import sse as event

Test = TypeVar("Test", bound=Callable[..., Any])
FILED = {"type": "input_image", "file_id": "file_1"}
IN, OUT = 590, 790  # nano-USD a token of LLAMA
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather at a place",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


@pytest.fixture(params=["openai_chat", "openai_responses"])
def spoken(request: pytest.FixtureRequest) -> str:
    """What the upstream speaks."""
    return str(request.param)


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream, spare: ScriptedUpstream, spoken: str) -> Settings:
    settings = settings_for(store_url, upstream=upstream.base_url, spare=spare.base_url)
    return with_provider(settings, "main", dialects=(spoken,))


def over(kind: str) -> Callable[[Test], Test]:
    """Run a test over one kind of upstream only."""
    mark: Callable[[Test], Test] = pytest.mark.parametrize("spoken", [kind], indirect=True)
    return mark


def answered(spoken: str, tokens: int = 5) -> Any:
    return Plain(tokens=tokens) if spoken == "openai_chat" else Answered(tokens=tokens)


def streamed(spoken: str, tokens: int = 5, **more: Any) -> Any:
    return Stream(tokens=tokens, **more) if spoken == "openai_chat" else Streamed(tokens=tokens, **more)


def tool_call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def calling(*calls: dict[str, Any], **message: Any) -> Raw:
    """A chat completion that calls tools."""
    said = {"role": "assistant", "content": None, "tool_calls": list(calls), **message}
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
    return Raw(json.dumps({"id": "chatcmpl-1", "choices": [choice], "usage": usage}).encode())


@pytest.mark.parametrize("base", [TRUST, ROUTER, ROUTER_V1])
async def test_a_response_is_answered_paid_exactly_and_valid(
    gateway: Running, upstream: ScriptedUpstream, base: str, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken))
    async with gateway.sdk(base, ada) as client:
        response = await client.responses.create(
            model=LLAMA, input="Hello!", instructions="Be brief.", max_output_tokens=40, metadata={"a": "b"}
        )
    assert Response.model_validate(response.to_dict()).status == "completed"
    assert response.output_text
    assert response.model == LLAMA
    assert response.id.startswith("resp_")
    assert response.id != UPSTREAM_ID
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 5, 12)
    assert await gateway.nano(ada) == 1_000_000_000 - 7 * IN - 5 * OUT
    (record,) = await gateway.usage(ada)
    assert (record.dialect, record.ended, record.input_tokens, record.output_tokens) == (
        "openai_responses", "answer", 7, 5,
    )  # fmt: skip


async def test_on_the_forward_surface_there_are_no_responses(gateway: Running) -> None:
    ada = await gateway.person(tokens=10_000)
    assert (await gateway.post(f"{FORWARD}/responses", ada, body={"model": LLAMA, "input": "x"})).status_code == 404


async def test_a_stream_has_the_published_events_and_ends_when_it_is_in_the_balance(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(streamed(spoken, tokens=4))
    seen, numbers, text = [], [], ""
    async with gateway.sdk(ROUTER, ada) as client, client.responses.stream(model=LLAMA, input="Hello!") as stream:
        async for event in stream:
            seen.append(event.type)
            numbers.append(event.sequence_number)
            text += event.delta if event.type == "response.output_text.delta" else ""
            if event.type == "response.completed":
                assert await gateway.nano(ada) == 1_000_000_000 - 7 * IN - 4 * OUT
        final = await stream.get_final_response()
    assert seen == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * 4, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert numbers == list(range(len(seen)))
    assert final.output_text == text
    assert final.model == LLAMA
    assert final.usage is not None
    assert final.usage.output_tokens == 4


async def test_a_chain_continues_itself_whatever_the_upstream_remembers(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken), streamed(spoken), answered(spoken))
    async with gateway.sdk(ROUTER, ada) as client:
        first = await client.responses.create(model=LLAMA, input="One.", instructions="Only now.")
        async with client.responses.stream(model=LLAMA, input="Two.", previous_response_id=first.id) as stream:
            second = await stream.get_final_response()
        third = await client.responses.create(model=LLAMA, input="Three.", previous_response_id=second.id)
        assert third.previous_response_id == second.id
        items = await client.responses.input_items.list(third.id, order="asc")
    sent = upstream.requests[2].json
    assert "previous_response_id" not in sent
    assert sent.get("store") in (None, False)
    said = sent["messages"] if spoken == "openai_chat" else sent["input"]
    assert [each["role"] for each in said] == ["user", "assistant", "user", "assistant", "user"]
    assert json.dumps(sent).count("Only now.") == 0
    assert len(items.data) == 5
    assert len({item.id for item in items.data}) == 5


async def test_another_account_can_neither_continue_nor_see_a_response(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada, eve = await gateway.person(usd="1"), await gateway.person(usd="1")
    upstream.script(answered(spoken))
    async with gateway.sdk(ROUTER, ada) as hers, gateway.sdk(ROUTER, eve) as other:
        response = await hers.responses.create(model=LLAMA, input="A secret.")
        with pytest.raises(BadRequestError) as refused:
            await other.responses.create(model=LLAMA, input="Go on.", previous_response_id=response.id)
        assert refused.value.code == "previous_response_not_found"
        reference: Any = [{"type": "item_reference", "id": response.output[0].id}]
        with pytest.raises(BadRequestError, match="not found"):
            await other.responses.create(model=LLAMA, input=reference)
        for ask in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            with pytest.raises(NotFoundError):
                await ask(response.id)
        with pytest.raises(NotFoundError):
            await other.responses.input_items.list(response.id)
        assert (await hers.responses.retrieve(response.id)).output_text == response.output_text
    assert len(upstream.requests) == 1
    assert await gateway.nano(eve) == 1_000_000_000


@over("openai_responses")
async def test_no_id_of_something_at_the_upstream_is_passed_on(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    bodies: list[dict[str, Any]] = [
        {"previous_response_id": UPSTREAM_ID},
        {"Previous_Response_Id": UPSTREAM_ID},
        {"conversation": "conv_1"},
        {"prompt": {"id": "pmpt_1"}},
        {"background": True},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"type": "item\\u005freference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
    ]
    for body in bodies:
        text = json.dumps({"model": LLAMA, "input": "x", **body}).replace("\\\\u", "\\u")
        refused = await gateway.post(f"{ROUTER}/responses", ada, body=text.encode())
        assert refused.status_code == 400, body
        assert refused.json()["error"]["type"] == "invalid_request_error"
    assert upstream.requests == []


async def test_what_is_not_to_be_stored_is_not(gateway: Running, upstream: ScriptedUpstream, spoken: str) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken))
    async with gateway.sdk(ROUTER, ada) as client:
        response = await client.responses.create(model=LLAMA, input="Hello!", store=False)
        assert response.to_dict()["store"] is False
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(response.id)
        with pytest.raises(BadRequestError):
            await client.responses.create(model=LLAMA, input="More.", previous_response_id=response.id)


async def test_what_was_deleted_or_has_expired_is_gone(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken), answered(spoken), answered(spoken))
    store, clock = gateway.office.store, gateway.office.clock
    async with gateway.sdk(ROUTER, ada) as client:
        first = await client.responses.create(model=LLAMA, input="One.")
        second = await client.responses.create(model=LLAMA, input="Two.", previous_response_id=first.id)
        await client.responses.delete(first.id)
        with pytest.raises(NotFoundError):
            await client.responses.delete(first.id)
        with pytest.raises(BadRequestError):  # a conversation with a hole in it is not continued
            await client.responses.create(model=LLAMA, input="Three.", previous_response_id=second.id)
        assert (await client.responses.retrieve(second.id)).id == second.id
        month_ms = 30 * 24 * 3600 * 1000
        assert await store.write(forget(clock.now_ms() + month_ms - 60_000, 10**9)) == 0
        assert await store.write(forget(clock.now_ms() + month_ms, 10**9)) == 1
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(second.id)


async def test_an_account_keeps_its_newest_when_it_has_too_many(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    upstream.script(*[answered(spoken)] * 4)
    store, clock = gateway.office.store, gateway.office.clock
    async with gateway.sdk(ROUTER, ada) as client, gateway.sdk(ROUTER, bob) as other:
        small = await other.responses.create(model=LLAMA, input="Short.")
        for _ in range(3):
            last = await client.responses.create(model=LLAMA, input="x" * 5_000)
        assert await store.write(forget(clock.now_ms(), 8_000)) == 2
        assert await store.write(forget(clock.now_ms(), 8_000)) == 0
        assert (await client.responses.retrieve(last.id)).id == last.id
        assert (await other.responses.retrieve(small.id)).id == small.id


async def test_items_may_be_named_in_place_of_sent(gateway: Running, upstream: ScriptedUpstream, spoken: str) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken), answered(spoken))
    async with gateway.sdk(ROUTER, ada) as client:
        first = await client.responses.create(model=LLAMA, input="One.")
        input: Any = [
            {"role": "user", "content": "One."},
            {"type": "item_reference", "id": first.output[0].id},
            {"role": "user", "content": "Two."},
        ]
        await client.responses.create(model=LLAMA, input=input)
    sent = upstream.requests[1].json
    said = sent["messages"] if spoken == "openai_chat" else sent["input"]
    assert [each["role"] for each in said] == ["user", "assistant", "user"]


@pytest.mark.parametrize("name", ["\x00", "resp_\x00", "", "x" * 10_000])
async def test_what_no_store_could_keep_is_not_found(gateway: Running, spoken: str, name: str) -> None:
    ada = await gateway.person(usd="1")
    for body in ({"previous_response_id": name, "input": "x"}, {"input": [{"type": "item_reference", "id": name}]}):
        refused = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, **body})
        assert refused.status_code == 400, body
        assert "not found" in refused.json()["error"]["message"]


@over("openai_responses")
@pytest.mark.parametrize("name", ["msg\x00", "", "".join(map(chr, range(0x100, 0x3000))), 5, None])
async def test_an_answer_is_delivered_whatever_its_items_are_called(
    gateway: Running, upstream: ScriptedUpstream, spoken: str, name: Any
) -> None:
    ada = await gateway.person(usd="1")
    said = {"type": "message", "id": name, "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
    usage = {"input_tokens": 1, "output_tokens": 1}
    upstream.script(Raw(json.dumps({"status": "completed", "output": [said], "usage": usage}).encode()))
    answer = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": "x"})
    assert answer.status_code == 200
    assert await gateway.nano(ada) == 1_000_000_000 - IN - OUT
    assert (await gateway.get(f"{ROUTER}/responses/{answer.json()['id']}", ada)).status_code == 200


async def keep_items(gateway: Running, person: Person, name: str, count: int, text: str = "x") -> list[Any]:
    """Keep a response with so many items; a reference to each of them."""
    ids = [f"msg_{name}_{number}" for number in range(count)]
    said = [{"type": "message", "role": "assistant", "id": id, "content": text} for id in ids]
    answer = json.dumps({"id": f"resp_{name}", "status": "completed", "output": said})
    now_ms = gateway.office.clock.now_ms()
    kept = KeptResponse(
        person.account, f"resp_{name}", None, "[]", answer, len(answer), now_ms, expires_ms=now_ms + 60_000
    )
    await gateway.office.store.write(keep(kept, items=ids, ancestors=[]))
    return [{"type": "item_reference", "id": id} for id in ids]


@over("openai_chat")
async def test_many_items_of_one_answer_take_the_room_of_one(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="9")
    named = await keep_items(gateway, ada, "1", 500, "x" * 2_000)
    assert (await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": "x"})).status_code == 200
    tracemalloc.start()
    try:
        answered = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": named, "store": False})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answered.status_code == 200
    assert [each["content"] for each in upstream.requests[1].json["messages"]] == ["x" * 2_000] * 500
    assert peak < 50_000_000  # the upstream and its record of the request are among it; and not 500 times the answer


@over("openai_chat")
async def test_many_items_of_one_answer_take_time_in_proportion(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="9")
    named = await keep_items(gateway, ada, "1", 4_000)
    began_s = time.process_time()
    answered = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": named})
    assert answered.status_code == 200
    assert len(upstream.requests[0].json["messages"]) == 4_000
    assert time.process_time() - began_s < 5  # and not twenty


@over("openai_chat")
async def test_items_of_many_answers_are_found_and_too_much_is_refused(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada, bob = await gateway.person(usd="9"), await gateway.person(usd="9")
    small = [reference for name in "abc" for reference in await keep_items(gateway, ada, name, 2, name)]
    answered = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": small[::-1]})
    assert answered.status_code == 200
    assert [each["content"] for each in upstream.requests[0].json["messages"]] == ["c", "c", "b", "b", "a", "a"]
    large = [reference for name in "de" for reference in await keep_items(gateway, ada, name, 1, "x" * 12_000_000)]
    refused = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": large})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    absent = await gateway.post(f"{ROUTER}/responses", bob, body={"model": LLAMA, "input": small})
    assert (absent.status_code, absent.json()["error"]["code"]) == (400, "item_not_found")


@over("openai_responses")
@pytest.mark.parametrize("output", [{}, None, "Hi", [5], []])
async def test_an_answer_of_any_output_can_be_continued(
    gateway: Running, upstream: ScriptedUpstream, spoken: str, output: Any
) -> None:
    ada = await gateway.person(usd="1")
    usage = {"input_tokens": 1, "output_tokens": 1}
    upstream.script(*[Raw(json.dumps({"status": "completed", "output": output, "usage": usage}).encode())] * 2)
    answer = (await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": "x"})).json()
    body = {"model": LLAMA, "input": "y", "previous_response_id": answer["id"]}
    continued = await gateway.post(f"{ROUTER}/responses", ada, body=body)
    assert continued.status_code == (400 if output == [5] else 200)
    assert (await gateway.get(f"{ROUTER}/responses/{answer['id']}/input_items", ada)).status_code == 200


async def continued_at_length(gateway: Running, person: Person, turns: int, said: str, told: str) -> str:
    """Keep a conversation of so many turns, whose answers say one text and tell another; the id of the last."""
    now_ms, ids = gateway.office.clock.now_ms(), [f"resp_{number}" for number in range(turns)]
    for id, previous in zip(ids, [None, *ids], strict=False):
        item = {"type": "message", "role": "assistant", "id": f"msg_{id}", "content": said}
        answer = json.dumps({"id": id, "status": "completed", "instructions": told, "output": [item]})
        kept = KeptResponse(person.account, id, previous, "[]", answer, len(answer), now_ms, now_ms + 60_000)
        await gateway.office.store.write(keep(kept, items=(), ancestors=[]))
    return ids[-1]


@over("openai_chat")
@pytest.mark.parametrize("long", ["said", "told"])
async def test_a_conversation_of_any_size_takes_the_room_of_a_part(
    gateway: Running, upstream: ScriptedUpstream, spoken: str, long: str
) -> None:
    ada = await gateway.person(usd="9")
    texts = {"said": "x", "told": "x"} | {long: "x" * 1_000_000}
    last = await continued_at_length(gateway, ada, 80, texts["said"], texts["told"])
    assert (await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": "x"})).status_code == 200
    body = {"model": LLAMA, "input": "y", "previous_response_id": last, "store": False}
    tracemalloc.start()
    try:
        pages = [await gateway.get(f"{ROUTER}/responses/{last}/input_items", ada, query={"limit": "3", "order": order})
                 for order in ("asc", "desc")]  # fmt: skip
        continued = await gateway.post(f"{ROUTER}/responses", ada, body=body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [[each["id"][9:] for each in page.json()["data"]] for page in pages] == [["0", "1", "2"], ["78", "77", "76"]]
    if long == "told":
        assert continued.status_code == 200
        assert len(upstream.requests[1].json["messages"]) == 81
        assert peak < 30_000_000
    else:
        assert (continued.status_code, continued.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert peak < 60_000_000  # a request's room and a part


async def test_an_answer_waits_a_moment_for_its_keeping_and_no_longer(
    gateway: Running, upstream: ScriptedUpstream, spoken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, store, free = await gateway.person(usd="1"), gateway.office.store, asyncio.Event()
    write = store.write

    async def slowly(program: Any) -> Any:
        await free.wait()
        return await write(program)

    monkeypatch.setattr(store, "write", slowly)
    monkeypatch.setattr(memory, "KEEP_S", 0.05)
    upstream.script(answered(spoken))
    answer = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": "x"})
    assert answer.status_code == 200
    path = f"{ROUTER}/responses/{answer.json()['id']}"
    assert (await gateway.get(path, ada)).status_code == 404
    free.set()

    async def kept() -> bool:
        return (await gateway.get(path, ada)).status_code == 200

    await eventually(kept)


async def test_whoever_is_stopped_while_it_is_kept_sends_the_answer_all_the_same(gateway: Running) -> None:
    class Never:
        async def write(self, program: Any) -> None:
            await asyncio.Event().wait()

    store: Any = Never()
    conversations = memory.Conversations(store, gateway.office.clock, ResponseSettings(), most_body_bytes=1)
    waiting = asyncio.create_task(conversations.write("resp_1", forget_turns(0)))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await waiting


@over("openai_chat")
async def test_items_named_very_often_are_found_once(gateway: Running, upstream: ScriptedUpstream, spoken: str) -> None:
    ada = await gateway.person(usd="9")
    now_ms = gateway.office.clock.now_ms()
    said = [{"type": "message", "role": "assistant", "id": f"msg_{number}", "content": "x"} for number in range(1_000)]
    answer = json.dumps({"id": "resp_1", "status": "completed", "output": said})
    long = KeptResponse(ada.account, "resp_1", None, "[]", answer, len(answer), now_ms, now_ms + 60_000)
    await gateway.office.store.write(keep(long, items=["msg_999"], ancestors=[]))
    named = [{"type": "item_reference", "id": "msg_999"}] * 19_000
    began_s = time.process_time()
    answered = await gateway.post(f"{ROUTER}/responses", ada, body={"model": LLAMA, "input": named})
    assert answered.status_code == 200
    assert time.process_time() - began_s < 8  # and not half a minute


async def test_input_items_come_in_pages(gateway: Running, upstream: ScriptedUpstream, spoken: str) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken))
    input: Any = [{"role": "user", "content": f"{number}"} for number in range(5)]
    async with gateway.sdk(ROUTER, ada) as client:
        response = await client.responses.create(model=LLAMA, input=input)
        pages = [item.to_dict() async for item in client.responses.input_items.list(response.id, limit=2, order="asc")]
    assert [item["content"][0]["text"] for item in pages] == ["0", "1", "2", "3", "4"]  # type: ignore[index]
    for query in ({"limit": "0"}, {"limit": "000000001999"}, {"limit": "x"}, {"order": "up"}, {"after": "nothing"}):
        refused = await gateway.get(f"{ROUTER}/responses/{response.id}/input_items", ada, query=query)
        assert refused.status_code == 400


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_for_a_page_only_what_is_on_it_is_taken_apart(
    gateway: Running, upstream: ScriptedUpstream, spoken: str, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    ada, taken = await gateway.person(usd="1"), []

    def counted(item: Any, response: str, place: int) -> Any:
        taken.append(place)
        return response_input.shown(item, response, place)

    monkeypatch.setattr(responses, "shown", counted)
    upstream.script(answered(spoken))
    body = {"model": LLAMA, "input": [{"role": "user", "content": "x"}] * 1_000}
    id = (await gateway.post(f"{ROUTER}/responses", ada, body=body)).json()["id"]
    page = await gateway.get(f"{ROUTER}/responses/{id}/input_items", ada, query={"limit": "2", "order": order})
    assert page.json()["has_more"]
    assert taken == ([0, 1, 2] if order == "asc" else [999, 998, 997])


async def test_what_is_not_served_below_a_response_says_so(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(answered(spoken))
    async with gateway.sdk(ROUTER, ada) as client:
        response = await client.responses.create(model=LLAMA, input="Hello!")
        with pytest.raises(BadRequestError, match="background"):
            await client.responses.cancel(response.id)
    path = f"{ROUTER}/responses/{response.id}"
    assert (await gateway.get(path, ada, query={"stream": "true"})).status_code == 400
    assert (await gateway.get(f"{path}/nothing", ada)).status_code == 404
    headers = {"authorization": f"Bearer {ada.key(ROUTER).key}"}
    for end, allowed in (("", "DELETE, GET"), ("/input_items", "GET"), ("/cancel", "POST")):
        for method in {"GET", "DELETE", "POST", "PUT"} - set(allowed.split(", ")):
            answer = await gateway.http.request(method, path + end, headers=headers)
            assert answer.status_code == 405
            assert answer.headers["allow"] == allowed, f"{method} {end}"
    assert (await gateway.http.put(f"{path}/nothing")).status_code == 404
    assert (await gateway.get(f"{ROUTER}/responses/nonsense", ada)).json()["error"]["code"] == "not_found"
    assert (await gateway.http.get(path)).status_code == 401


@over("openai_chat")
async def test_tools_are_called_side_by_side_and_answered(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    calls = [tool_call("call_1", "get_weather", {"city": "Bern"}), tool_call("call_2", "get_weather", {"city": "Rom"})]
    upstream.script(calling(*calls, reasoning_content="Two places."), Plain(text="Sunny in both."))
    async with gateway.sdk(ROUTER, ada) as client:
        first = await client.responses.create(
            model=LLAMA, input="Weather?", tools=[WEATHER], parallel_tool_calls=True, tool_choice="auto"
        )
        assert [item.type for item in first.output] == ["reasoning", "function_call", "function_call"]
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            for item in first.output
            if item.type == "function_call"
        ]
        second = await client.responses.create(
            model=LLAMA, input=outputs, previous_response_id=first.id, tools=[WEATHER]
        )
    assert second.output_text == "Sunny in both."
    assert upstream.requests[0].json["tools"][0]["function"]["name"] == "get_weather"
    user, assistant, *tools = upstream.requests[1].json["messages"]
    assert user == {"role": "user", "content": "Weather?"}
    assert assistant == {
        "role": "assistant", "content": None, "reasoning_content": "Two places.", "tool_calls": calls,
    }  # fmt: skip
    assert tools == [{"role": "tool", "tool_call_id": f"call_{place}", "content": "sunny"} for place in (1, 2)]


@over("openai_chat")
async def test_streamed_calls_are_put_together_by_the_sdk(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")

    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments, **more.pop("named", {})}, **more}]}

    upstream.script(
        Events(
            [
                chunk({"role": "assistant", "reasoning_content": "Hm."}),
                chunk({"content": "Looking."}),
                chunk(part(0, "", id="call_1", named={"name": "get_weather"})),
                chunk(part(0, '{"city":')),
                chunk(part(0, '"Bern"}')),
                chunk(part(1, '{"city":"Rom"}', id="call_2", named={"name": "get_weather"})),
                chunk({}, "tool_calls"),
                chunk(usage={"prompt_tokens": 9, "completion_tokens": 20, "total_tokens": 29}),
                b"data: [DONE]\n\n",
            ]
        )
    )
    async with (
        gateway.sdk(ROUTER, ada) as client,
        client.responses.stream(model=LLAMA, input="Weather?", tools=[WEATHER]) as stream,
    ):
        seen = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    arguments = [item.arguments for item in final.output if item.type == "function_call"]
    assert arguments == ['{"city":"Bern"}', '{"city":"Rom"}']
    assert seen.count("response.output_item.added") == seen.count("response.output_item.done") == 4
    assert seen[-1] == "response.completed"
    assert await gateway.nano(ada) == 1_000_000_000 - 9 * IN - 20 * OUT


@over("openai_chat")
async def test_structured_output_is_parsed(gateway: Running, upstream: ScriptedUpstream) -> None:
    class Place(BaseModel):
        city: str

    ada = await gateway.person(usd="1")
    upstream.script(Plain(text='{"city": "Bern"}'))
    async with gateway.sdk(ROUTER, ada) as client:
        parsed = await client.responses.parse(model=LLAMA, input="Where?", text_format=Place)
    assert parsed.output_parsed == Place(city="Bern")
    sent = upstream.requests[0].json["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    assert sent["json_schema"]["schema"]["properties"]["city"]["type"] == "string"


async def test_a_stream_ends_validly_where_the_money_does(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="0.0005")
    upstream.script(streamed(spoken, tokens=2_000))
    async with gateway.sdk(ROUTER, ada) as client, client.responses.stream(model=LLAMA, input="Hello!") as stream:
        events = [event async for event in stream]
    numbers, last = [event.sequence_number for event in events], events[-1]
    assert last.type == "response.incomplete"
    final = last.response
    assert numbers == list(range(len(numbers)))
    assert final.status == "incomplete"
    assert final.incomplete_details is not None
    assert final.incomplete_details.reason == "max_output_tokens"
    assert final.to_dict()["penstock"] == {"reason": "insufficient_balance"}
    assert final.output[0].type == "message"
    assert final.output[0].status == "incomplete"
    assert final.output_text
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.uncollected) == ("money", 0)
    assert final.usage is not None
    assert (await gateway.nano(ada)) == 500_000 - record.amount


@over("openai_responses")
async def test_nobody_reads_for_nothing_where_events_do_not_say_where_their_item_is(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    """llama.cpp's server writes them so."""
    ada = await gateway.person(usd="0.0005")
    item = {"type": "message", "id": "msg_1", "status": "in_progress", "role": "assistant", "content": []}
    begun = [
        event("response.created", response={"id": "resp_1", "object": "response", "status": "in_progress"}),
        event("response.output_item.added", item=item),
        event("response.content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    ]
    word = event("response.output_text.delta", item_id="msg_1", delta=" word")
    upstream.script(Events([*begun, *[word] * 2_000]))
    events = await _events(gateway, ada)
    deltas = [each for each in events if each["type"] == "response.output_text.delta"]
    final = events[-1]["response"]
    assert final["penstock"] == {"reason": "insufficient_balance"}
    assert final["output"][0]["content"][0]["text"] == " word" * len(deltas)
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.output_tokens, record.uncollected) == ("money", len(deltas), 0)
    assert 0 < len(deltas) <= 500_000 // OUT


async def test_a_broken_stream_says_so_in_its_own_words_and_fails(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(streamed(spoken, tokens=9, break_after=6))
    events = await _events(gateway, ada)
    error, failed = events[-2:]
    assert (error["type"], error["code"], error["param"]) == ("error", "upstream_failed", None)
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    (record,) = await gateway.usage(ada)
    assert record.ended == "upstream_failed"
    async with gateway.sdk(ROUTER, ada) as client:
        with pytest.raises(NotFoundError):
            await client.responses.retrieve(failed["response"]["id"])


@over("openai_responses")
async def test_an_upstreams_failure_keeps_its_code_and_is_counted(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    failure = {"code": "context_length_exceeded", "message": "Too long for sk-upstream-4fd0c1a7e2b94d6bb1c3."}
    upstream.script(Streamed(tokens=3, failure=failure), Streamed(tokens=2, error=failure))
    first, second = await _events(gateway, ada), await _events(gateway, ada)
    for events in (first, second):
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"
        assert "sk-upstream" not in json.dumps(events)
    assert (await gateway.usage(ada))[1].output_tokens == 3


async def _events(gateway: Running, person: Person) -> list[Any]:
    body = {"model": LLAMA, "input": "Hello!", "stream": True}
    answer = await gateway.post(f"{ROUTER}/responses", person, body=body)
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_before_a_stream_errors_are_in_openais_envelope(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Refusal(400, "Too many tools.", code="too_many"))
    async with gateway.sdk(ROUTER, ada) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.create(model=LLAMA, input="Hello!", stream=True)
        assert (refused.value.code, refused.value.body["message"]) == ("too_many", "Too many tools.")  # type: ignore[index]
        with pytest.raises(BadRequestError, match="max_output_tokens"):
            await client.responses.create(model=LLAMA, input="Hello!", max_output_tokens=-1)
        with pytest.raises(NotFoundError):
            await client.responses.create(model="nobody", input="Hello!")
    assert await gateway.nano(ada) == 1_000_000_000


@over("openai_chat")
async def test_what_chat_cannot_carry_is_refused_by_name_and_free(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    refused: list[tuple[str, Any]] = [
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
        ("tools[1].vector_store_ids", {"tools": [WEATHER, {"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
        ("truncation", {"truncation": "auto"}),
        ("reasoning.mode", {"reasoning": {"mode": "pro"}}),
        ("input[0]", {"input": [{"type": "computer_call", "id": "cu_1"}]}),
        ("input[0].content[0].file_id", {"input": [{"role": "user", "content": [FILED]}]}),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": {"type": "web_search"}}),
        ("moderation", {"moderation": {"model": "m"}}),
    ]  # fmt: skip
    for param, fields in refused:
        body = {"model": LLAMA, "input": "x", **fields}
        answer = await gateway.post(f"{ROUTER}/responses", ada, body=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert upstream.requests == []
    assert await gateway.nano(ada) == 1_000_000_000


async def test_an_idempotent_response_is_answered_twice_and_charged_once(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(streamed(spoken, tokens=4))
    body = {"model": LLAMA, "input": "Hello!", "stream": True}
    headers = {"idempotency-key": "once"}
    first, second = [await gateway.post(f"{ROUTER}/responses", ada, headers=headers, body=body) for _ in range(2)]
    assert first.text == second.text
    assert second.headers["idempotent-replayed"] == "true"
    assert await gateway.nano(ada) == 1_000_000_000 - 7 * IN - 4 * OUT


async def test_a_caller_that_leaves_ends_the_call_and_keeps_nothing(
    gateway: Running, upstream: ScriptedUpstream, spoken: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(streamed(spoken, tokens=50, hold_after=8))
    async with gateway.sdk(ROUTER, ada) as client:
        stream = await client.responses.create(model=LLAMA, input="Hello!", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
    received = await upstream.arrival(1)
    await received.over.wait()
    await gateway.office.store.settled()
    (record,) = await gateway.usage(ada)
    assert record.ended == "caller_gone"


async def test_a_conversation_goes_on_at_another_provider(
    store_url: str, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    settings = settings_for(store_url, upstream=upstream.base_url, spare=spare.base_url)
    settings = with_provider(settings, "main", dialects=("openai_responses",))
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        reasoning = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
        call = {"id": "fc_1", "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
        upstream.script(Answered(output=[reasoning, call]), Refusal(503))
        async with gateway.sdk(ROUTER, ada) as client:
            first = await client.responses.create(model=DEEPSEEK, input="One.", reasoning={"effort": "low"})
            output: Any = [{"type": "function_call_output", "call_id": "c1", "output": "2"}]
            second = await client.responses.create(model=DEEPSEEK, input=output, previous_response_id=first.id)
        assert second.status == "completed"
        assert upstream.requests[0].json["include"] == ["reasoning.encrypted_content"]
        tried = upstream.requests[1].json["input"]
        assert tried[1] == reasoning
        assert tried[2] == {name: each for name, each in call.items() if name != "id"}
        roles = [message["role"] for message in spare.requests[0].json["messages"]]
        assert roles == ["user", "assistant", "tool"]
