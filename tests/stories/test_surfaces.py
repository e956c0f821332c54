"""The surfaces: which address serves what, what is checked in which order, how models are called, which money pays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.config import Settings, SurfaceSettings
from tests.stories.gateway import (
    BASES,
    DEEPSEEK,
    FORWARD,
    HELLO,
    LLAMA,
    PLANNED,
    ROUTER,
    ROUTER_V1,
    TRUST,
    UPSTREAM_KEY,
    Person,
    Running,
    events,
    running,
    with_provider,
)
from tests.upstream import Plain, ScriptedUpstream, Stream


def code(answer: httpx2.Response) -> tuple[int, str | None, str | None]:
    """Status, type and code of an error."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return answer.status_code, error["type"], error["code"]


async def walk(gateway: Running, base: str, person: Person, steps: list[dict[str, Any]]) -> list[Any]:
    """Send a hopeless request, mend one thing a step, and note what is said each time."""
    headers: dict[str, Any] = {"authorization": None, "x-trust": None, "content-type": "application/json"}
    body: Any = b"not JSON"
    said = []
    for step in steps:
        if "money" in step:
            await gateway.grant(person, **step.pop("money"))
        body = step.pop("body", body)
        headers |= step
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name: value for name, value in headers.items() if value is not None}
        answer = await gateway.http.post(f"{base}/chat/completions", content=content, headers=sent)
        said.append(code(answer) if answer.status_code != 200 else 200)
    return said


async def test_trust_checks_credential_trust_membership_body_model_and_funds_in_this_order(gateway: Running) -> None:
    ada, bob = await gateway.person(), await gateway.person()
    steps: list[dict[str, Any]] = [
        {},
        {"authorization": f"Bearer {ada.account_key.key}"},
        {"x-trust": bob.account},
        {"x-trust": ada.account},
        {"body": {"messages": []}},
        {"body": {"model": "no/such", "messages": []}},
        {"body": {"model": "no/such", "messages": HELLO}},
        {"body": {"model": LLAMA, "messages": HELLO}},
        {"money": {"usd": "1"}},
    ]
    assert await walk(gateway, TRUST, ada, steps) == [
        (401, "auth_error", "auth_error"),
        (400, "invalid_request_error", "missing_trust"),
        (403, "permission_error", "forbidden"),
        (400, "invalid_request_error", None),
        (400, "invalid_request_error", "missing_model"),
        (400, "invalid_request_error", None),
        (400, "invalid_request_error", "model_not_found"),
        (402, "billing_error", "billing_error"),
        200,
    ]


async def test_forward_checks_key_model_mapping_and_funds_in_this_order(gateway: Running) -> None:
    ada = await gateway.person()
    steps: list[dict[str, Any]] = [
        {},
        {"authorization": f"Bearer {ada.inference_key.key}"},
        {"body": {"messages": HELLO}},
        {"body": {"model": "no/such", "messages": HELLO}},
        {"body": {"model": LLAMA, "messages": HELLO}},
        {"money": {"contract": "LLAMA", "tokens": 100}},
    ]
    assert await walk(gateway, FORWARD, ada, steps) == [
        (401, "authentication_error", "invalid_api_key"),
        (400, "invalid_request_error", None),
        (400, "invalid_request_error", "missing_model"),
        (400, "invalid_request_error", "model_not_mapped"),
        (402, "insufficient_compute_balance", "payment_required"),
        200,
    ]


@pytest.mark.parametrize("base", [ROUTER, ROUTER_V1])
async def test_the_router_checks_key_body_model_and_funds_in_this_order(gateway: Running, base: str) -> None:
    ada = await gateway.person()
    steps: list[dict[str, Any]] = [
        {},
        {"authorization": f"Bearer {ada.personal_key.key}"},
        {"body": {"messages": HELLO}},
        {"body": {"model": "no/such", "messages": HELLO}},
        {"body": {"model": LLAMA, "messages": HELLO}},
        {"money": {"usd": "1"}},
    ]
    assert await walk(gateway, base, ada, steps) == [
        (401, "authentication_error", "invalid_api_key"),
        (400, "invalid_request_error", None),
        (400, "invalid_request_error", "missing_model"),
        (404, "invalid_request_error", "model_not_found"),
        (402, "billing_error", "payment_required"),
        200,
    ]


