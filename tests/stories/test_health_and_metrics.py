"""What operators and orchestrators read: health, public settings, metrics, the request log, the documentation."""

from __future__ import annotations

import json
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from penstock import __version__
from penstock.config import Settings
from penstock.operations.index import OPERATIONS
from tests.engines import tell
from tests.stories.gateway import FORWARD, LLAMA, ROUTER, TRUST, Running, running
from tests.upstream import Refusal, ScriptedUpstream

COST_NANO = 7 * 590 + 5 * 790  # of the usual answer, at the price of LLAMA


async def series(gateway: Running) -> dict[frozenset[str], float]:
    """The samples of `/metrics`: name and label values, in no order -> value. Buckets are left out."""
    answer = await gateway.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        frozenset((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


async def test_health_says_what_is_running_to_anybody(gateway: Running) -> None:
    for path in ("/health", "/health/db"):
        answer = await gateway.http.get(path, headers={"authorization": "Bearer nonsense"})
        assert answer.status_code == 200
        assert answer.json() == {
            "status": "ok",
            "service": "penstock",
            "environment": "test",
            "database": "ok",
            "version": __version__,
        }
        assert (await gateway.http.post(path)).status_code == 405


async def test_health_of_the_database_is_degraded_while_it_cannot_be_read_and_good_again_after(
    gateway: Running, store_url: str
) -> None:
    statements = ("ALTER TABLE accounts RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO accounts")
    seen = []
    for statement in statements:
        tell(store_url, statement)
        answer = await gateway.http.get("/health/db")
        seen.append((answer.status_code, answer.json()["status"], answer.json()["database"]))
        assert (await gateway.http.get("/health")).status_code == 200  # the process itself is well
    assert seen == [(503, "degraded", "unavailable"), (200, "ok", "ok")]


async def test_public_settings_tell_where_to_call_and_nothing_else(settings: Settings) -> None:
    public = replace(settings, server=replace(settings.server, public_url="https://gateway.example"))
    async with running(public) as gateway:
        answer = (await gateway.http.get("/api/v1/config")).json()
        assert answer == {
            "environment": "test",
            "publicUrl": "https://gateway.example",
            "gatewayPath": FORWARD,
            "chatCompletionsPath": f"{FORWARD}/chat/completions",
            "surfaces": {
                "trust": [TRUST],
                "forward": [FORWARD],
                "router": ["/api/openai", "/api/openai/v1", "/api/anthropic", "/api/anthropic/v1"],
            },
            "assets": ["USD", "LLAMA", "DEEPSEEK"],
            "chain": None,
            "version": __version__,
        }


async def test_metrics_count_calls_tokens_money_and_refusals(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    upstream.script(Refusal(500))
    await gateway.chat(ROUTER, ada)
    for _ in range(3):
        await gateway.chat(TRUST, ada)
    await gateway.chat(FORWARD, ada, stream=True)
    await gateway.http.get("/v1/models")
    await gateway.office.store.settled()
    found = await series(gateway)
    expected = {
        ("penstock_requests_total", "trust", LLAMA, "main", "answer"): 3,
        ("penstock_requests_total", "forward", LLAMA, "main", "answer"): 1,
        ("penstock_requests_total", "router", LLAMA, "main", "upstream_failed"): 1,
        ("penstock_refused_requests_total", "trust", "auth_missing"): 1,
        ("penstock_refused_requests_total", "router", "upstream_failed"): 1,
        ("penstock_upstream_errors_total", "main", "upstream_failed"): 1,
        ("penstock_tokens_total", LLAMA, "main", "input"): 4 * 7,
        ("penstock_tokens_total", LLAMA, "main", "output"): 4 * 5,
        ("penstock_cost_nano_usd_total", LLAMA, "credits"): 3 * COST_NANO,
        ("penstock_holds_open",): 0,
        ("penstock_streams_open",): 0,
        ("penstock_drains",): 0,
        ("penstock_store_backlog",): 0,
    }
    assert {names: found[frozenset(names)] for names in expected} == expected


async def test_what_callers_make_up_adds_no_series_to_the_metrics(gateway: Running) -> None:
    ada = await gateway.person(usd="1")

    async def nonsense(word: str) -> None:
        await gateway.chat(ROUTER, ada, model=word)
        await gateway.chat(ROUTER, ada, headers={"x-payment-lane": word, "authorization": f"Bearer {word}"})
        await gateway.http.get(f"/v1/{word}")
        await gateway.http.request(word.upper()[:8], f"/api/openai/{word}")

    await nonsense("first")
    before = set(await series(gateway))
    for number in range(20):
        await nonsense(f"made-up-{number}")
    assert set(await series(gateway)) == before


async def test_each_call_is_one_line_in_the_log_with_the_id_the_caller_has(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    async with running(settings) as gateway:
        ada, poor = await gateway.person(usd="1"), await gateway.person()
        upstream.script(Refusal(400))
        answers = [
            await gateway.chat(ROUTER, ada),
            await gateway.chat(ROUTER, ada),
            await gateway.chat(ROUTER, poor),
            await gateway.chat(ROUTER, ada, stream=True),
        ]
    lines = [json.loads(line) for line in gateway.log.getvalue().splitlines()]
    called = {line["request_id"]: line for line in lines if line["event"] == "call"}
    refused = {line["request_id"]: line for line in lines if line["event"] == "refused"}
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert set(called) == {ids[0], ids[1], ids[3]}
    assert set(refused) == {ids[0], ids[2]}
    served = called[ids[1]]
    assert (served["account"], served["key"], served["model"]) == (ada.account, ada.personal_key.id, LLAMA)
    assert (served["input_tokens"], served["output_tokens"], served["owed"]) == (7, 5, COST_NANO)
    assert (refused[ids[2]]["status"], refused[ids[2]]["kind"]) == (402, "payment_required")


async def test_the_management_api_documents_itself(gateway: Running) -> None:
    page = await gateway.http.get("/docs")
    document = (await gateway.http.get("/openapi.json")).json()
    documented = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page.text
    assert "//" not in page.text.replace("<!doctype", "")
    assert all(f'id="{name}"' in page.text for name in documented)
    assert documented == {each.name for each in OPERATIONS if each.method}
