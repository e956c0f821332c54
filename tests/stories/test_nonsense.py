"""Nonsense: whatever is sent, the answer is a refusal in the surface's words, never a 5xx, and no money moves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from penstock.config import ServerSettings, Settings
from tests.stories.gateway import BASES, HELLO, LLAMA, ROUTER, TRUST, Person, Running, running
from tests.upstream import Plain, ScriptedUpstream

PATH = f"{ROUTER}/chat/completions"
DEEP = 400_000  # beyond the stack of 8 MiB that bounds it since Python 3.14; before, it is 1,000 levels or 10,000


def refused(answer: httpx2.Response, *statuses: int) -> Any:
    """The error of an answer that must be a refusal with one of these statuses."""
    assert answer.status_code in statuses, answer.text[:300]
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    return error


async def untouched(gateway: Running, person: Person) -> None:
    """Nothing has been charged, noted or held, and the books add up."""
    assert await gateway.nano(person) == 1_000_000_000
    assert await gateway.usage(person) == ()
    assert await gateway.differences() == []


async def raw(gateway: Running, request: bytes) -> bytes:
    """What comes back for bytes on the wire that ask the gateway to close, or make it."""
    async with connection(gateway) as (reader, writer):
        writer.write(request)
        return await reader.read(-1)


async def cut(gateway: Running, request: bytes) -> bytes:
    """What comes back for bytes on the wire when nothing follows, be they complete or not."""
    answer = b""
    async with connection(gateway) as (reader, writer):
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.03):  # for an answer, if there is to be any before we hang up
                    answer = await reader.read(100_000)
            writer.write_eof()
            answer += await reader.read(-1)
    return answer


@asynccontextmanager
async def connection(gateway: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(20):
        yield reader, writer
    writer.close()


def post(person: Person, body: bytes, *headers: str, path: str = PATH) -> bytes:
    """A request as it looks on the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway",
        f"Authorization: Bearer {person.personal_key.key}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": LLAMA, "messages": HELLO, **fields}).encode()