async def test_a_model_is_found_by_id_and_alias_in_any_case_and_answers_by_the_name_it_was_called(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        for name in (LLAMA, LLAMA.upper(), "llama-70b", "LLAMA-70B"):
            answer = await gateway.chat(base, ada, model=name)
            assert answer.json()["model"] == name
            streamed = await gateway.chat(base, ada, model=name, stream=True)
            assert {event["model"] for event in events(streamed.text)[:-1]} == {name}
    assert {received.json["model"] for received in upstream.requests} == {"llama-upstream"}
    assert {record.model for record in await gateway.usage(ada)} == {LLAMA}


async def test_an_alias_of_one_surface_is_unknown_on_the_others(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    statuses = [(await gateway.chat(base, ada, model="auto")).status_code for base in BASES]
    assert dict(zip(BASES, statuses, strict=True)) == {TRUST: 400, FORWARD: 400, ROUTER: 200, ROUTER_V1: 200}


async def test_ids_begin_with_cmpl_on_trust_and_are_the_upstreams_elsewhere(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        for stream in (False, True):
            answer = await gateway.chat(base, ada, stream=stream)
            number = upstream.requests[-1].number
            found = events(answer.text)[0]["id"] if stream else answer.json()["id"]
            assert found == (f"cmpl-{number}" if base == TRUST else f"chatcmpl-{number}")


async def test_a_stream_says_that_nobody_may_cache_or_buffer_it(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    answer = await gateway.chat(ROUTER, ada, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_models_are_listed_with_what_a_caller_needs_to_choose(gateway: Running) -> None:
    ada = await gateway.person()
    listed = {base: (await gateway.get(f"{base}/models", ada)).json() for base in BASES}
    assert {each["object"] for each in listed.values()} == {"list"}
    assert listed[TRUST]["data"][0] == {
        "id": LLAMA,
        "object": "model",
        "created": 1_746_403_200,
        "owned_by": "deepinfra",
        "context_length": 131_072,
        "tier": None,
        "pricing": {
            "input": "0.59",
            "output": "0.79",
            "cached_input": "0.59",
            "reasoning": "0.79",
            "cache_write": "0.59",
            "cache_write_1h": "0.59",
            "per_request": "0.00",
        },
    }
    forward = listed[FORWARD]["data"][0]
    assert forward["tier"] == "LLAMA"
    assert forward["pricing"] == {"input": "0.18", "output": "0.18"}
    assert [model["id"] for model in listed[ROUTER]["data"]] == ["auto", DEEPSEEK]
    assert listed[ROUTER_V1] == listed[ROUTER]


async def test_planned_models_are_listed_on_trust_alone_and_refused_everywhere(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        listed = [model["id"] for model in (await gateway.get(f"{base}/models", ada)).json()["data"]]
        assert (PLANNED in listed) is (base == TRUST)
        refused = await gateway.chat(base, ada, model=PLANNED)
        assert code(refused) == (400, "invalid_request_error", "model_not_available")
    assert upstream.requests == []


async def test_a_key_with_an_allow_list_sees_and_uses_nothing_else(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, models=[DEEPSEEK])
    listed = await gateway.get(f"{ROUTER}/models", ada, key=key)
    assert [model["id"] for model in listed.json()["data"]] == [DEEPSEEK]
    assert (await gateway.chat(ROUTER, ada, key=key, model=DEEPSEEK)).status_code == 200
    for name in (LLAMA, "auto", PLANNED):
        assert code(await gateway.chat(ROUTER, ada, key=key, model=name))[::2] == (404, "model_not_found")


async def test_x_payment_lane_chooses_the_money_and_forward_knows_only_its_own(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    for base in (TRUST, ROUTER):
        paid = [await gateway.chat(base, ada, headers={"x-payment-lane": lane}) for lane in ("contract", "credits")]
        assert [answer.status_code for answer in paid] == [200, 200]
        wrong = await gateway.chat(base, ada, headers={"x-payment-lane": "treasure"})
        assert code(wrong) == (400, "invalid_request_error", None)
        assert wrong.json()["error"]["param"] == "X-Payment-Lane"
    assert (await gateway.chat(FORWARD, ada, headers={"x-payment-lane": "credits"})).status_code == 200
    records = await gateway.usage(ada)
    assert [record.lane for record in records] == ["contract", "credits", "contract", "credits", "contract"]
    assert await gateway.tokens(ada) == 1_000 - 3 * 12
    assert await gateway.nano(ada) == 1_000_000_000 - 2 * (7 * 590 + 5 * 790)


async def test_the_cost_of_a_plain_answer_is_in_its_headers_and_exact(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(tokens=500, prompt_tokens=1000))
    answer = await gateway.chat(TRUST, ada)
    assert answer.headers["x-penstock-cost"] == "0.000985"
    assert await gateway.nano(ada) == 1_000_000_000 - 985_000


async def test_a_wrong_method_is_405_and_an_unknown_path_404_in_the_surfaces_envelope(gateway: Running) -> None:
    for base in BASES:
        wrong = await gateway.http.get(f"{base}/chat/completions")
        assert code(wrong) == (405, "invalid_request_error", "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        assert (await gateway.http.delete(f"{base}/models")).headers["allow"] == "GET"
        for path in ("", "/", "/nothing", "/chat", "/chat/completions/", "/chat/completions/x", "//models"):
            unknown = await gateway.http.post(f"{base}{path}", content=b"{}")
            assert code(unknown) == (404, "not_found", "not_found"), f"{base}{path}"


async def test_every_answer_has_a_request_id_of_its_own(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    paths = ["/", "/health", "/health/db", "/metrics", "/api/v1/config", "/openapi.json", "/docs", "/favicon.ico"]
    paths += ["/api/v1/usage", "/api/v1/nothing", "/v1/balance", "/v1/nothing", "/api/openai/models"]
    answers = [await gateway.http.get(path) for path in paths]
    for base in BASES:
        answers += [await gateway.chat(base, ada), await gateway.chat(base, ada, stream=True)]
        answers += [await gateway.chat(base, ada, messages=1), await gateway.get(f"{base}/models", ada)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(id.startswith("req_") for id in ids)
    assert {record.request for record in await gateway.usage(ada)} < set(ids)


async def test_nothing_of_the_callers_headers_reaches_the_upstream(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    mine = {
        "cookie": "session=1",
        "x-trust": ada.account,
        "x-entity": ada.account,
        "x-api-key": "sk-mine",
        "x-forwarded-for": "10.0.0.1",
        "proxy-authorization": "Basic bWU=",
        "openai-organization": "org-mine",
        "user-agent": "mine/1.0",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    for base in BASES:
        await gateway.chat(base, ada, headers=mine)
        await gateway.chat(base, ada, headers=mine, stream=True)
    known = {"host", "content-type", "content-length", "user-agent", "authorization", "accept-encoding", "connection"}
    for received in upstream.requests:
        assert set(received.headers) <= known
        assert received.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
        assert received.headers["user-agent"].startswith("penstock/")
        assert ada.account not in str(received.headers) + received.body.decode()


async def test_the_second_offer_serves_when_the_first_cannot_and_one_record_says_so(
    settings: Settings, spare: ScriptedUpstream
) -> None:
    async with running(with_provider(settings, "main", base_url="http://127.0.0.1:9/v1")) as gateway:
        ada = await gateway.person(usd="1")
        spare.script(Plain(tokens=5, prompt_tokens=7), Stream(tokens=5, prompt_tokens=7))
        plain = await gateway.chat(ROUTER, ada, model=DEEPSEEK)
        streamed = await gateway.chat(ROUTER, ada, model=DEEPSEEK, stream=True)
        for answer in (plain, streamed):
            assert answer.status_code == 200
            assert answer.headers["x-penstock-route"].startswith("spare;attempts=2;")
        assert [received.json["model"] for received in spare.requests] == ["deepseek-spare"] * 2
        records = await gateway.usage(ada)
        assert [(record.provider, record.attempts, record.ended) for record in records] == [("spare", 2, "answer")] * 2
        assert await gateway.nano(ada) == 1_000_000_000 - 2 * (7 * 200 + 5 * 400)


async def test_a_surface_that_is_switched_off_is_not_there(settings: Settings, tmp_path: Path) -> None:
    async with running(replace(settings, surfaces=(("router", SurfaceSettings(enabled=False)),))) as gateway:
        ada = await gateway.person(usd="1", tokens=1_000)
        assert [(await gateway.chat(base, ada)).status_code for base in BASES] == [200, 200, 404, 404]
        assert set((await gateway.http.get("/api/v1/config")).json()["surfaces"]) == {"trust", "forward"}
