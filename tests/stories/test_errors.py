"""Errors as callers see them: the documents' bodies, what becomes of an upstream's trouble, nothing secret said."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from penstock.config import Settings
from penstock.ports import Provider
from penstock.relay.observe import Observer
from tests.stories.gateway import (
    BASES,
    DEEPSEEK,
    FORWARD,
    LLAMA,
    NOWHERE,
    ROUTER,
    SPARE_KEY,
    TRUST,
    UPSTREAM_KEY,
    Running,
    running,
    with_provider,
)
from tests.upstream import Hang, Raw, Refusal, Script, ScriptedUpstream, Wire

INVALID = "The credential is missing, malformed, expired or revoked, or is not of a kind this surface accepts."
UNKNOWN = "The model 'no/such' does not exist or is not available to you."
POOR = "The balance does not cover this request."


def body(message: str, type: str, code: str | None, param: str | None = None) -> Any:
    return {"error": {"message": message, "type": type, "code": code, "param": param}}


async def test_the_bodies_are_those_of_the_documents(gateway: Running) -> None:
    ada = await gateway.person()
    bad = {"authorization": "Bearer nothing"}
    required = "The 'model' field is required and must be a string."
    expected = {
        TRUST: [
            body(INVALID, "auth_error", "auth_error"),
            body(required, "invalid_request_error", "missing_model", "model"),
            body(UNKNOWN, "invalid_request_error", "model_not_found", "model"),
            body(POOR, "billing_error", "billing_error"),
        ],
        FORWARD: [
            body(INVALID, "authentication_error", "invalid_api_key"),
            body(required, "invalid_request_error", "missing_model", "model"),
            body(UNKNOWN, "invalid_request_error", "model_not_mapped", "model"),
            body("Insufficient compute token balance", "insufficient_compute_balance", "payment_required"),
        ],
        ROUTER: [
            body(INVALID, "authentication_error", "invalid_api_key"),
            body(required, "invalid_request_error", "missing_model", "model"),
            body(UNKNOWN, "invalid_request_error", "model_not_found", "model"),
            body(POOR, "billing_error", "payment_required"),
        ],
    }
    for base, bodies in expected.items():
        answers = [
            await gateway.chat(base, ada, headers=bad),
            await gateway.chat(base, ada, model=None),
            await gateway.chat(base, ada, model="no/such"),
            await gateway.chat(base, ada),
        ]
        assert [answer.json() for answer in answers] == bodies
        assert {answer.headers["content-type"] for answer in answers} == {"application/json"}


async def test_without_a_credential_the_caller_is_told_how_to_send_one(gateway: Running) -> None:
    for base in BASES:
        for headers in ({}, {"authorization": ""}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}):
            answer = await gateway.http.post(f"{base}/chat/completions", json={}, headers=headers)
            assert answer.status_code == 401
            assert "Authorization: Bearer <key>" in answer.json()["error"]["message"]


async def test_what_the_upstream_says_of_the_request_reaches_the_caller_and_costs_nothing(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    for status in (400, 405, 413, 415, 422, 451):
        upstream.usual = Refusal(status, "8 tokens too long.", type="theirs", code="context_length_exceeded")
        for base in BASES:
            for stream in (False, True):
                answer = await gateway.chat(base, ada, model=DEEPSEEK if base == ROUTER else LLAMA, stream=stream)
                assert answer.status_code == status
                assert answer.json() == body("8 tokens too long.", "invalid_request_error", "context_length_exceeded")
        record = (await gateway.usage(ada))[0]
        assert (record.ended, record.status, record.amount, record.attempts) == ("refused", status, 0, 1)
    assert spare.requests == []
    assert await gateway.nano(ada) == 1_000_000_000
    assert await gateway.tokens(ada) == 1_000


@pytest.mark.parametrize("status", [419, 460, 498, 499])
async def test_a_refusal_with_a_status_that_has_no_name_reaches_the_caller(
    gateway: Running, upstream: ScriptedUpstream, status: int
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Refusal(status, "Not like this."))
    answer = await gateway.chat(ROUTER, ada)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "Not like this.")
    assert (await gateway.chat(ROUTER, ada)).status_code == 200


TROUBLE: list[Script] = [
    *(Refusal(status) for status in (401, 402, 403, 404, 407, 408, 409, 425, 429, 500, 502, 503, 504, 529)),
    Raw(b"", status=302, headers=[("location", "http://127.0.0.1:9/")]),
    Raw(b"", status=204),
    Wire(b"SSH-2.0-OpenSSH_9.2\r\n"),
    Wire(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    Wire(b"", then="reset"),
    Raw(b"<html>Welcome</html>", content_type="text/html"),
    Raw(b"[]"),
    Raw(b'{"choices": '),
    Raw(b'{"error": {"message": "overloaded"}}'),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_any_other_trouble_of_the_upstream_is_never_the_callers_fault_and_free(
    gateway: Running, upstream: ScriptedUpstream, stream: bool
) -> None:
    ada = await gateway.person(usd="1")
    for script in TROUBLE:
        upstream.script(script)
        answer = await gateway.chat(ROUTER, ada, stream=stream)
        error = answer.json()["error"]
        assert answer.status_code in (502, 503), script
        assert error["type"] == "upstream_error"
        assert error["code"] == {502: "upstream_failed", 503: "upstream_unavailable"}[answer.status_code]
        record = (await gateway.usage(ada))[0]
        assert (record.ended, record.status, record.amount) == ("upstream_failed", answer.status_code, 0)
    assert await gateway.nano(ada) == 1_000_000_000


@pytest.mark.parametrize("stream", [False, True])
async def test_trouble_with_one_provider_is_not_seen_when_another_serves(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream, stream: bool
) -> None:
    ada = await gateway.person(usd="1")
    for script in TROUBLE:
        upstream.script(script)
        answer = await gateway.chat(ROUTER, ada, model=DEEPSEEK, stream=stream)
        assert answer.status_code == 200, script
        assert answer.headers["x-penstock-route"].startswith("spare;attempts=2;")
    records = await gateway.usage(ada)
    assert [record.provider for record in records] == ["spare"] * len(TROUBLE)
    assert len(spare.requests) == len(TROUBLE)


async def test_an_unreachable_provider_is_503_and_a_silent_one_504(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Hang()
    changed = with_provider(settings, "main", first_byte_timeout_s=0.05)
    async with running(with_provider(changed, "spare", base_url=NOWHERE)) as gateway:
        ada = await gateway.person(usd="1")
        silent = await gateway.chat(ROUTER, ada)
        unreachable = await gateway.chat(ROUTER, ada, model=DEEPSEEK)
        assert (silent.status_code, silent.json()["error"]["code"]) == (504, "upstream_timeout")
        assert (unreachable.status_code, unreachable.json()["error"]["code"]) == (503, "upstream_unavailable")
        assert await gateway.nano(ada) == 1_000_000_000
        assert {record.state for record in await gateway.usage(ada)} == {"final", "review"}


async def test_an_upstreams_words_are_repeated_without_secrets(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    secrets = (
        UPSTREAM_KEY,
        SPARE_KEY,
        ada.personal_key.key,
        "sk-proj-0123456789abcdefghij",
        "eyJhbGciOi.eyJzdWIi.c2ln",
    )
    for secret in secrets:
        error = {"message": f"Bad key {secret}.", "code": secret, "param": secret, "type": secret}
        refused = json.dumps({"error": error}).encode()
        upstream.script(Raw(refused, status=400), Raw(refused, status=200), Raw(refused, status=500))
        answers = [await gateway.chat(ROUTER, ada) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 502, 502]
        assert answers[0].json()["error"]["message"] == "Bad key [redacted]."
        assert not any(secret in answer.text for answer in answers)


async def test_an_absurd_error_of_an_upstream_does_no_harm(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    absurd: list[Any] = [
        b"\xff\xfe", b"", b"null", b'{"error": 5}', b'{"error": {"message": {"a": 1}}}', b'{"error": "\\ud800"}',
        b'{"error": {"message": "a\\u0000b"}}', b"[" * 50_000, b'{"message": "Just so."}', b'{"error": "Just so."}',
    ]  # fmt: skip
    upstream.script(*(Raw(each, status=400) for each in absurd))
    answers = [await gateway.chat(ROUTER, ada) for _ in absurd]
    assert {answer.status_code for answer in answers} == {400}
    assert [answer.json()["error"]["message"] for answer in answers[-2:]] == ["Just so."] * 2


class Hollow:
    """What must never be: something that is no provider, and says that it is ready."""

    def ready(self, model: str, account: str) -> bool:
        return True


async def test_a_defect_of_ours_is_a_500_without_a_stack_and_costs_nothing(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    ada = await gateway.person(usd="1")
    attempts = gateway.gateway.relay.attempts
    providers = attempts.providers
    attempts.providers = {"main": cast(Provider, Hollow())}
    answer = await gateway.chat(TRUST, ada)
    attempts.providers = providers
    assert answer.status_code == 500
    assert answer.json() == body(
        "Something went wrong inside Penstock. The request id names the log line.", "internal_error", "internal_error"
    )
    assert answer.headers["x-request-id"] in caplog.text
    assert await gateway.nano(ada) == 1_000_000_000
    assert [record.ended for record in await gateway.usage(ada)] == ["fault"]


async def test_a_log_that_fails_leaves_no_hold_and_no_call_without_its_record(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await gateway.person(usd="1")

    def fails(*_: object) -> None:
        raise OSError("there is no log")

    with monkeypatch.context() as broken:
        broken.setattr(Observer, "closed", fails)
        assert (await gateway.chat(ROUTER, ada)).status_code == 500
    (record,) = await gateway.usage(ada)
    assert record.amount > 0
    assert (await gateway.balance(ada)).credits.held.nano == 0