def statuses(answer: bytes) -> list[int]:
    """Of all responses that came back on one connection."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


# Bodies.


NO_OBJECTS = [
    b"",
    b" ",
    b"{",
    b"}",
    b"null",
    b"[]",
    b'"model"',
    b"5",
    b"\xff\xfe",
    b"\xef\xbb\xbf" + chat(),
    chat().decode().encode("utf-16"),
    b'{"model": "\xc3\x28", "messages": []}',
    chat()[:-1],
    chat() + b"{}",
    b"model=x&messages=y",
    b'{"model": NaN}',
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'{"model": "x", "messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"model": "x", "messages": [{"role": "user", "content": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    chat()[:-1] + b', "stream_options": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    b"\x00" * 1_000,
]


async def test_a_body_that_is_no_json_object_is_refused(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    for body in NO_OBJECTS:
        for base in BASES:
            error = refused(await gateway.post(f"{base}/chat/completions", ada, body=body), 400)
            assert error["type"] == "invalid_request_error"
            assert len(error["message"]) < 500
    assert upstream.requests == []
    await untouched(gateway, ada)


WRONG: list[tuple[str, list[Any]]] = [
    ("model", [None, "", 5, [], {}, ["x"], True]),
    ("messages", [None, "", {}, [], [1], [None], [{}], [{"role": 1}], [{"role": "user", "content": 5}], "Hello"]),
    ("stream", ["yes", 1, 0, [], {}]),
    ("max_tokens", [-1, 0, 1.5, "5", True, 10**7, 10**30, -(10**30), [], 1e300]),
    ("max_completion_tokens", [-1, 0, "5", 10**19]),
    ("n", [0, -1, 129, 1.5, "2", 10**30, [], True]),
    ("stream_options", [5, "x", [], {"include_usage": "yes"}, {"include_usage": 1}]),
]


async def test_a_field_of_the_wrong_type_is_refused_by_name(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    for name, values in WRONG:
        for value in values:
            for stream in (False, True):
                answer = await gateway.chat(ROUTER, ada, **{"stream": stream, name: value})
                assert refused(answer, 400)["param"] == name, f"{name}: {value!r}"
    both = await gateway.chat(ROUTER, ada, max_tokens=5, max_completion_tokens=6)
    assert refused(both, 400)["param"] == "max_tokens"
    assert upstream.requests == []
    await untouched(gateway, ada)


async def test_a_name_that_nobody_gives_a_model_is_unknown(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    absurd = ["\x00", "../../etc/passwd", "' OR 1=1 --", "x" * 1_000_000, "🦙", "\u202e", f"{LLAMA} ", "İ", "ß" * 300]
    for name in absurd:
        error = refused(await gateway.chat(ROUTER, ada, model=name), 404)
        assert len(error["message"]) < 500
    surrogate = b'{"model": "\\ud800", "messages": [{"role": "user", "content": "Hi"}]}'
    refused(await gateway.post(PATH, ada, body=surrogate), 400, 404)
    assert upstream.requests == []
    await untouched(gateway, ada)


async def test_a_great_wish_is_served_within_the_money(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(tokens=5, prompt_tokens=7), Plain(tokens=5, prompt_tokens=7))
    many = await gateway.chat(ROUTER, ada, n=128, max_tokens=10)
    long = await gateway.chat(ROUTER, ada, max_tokens=1_000_000)
    assert (many.status_code, long.status_code) == (200, 200)
    assert (upstream.requests[0].json["n"], upstream.requests[0].json["max_tokens"]) == (128, 10)
    assert upstream.requests[1].json["max_tokens"] == 1_000_000
    poor = await gateway.person(usd="0.001")
    upstream.script(Plain(tokens=5, prompt_tokens=7))
    assert (await gateway.chat(ROUTER, poor, n=128, max_tokens=1_000_000)).status_code == 200
    assert upstream.requests[2].json["max_tokens"] * 128 * 790 < 1_000_000
    assert await gateway.nano(poor) >= 0


async def test_unknown_fields_reach_the_upstream_byte_for_byte(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    fields = [
        rb'"logit_bias":{ "50256" : -1.00e+2 , "1":0.10 }',
        rb'"metadata" : {"caf\u00e9":"\ud83e\udd99","n":null, "n":1}',
        b'"seed":123456789012345678901234567890',
        '"user": "  \u00fc\u4f60\\/\\t "'.encode(),
        rb'"x_vendor":[[],{},"",[1.0,2.50,-0.0]]',
        b'"temperature":0.70',
        b'"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"a":{"$ref":"#"}}}}',
    ]
    head = b'{"model":"%s","messages":[{"role":"user","content":"\\u0048i","name":"\\/"}],' % LLAMA.encode()
    body = head + b", ".join(fields) + b"\n}"
    for base in BASES:
        assert (await gateway.post(f"{base}/chat/completions", ada, body=body)).status_code == 200
        received = upstream.requests[-1].body
        for field in fields:
            value = field.partition(b":")[2].strip()
            assert value in received
        assert rb'[{"role":"user","content":"\u0048i","name":"\/"}]' in received
        assert upstream.requests[-1].json.keys() == json.loads(body).keys() | {"max_tokens"}


async def test_a_body_beyond_the_limit_is_413_however_it_is_sent(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    assert ServerSettings().max_body_bytes == 20_000_000
    small = replace(settings, server=replace(settings.server, max_body_bytes=10_000))
    async with running(small) as gateway:
        ada = await gateway.person(usd="1")
        fitting = chat(messages=[{"role": "user", "content": "x" * (10_000 - len(chat(messages=HELLO)) + 6)}])
        assert len(fitting) == 10_000
        for base in BASES[2:]:
            path = f"{base}/chat/completions"
            assert (await gateway.post(path, ada, body=fitting)).status_code == 200
            refused(await gateway.post(path, ada, body=fitting + b" "), 413)
        headers = {"authorization": f"Bearer {ada.personal_key.key}"}

        async def in_chunks() -> Any:
            for _ in range(100):
                yield b" " * 1_000

        refused(await gateway.http.post(PATH, content=in_chunks(), headers=headers), 413)
        assert len(upstream.requests) == 2
        announced = post(ada, b"", "Connection: close").replace(b"Content-Length: 0", b"Content-Length: 10001")
        assert statuses(await raw(gateway, announced)) == [413]


async def test_a_body_of_twenty_megabytes_is_served(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="20")
    body = chat(messages=[{"role": "user", "content": "x" * 19_900_000}], max_tokens=5)
    assert (await gateway.post(PATH, ada, body=body)).status_code == 200
    assert len(upstream.requests[0].body) > 19_900_000
    refused(await gateway.post(PATH, ada, body=b" " * 20_000_001), 413)


# HTTP.


async def test_absurd_http_is_refused_or_dropped_and_others_are_served_on(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    body = chat()
    line = f"POST {PATH} HTTP/1.1\r\n".encode()
    absurd = [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\nHost: x\r\n\r\n",
        line + b"Host: x\r\nX-Bad\r\n\r\n",
        line + b"Host: x\r\nX Bad: 1\r\n\r\n",
        line + b"Host: x\r\nX-Bad: a\x00b\r\n\r\n",
        line + b"Host: x\r\nX-Trust: a\rX-Other: b\r\n\r\n",
        line + b"Host: x\r\nContent-Length: -1\r\n\r\n",
        line + b"Host: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        line + b"Host: x\r\nContent-Length: five\r\n\r\n",
        line + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        line + b"Host: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        line + b"Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        line + b"Host: x\r\nX-Long: " + b"x" * 2_000_000 + b"\r\n\r\n",
        line + b"".join(b"X-%d: %s\r\n" % (number, b"y" * 100) for number in range(10_000)) + b"\r\n",
        b"GET /" + b"x" * 2_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        post(ada, body)[:-10],
    ]
    for request in absurd:
        answer = await cut(gateway, request)
        assert all(400 <= status < 500 for status in statuses(answer)), request[:100]
    assert upstream.requests == []
    await untouched(gateway, ada)
    assert (await gateway.chat(ROUTER, ada)).status_code == 200


async def test_a_head_without_an_end_is_cut_off_before_it_fills_the_memory(gateway: Running) -> None:
    for line in (b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", b"GET / HTTP/1.1\r\n"):
        async with connection(gateway) as (reader, writer):
            writer.write(line)
            sent, listening = 0, asyncio.ensure_future(reader.read(-1))
            with contextlib.suppress(ConnectionError):
                while not listening.done() and sent < 50_000_000:
                    writer.write(b"X-More: 1\r\n" * 10_000 if line.endswith(b"\r\n") else b"x" * 100_000)
                    await writer.drain()
                    sent += 100_000
                    await asyncio.sleep(0)  # for the gateway, which runs beside us, to read it
            assert statuses(await listening) == [400]
            assert sent < 5_000_000
    assert (await gateway.http.get("/health")).status_code == 200


async def test_headers_are_read_once_and_taken_literally(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    close, body = "Connection: close", chat()
    both = f"Authorization: Bearer {bob.personal_key.key}"
    assert statuses(await raw(gateway, post(ada, body, both, close))) == [200]
    assert (len(await gateway.usage(ada)), len(await gateway.usage(bob))) == (1, 0)
    without_host = post(ada, body, close).replace(b"Host: gateway\r\n", b"")
    assert statuses(await raw(gateway, without_host))[0] in (200, 400)
    for header, status in (
        ("X-Payment-Lane: " + "x" * 5_000, 400),
        ("Idempotency-Key: " + "x" * 5_000, 400),
        ("X-Payment-Lane: \xff\xfe", 400),
        ("X-Request-Id: mine", 200),
        ("Content-Type: text/plain", 200),
        ("Accept: image/png", 200),
        ("Accept-Encoding: br", 200),
        ("Range: bytes=0-1", 200),
        ("Cookie: " + "x" * 9_000, 200),
        ("Upgrade: websocket", 200),
    ):
        answer = await raw(gateway, post(ada, body, header, close))
        assert statuses(answer) == [status], header[:50]
        assert b"x-request-id: req_" in answer
    long_key = post(replace(ada, personal_key=replace(ada.personal_key, key="x" * 5_000)), body, close)
    assert statuses(await raw(gateway, long_key)) == [400]


async def test_pipelined_requests_are_answered_in_order(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(text="first"), Plain(text="second"))
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    requests = [post(ada, chat()), post(ada, b"{"), health, post(ada, chat(), "Connection: close")]
    answer = await raw(gateway, b"".join(requests))
    assert statuses(answer) == [200, 400, 200, 200]
    assert answer.index(b"first") < answer.index(b"not valid JSON") < answer.index(b"second")


async def test_other_methods_and_paths_are_refused(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    headers = {"authorization": f"Bearer {ada.personal_key.key}"}
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        refused(await gateway.http.request(method, PATH, headers=headers), 405)
    assert (await gateway.http.head(PATH)).status_code == 405
    for path in (
        "/v1/%2e%2e/metrics",
        "/v1/chat/completions%00",
        "/v1/chat%2Fcompletionsx",
        "/v1/\u00fc",
        "/V1/models",
    ):
        refused(await gateway.http.get(path, headers=headers), 404)
    assert upstream.requests == []
    await untouched(gateway, ada)


# Whatever else comes to mind.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.text(max_size=8)}, optional={"content": JSON, "name": JSON}))
BODY = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from([LLAMA, "auto", "gpt-5"]) | JSON,
        "messages": MESSAGES | JSON,
        "stream": st.booleans() | JSON,
        "max_tokens": st.integers() | JSON,
        "max_completion_tokens": st.integers(1, 100) | JSON,
        "n": st.integers(1, 3) | JSON,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | JSON}) | JSON,
        "tools": JSON,
    },
)
HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60).map(str.strip)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "authorization": HEADER | HEADER.map(lambda text: f"Bearer {text}".strip()),
        "x-trust": HEADER,
        "x-entity": HEADER,
        "x-payment-lane": st.sampled_from(["credits", "contract"]) | HEADER,
        "idempotency-key": HEADER,
        "content-type": HEADER,
        "x-request-id": HEADER,
        "traceparent": HEADER,
    },
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
FEW = examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(base=st.sampled_from(BASES), body=BODY, headers=HEADERS, spoilt=st.binary(max_size=3))
async def test_no_json_and_no_header_makes_a_5xx_or_moves_money_that_was_not_earned(
    gateway: Running, base: str, body: dict[str, Any], headers: dict[str, str], spoilt: bytes
) -> None:
    ada = await gateway.person(usd="1", tokens=10_000)
    content = json.dumps(body).encode() + spoilt
    answer = await gateway.post(f"{base}/chat/completions", ada, body=content, headers=headers)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        refused(answer, answer.status_code)
        assert (await gateway.nano(ada), await gateway.tokens(ada)) == (1_000_000_000, 10_000)
        assert await gateway.usage(ada) == ()
    else:
        assert len(await gateway.usage(ada)) == 1
    assert await gateway.differences() == []


@FEW
@given(body=st.binary(max_size=200), path=TEXT, query=TEXT)
async def test_no_bytes_path_or_query_makes_a_5xx(gateway: Running, body: bytes, path: str, query: str) -> None:
    ada = await gateway.person(usd="1")
    refused(await gateway.post(PATH, ada, body=body), 400)
    for base in BASES:
        assert (await gateway.http.post(f"{base}/{quote(path)}", content=body)).status_code < 500
    for name in ("model", "cursor", "since", "lane", query[:10]):
        answer = await gateway.get(f"{TRUST}/usage", ada, query={name: query})
        assert answer.status_code in (200, 400)
    await untouched(gateway, ada)


@FEW
@given(noise=st.binary(max_size=60), place=st.integers(0, 200))
async def test_no_noise_on_the_wire_makes_a_5xx(gateway: Running, noise: bytes, place: int) -> None:
    ada = await gateway.person()
    request = post(ada, chat(), "Connection: close")
    answer = await cut(gateway, request[:place] + noise + request[place:])
    assert all(status < 500 for status in statuses(answer))
    assert await gateway.differences() == []


@pytest.mark.parametrize("said", [b"", b"POST /api/op", b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_request_that_does_not_come_to_its_end_is_hung_up_on(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("penstock.api.protocol.LONGEST_READ_S", 0.05)  # in place of two minutes
    async with connection(gateway) as (reader, writer):
        writer.write(said)
        assert b"200 OK" not in await reader.read(-1)


async def test_a_connection_that_has_asked_all_its_questions_in_time_is_left_alone(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.protocol.LONGEST_READ_S", 0.05)
    question = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    async with connection(gateway) as (reader, writer):
        for half in (question[:9], question[9:]):
            writer.write(half)
            await writer.drain()
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        writer.write(question)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK")
