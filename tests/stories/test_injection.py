"""What a caller writes stays what it is: no header, no line, no address and no query is made of it, either way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from penstock.config import Settings
from tests.stories.caller import calling, request
from tests.stories.gateway import FORWARD, HELLO, LLAMA, ROUTER, TRUST, Person, Running, running
from tests.stories.shapes import Got, answers
from tests.upstream import Received, ScriptedUpstream

BREAKS = ["\r\n", "\n", "\r", "\x00", "\u2028", "\u010d\u010a", "%0d%0a", "\\r\\n"]
EVIL = [f"x{end}X-Evil: 1{end}{end}GET /evil HTTP/1.1{end}Host: evil{end}{end}" for end in BREAKS]
SENT = {"host", "accept-encoding", "content-type", "user-agent", "authorization", "content-length"}
SIGNS = ("x-evil", "evil: 1")


def untouched(received: Received) -> bool:
    return (received.method, received.path) == ("POST", "/v1/chat/completions") and received.headers.keys() == SENT


async def test_no_text_of_a_body_becomes_a_line_of_the_request_upstream(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    for evil in EVIL:
        message = {"role": evil, "content": evil, "name": evil}
        answer = await gateway.chat(ROUTER, ada, messages=[message], user=evil, metadata={evil: evil}, stop=evil)
        assert answer.status_code == 200
        unknown = await gateway.chat(ROUTER, ada, model=f"{LLAMA}{evil}")
        assert unknown.status_code == 404
        for each in (answer, unknown):
            assert not any(sign in f"{name}: {value}".lower() for name, value in each.headers.items() for sign in SIGNS)
    assert len(upstream.requests) == len(EVIL)
    assert all(map(untouched, upstream.requests))
    assert [received.json["user"] for received in upstream.requests] == EVIL


NAMES = ["X-Trust", "X-Entity", "X-Payment-Lane", "Idempotency-Key", "Authorization", "X-Request-Id", "Traceparent"]


async def test_no_header_of_a_caller_becomes_another_line_anywhere(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    body = json.dumps({"model": LLAMA, "messages": HELLO}).encode()
    for name in NAMES:
        for end in (b"\r\n ", b"\r\n\t", b"\n", b"\r", b"\x00", b"\x0b", b"\x85"):
            lines = [
                f"POST {ROUTER}/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode(),
                f"Content-Length: {len(body)}\r\nAuthorization: Bearer {ada.personal_key.key}\r\n".encode(),
                name.encode() + b": x" + end + b"X-Evil: 1\r\n\r\n",
            ]
            async with calling(gateway.url) as caller:
                await caller.send(b"".join(lines) + body)
                for got in answers(await caller.reader.read(-1)):
                    assert got.status in (200, 400)
                    assert "x-evil" not in got.headers
                    assert not any("Evil" in value for value in got.headers.values())
                    assert got.headers["x-request-id"].startswith("req_0")
    assert all(map(untouched, upstream.requests))
    assert "X-Evil" not in gateway.log.getvalue()


async def test_an_odd_idempotency_key_is_a_key_like_any_other_and_only_its_owners(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    for key in (b"'; DROP TABLE lots; --", b"\xff\xfe\x80", b"%00", b"a b\tc", b"x" * 255):
        seen = []
        for person in (ada, ada, bob):
            got = await _asked(gateway, person, key)
            assert got.status == 200
            seen.append(got.headers.get("idempotent-replayed"))
        assert seen == [None, "true", None]
    for key in (b"", b"x" * 256):
        assert (await _asked(gateway, ada, key)).status == 400
    assert len(upstream.requests) == 10


async def _asked(gateway: Running, person: Person, idempotency_key: bytes) -> Got:
    headers = {"idempotency-key": "KEY", "connection": "close"}
    async with calling(gateway.url) as caller:
        await caller.send(request(ROUTER, person, headers=headers).replace(b"KEY", idempotency_key))
        (got,) = answers(await caller.reader.read(-1))
        return got


TARGETS = [
    "/api/openai/../../v1/models", "/api//openai/models", "//evil.example/v1/models", "/v1/models/../../metrics",
    "/v1/models;x=y", "/v1/models%00", "/v1/models%0d%0aX-Evil:%201", "/v1/%2e%2e/api/v1/users", "/v1/x%20y",
    "/api/v1/users/", "/docs/", "/openapi.json/", "/v1/models/", "/api/v1/keys/%0d%0aX-Evil:%201/", "/%5cevil/",
]  # fmt: skip


async def test_an_address_leads_to_itself_or_nowhere(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    management = await gateway.key("management", account=ada.account, scopes=["operator"])
    for key in (ada.account_key, management):
        for target in TARGETS:
            async with calling(gateway.url) as caller:
                lines = [f"GET {target} HTTP/1.1", "Host: evil.example", "Connection: close", f"X-Trust: {ada.account}"]
                head = "\r\n".join([*lines, f"Authorization: Bearer {key.key}"])
                await caller.send(head.encode() + b"\r\n\r\n")
                (got,) = answers(await caller.reader.read(-1))
            assert got.status in (404, 401), target
            assert "location" not in got.headers
            assert "x-evil" not in got.headers
            assert got.error["type"] in ("not_found", "auth_error", "authentication_error")


@pytest.mark.parametrize("text", ["%00", "%0d%0aX-Evil:%201", "%e2%80%ae", "%ed%a0%80%00"])
async def test_a_filter_that_cannot_be_printed_is_refused_before_the_database_hears_of_it(
    gateway: Running, text: str
) -> None:
    ada = await gateway.person(usd="1")
    for name in ("model", "key", "cursor", "since"):
        answer = await gateway.http.get(
            f"{TRUST}/usage?{name}={text}",
            headers={"authorization": f"Bearer {ada.account_key.key}", "x-trust": ada.account},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name


async def test_a_body_in_chunks_is_measured_however_few_they_are(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    small = replace(settings, server=replace(settings.server, max_body_bytes=2_000))
    async with running(small) as gateway:
        ada = await gateway.person(usd="1", tokens=1_000)
        management = await gateway.key("management", account=ada.account)
        body = json.dumps({"model": LLAMA, "messages": HELLO, "user": "x" * 30_000}).encode()
        for path, key in ((f"{FORWARD}/chat/completions", ada.inference_key), ("/api/v1/keys", management)):
            lines = [f"POST {path} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"]
            head = "\r\n".join([*lines, "Content-Type: application/json", f"Authorization: Bearer {key.key}"])
            chunk = b"%x\r\n%b\r\n" % (len(body), body)
            async with calling(gateway.url) as caller:
                await caller.send(head.encode() + b"\r\n\r\n" + chunk * 5 + b"0\r\n\r\n")
                assert (await caller.head()).status == 413
                assert json.loads(await caller.body())["error"]["code"] == "too_large"
        assert upstream.requests == []
