"""An upstream that lies, floods, injects or leaks: the caller gets an answer or an error in our own words, in bounded
time, nobody gets another's, and the books add up."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from penstock.config import Settings
from penstock.log import JsonFormatter
from tests.stories.caller import calling
from tests.stories.gateway import (
    LLAMA,
    ROUTER,
    SPARE_KEY,
    UPSTREAM_KEY,
    Person,
    Running,
    events,
    running,
    with_provider,
)
from tests.upstream import Exchange, Plain, Raw, Refusal, Script, ScriptedUpstream, Wire

HEADERS_OF_AN_ANSWER = {
    "date", "content-type", "content-length", "x-penstock-route", "server-timing", "x-penstock-cost", "x-request-id",
}  # fmt: skip
HEADERS_OF_A_STREAM = {
    "date", "content-type", "x-penstock-route", "server-timing", "x-request-id", "cache-control", "x-accel-buffering",
}  # fmt: skip
HEADERS_OF_A_REFUSAL = {"date", "content-type", "content-length", "x-request-id"}
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHOICE = b'{"id":"c","model":"m","choices":[{"message":{"content":"good"}}]'
GOOD = CHOICE + b',"usage":{"prompt_tokens":3,"completion_tokens":4}}'
EVIL = GOOD.replace(b"good", b"somebody else's")
DELTA = b'data: {"id":"c","model":"%s","choices":[{"index":0,"delta":{"content":"Hi"}}]%s}\n\n'
LAST = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def sized(body: bytes, *lines: bytes, length: int | None = None) -> bytes:
    """A whole answer on the wire; `length` is the lie about its size."""
    announced = len(body) if length is None else length
    return OK + b"".join(line + b"\r\n" for line in lines) + b"content-length: %d\r\n\r\n" % announced + body


def streamed(*events: bytes) -> Raw:
    return Raw(b"".join(events), content_type="text/event-stream")


@dataclass(frozen=True)
class Endless:
    """Begins like this, then says one thing over and over while anybody listens."""

    begin: bytes
    again: bytes

    async def play(self, exchange: Exchange) -> None:
        await exchange.write(self.begin)
        while True:
            await exchange.write(self.again)
            await asyncio.sleep(0)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_provider(settings, "main", total_timeout_s=1.0)


@contextmanager
def logged(caplog: pytest.LogCaptureFixture, gateway: Running) -> Iterator[list[str]]:
    """The events that are logged meanwhile, as they would be written."""
    formatter, lines = JsonFormatter(gateway.gateway.redact), list[str]()
    with caplog.at_level(logging.DEBUG):
        yield lines
    lines += [formatter.format(record) for record in caplog.records] + [gateway.log.getvalue()]


# Headers.

NOISY = [
    ("Set-Cookie", "session=1"), ("Location", "http://127.0.0.1:9/"), ("X-Request-Id", "theirs"), ("Server", "theirs"),
    ("X-Penstock-Cost", "0"), ("X-Penstock-Route", "nowhere"), ("Idempotent-Replayed", "true"), ("Alt-Svc", "h3"),
    ("X-Evil", "\xff\xfe"), ("Retry-After", "0"), ("Access-Control-Allow-Origin", "*"), ("X-Long", "y" * 30_000),
    ("Connection", "X-Evil"), ("WWW-Authenticate", "Basic"), ("Trailer", "X-Evil"), ("Content-Type", "text/html"),
]  # fmt: skip


async def test_no_header_of_an_upstream_reaches_the_caller(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    noisy = [pair for pair in NOISY if pair[0] != "Content-Type"]
    upstream.script(Plain(headers=NOISY), Refusal(400, headers=NOISY), Refusal(500, headers=NOISY))
    for status, expected in ((200, HEADERS_OF_AN_ANSWER), (400, HEADERS_OF_A_REFUSAL), (502, HEADERS_OF_A_REFUSAL)):
        answer = await gateway.chat(ROUTER, ada)
        assert (answer.status_code, set(answer.headers)) == (status, expected)
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["content-type"] == "application/json"
    upstream.script(Raw(DELTA % (b"m", b"") + LAST, content_type="text/event-stream", headers=noisy))
    answer = await gateway.chat(ROUTER, ada, stream=True)
    framing = {"content-length", "transfer-encoding"}  # by whether all of it had come
    assert len(framing & set(answer.headers)) == 1
    assert set(answer.headers) - framing == HEADERS_OF_A_STREAM


async def test_a_cookie_is_not_kept(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(headers=[("set-cookie", "session=1; path=/")]), Plain())
    for _ in range(2):
        assert (await gateway.chat(ROUTER, ada)).status_code == 200
    assert upstream.requests[0].headers == upstream.requests[1].headers
    assert "cookie" not in upstream.requests[1].headers


async def test_a_redirect_is_not_followed_and_not_passed_on(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    for status in (300, 301, 302, 303, 304, 305, 307, 308):
        for stream in (False, True):
            upstream.script(Refusal(status, headers=[("location", f"{spare.base_url}/chat/completions")]))
            answer = await gateway.chat(ROUTER, ada, stream=stream)
            assert answer.status_code == 502
            assert set(answer.headers) == HEADERS_OF_A_REFUSAL
    assert spare.requests == []
    assert await gateway.nano(ada) == 1_000_000_000


# Framing.

NO_ANSWERS: dict[str, Script] = {
    "a flood of 1xx": Wire(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 10_000 + sized(GOOD)),
    "an endless flood of 1xx": Endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a switch of protocols": Wire(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n" + sized(GOOD)),
    "a framed 1xx": Wire(b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello" + sized(GOOD)),
    "endless headers": Endless(OK, b"x-more: y\r\n" * 100),
    "one endless header": Endless(OK + b"x-more: ", b"y" * 1_000),
    "an endless status line": Endless(b"HTTP/1.1 200 ", b"O" * 1_000),
    "endless chunk extensions": Endless(OK + b"transfer-encoding: chunked\r\n\r\n1;", b"a=b;" * 100),
    "endless trailers": Endless(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-more: y\r\n" * 100),
    "a CR in a header": Wire(sized(GOOD, b"x-evil: a\rset-cookie: b")),
    "a NUL in a header": Wire(sized(GOOD, b"x-evil: a\x00b")),
    "a folded header": Wire(sized(GOOD, b"x-evil: a", b" b")),
    "bare LF": Wire(sized(GOOD).replace(b"\r\n", b"\n")),
    "two lengths": Wire(sized(GOOD, b"content-length: 5")),
    "a length and a coding": Wire(sized(GOOD, b"transfer-encoding: chunked")),
    "an unknown coding": Wire(OK + b"transfer-encoding: cow\r\n\r\n" + GOOD),
    "two codings": Wire(OK + b"transfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    "a negative length": Wire(sized(GOOD, length=-1)),
    "an absurd length": Wire(sized(GOOD, length=10**30)),
    "a length too long": Wire(sized(GOOD, length=len(GOOD) + 5)),
    "a chunk too long": Wire(OK + b"transfer-encoding: chunked\r\n\r\nff\r\nhello\r\n0\r\n\r\n"),
    "a chunk that overflows": Wire(OK + b"transfer-encoding: chunked\r\n\r\n10000000000000000\r\nhello\r\n"),
    "HTTP/0.9": Wire(GOOD),
    "HTTP/2": Wire(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
    "TLS": Wire(b"\x15\x03\x01\x00\x02\x02\x46"),
    "status 0": Wire(b"HTTP/1.1 000 No\r\ncontent-length: 0\r\n\r\n"),
    "status 999": Wire(b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n"),
    "gzip": Raw(gzip.compress(GOOD), headers=[("content-encoding", "gzip")]),
    "an encoding that is named only": Raw(GOOD, headers=[("content-encoding", "br")]),
    "a million arrays": Raw(b"[" * 1_000_000 + b"]" * 1_000_000),
    "choices of a million arrays": Raw(b'{"error":"x","choices":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "comments that never end": Endless(OK.replace(b"application/json", b"text/event-stream") + b"\r\n", b": x\n\n"),
    "a body that never ends": Endless(OK + b"\r\n" + GOOD[:-1], b" " * 60_000),
}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_answer_is_an_error_of_the_upstream_and_free(
    gateway: Running, upstream: ScriptedUpstream, stream: bool
) -> None:
    ada = await gateway.person(usd="1")
    for name, script in NO_ANSWERS.items():
        upstream.script(script)
        answer = await gateway.chat(ROUTER, ada, stream=stream)
        assert answer.status_code in (502, 504), name
        assert answer.json()["error"]["type"] == "upstream_error"
        assert set(answer.headers) == HEADERS_OF_A_REFUSAL
        assert (await gateway.chat(ROUTER, ada)).status_code == 200, name
    assert await gateway.nano(ada) == 1_000_000_000 - len(NO_ANSWERS) * (7 * 590 + 5 * 790)


@pytest.mark.parametrize(
    "said",
    [
        sized(GOOD) + sized(EVIL),
        sized(GOOD + sized(EVIL), length=len(GOOD)),
        OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD) + sized(EVIL),
        sized(GOOD) + b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n" + sized(EVIL),
    ],
)
async def test_what_follows_an_answer_is_nobodys_answer(
    gateway: Running, upstream: ScriptedUpstream, said: bytes
) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    upstream.script(Wire(said, then="silence"))
    await gateway.chat(ROUTER, ada)
    for _ in range(2):
        answer = await gateway.chat(ROUTER, bob)
        assert answer.json()["choices"][0]["message"]["content"] == "Paid ahead, counted along"
    assert len(upstream.requests) == 3


# Streams.


async def test_a_compressed_stream_is_none(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    packed = gzip.compress(DELTA % (b"m", b"") + LAST)
    upstream.script(Raw(packed, content_type="text/event-stream", headers=[("content-encoding", "gzip")]))
    answer = await gateway.chat(ROUTER, ada, stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    assert await gateway.nano(ada) == 1_000_000_000


CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    "again", [b"x" * 60_000, b": comment\n\n" * 1_000, b"data: {}\n\n" * 1_000, b"\n" * 10_000, b"\r" * 10_000]
)
async def test_a_stream_that_never_ends_is_ended(gateway: Running, upstream: ScriptedUpstream, again: bytes) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Endless(CHUNKED + DELTA % (b"m", b"") + b"data:", again))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        assert (await caller.head()).status == 200
        last = [b"", b""]
        while event := await caller.event():
            last = [last[1], event]
    assert last[1] == b"data: [DONE]\n\n"
    said = last[0][last[0].rindex(b"data: ") :].removeprefix(b"data: ")
    assert json.loads(said)["error"]["code"] in ("upstream_failed", "upstream_timeout")
    assert (await gateway.usage(ada))[0].ended in ("upstream_failed", "timeout")


async def test_a_models_name_that_changes_is_ours_in_every_event(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    names = (b"a", b"b", b"a", b"", b"\\u0061", b'a\\"},{\\"', b"x" * 10_000)
    upstream.script(streamed(*(DELTA % (name, b"") for name in names), LAST))
    got = events((await gateway.chat(ROUTER, ada, stream=True)).text)
    assert [event["model"] for event in got[:-1]] == [LLAMA] * (len(names) + 1)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in got[:-1]) == "Hi" * len(names)


# Usage.

COUNTS = ["-5", "1.5", "1e300", "NaN", "-Infinity", "9" * 40, "null", "true", '"5"', "[5]", "{}", "1e2", "-0", "0"]


def usage(value: str, **others: str) -> bytes:
    fields = {"prompt_tokens": value, "completion_tokens": value, "total_tokens": value} | others
    return ("{" + ",".join(f'"{name}":{count}' for name, count in fields.items()) + "}").encode()


async def test_no_count_of_an_upstream_makes_money_or_a_debt(gateway: Running, upstream: ScriptedUpstream) -> None:
    for count in COUNTS:
        await _pays_no_less_than_nothing(gateway, upstream, count)


async def _pays_no_less_than_nothing(gateway: Running, upstream: ScriptedUpstream, count: str) -> None:
    ada = await gateway.person(usd="1")
    plain = CHOICE + b',"usage":%b}'
    upstream.script(
        Raw(plain % usage(count)),
        Raw(plain % usage("7", prompt_tokens_details=f'{{"cached_tokens":{count}}}', prompt_cache_hit_tokens=count)),
        Raw(plain % usage("7", completion_tokens_details=f'{{"reasoning_tokens":{count}}}')),
        streamed(DELTA % (b"m", b""), DELTA % (b"m", b',"usage":' + usage(count)), LAST),
        streamed(
            DELTA % (b"m", b',"usage":' + usage("7")), b'data: {"choices":[],"usage":%b}\n\n' % usage(count), LAST
        ),
    )
    left = 1_000_000_000
    for stream in (False, False, False, True, True):
        answer = await gateway.chat(ROUTER, ada, stream=stream, stream_options={"include_usage": True})
        assert answer.status_code == 200 or "not a JSON object" in answer.text
        now = await gateway.nano(ada)
        assert 0 <= now <= left
        left = now
    for record in await gateway.usage(ada):
        assert min(record.input_tokens, record.output_tokens, record.amount, record.cached_tokens) >= 0


async def test_a_count_beyond_all_money_takes_what_there_is_and_no_more(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    bob = await gateway.person(usd="1")
    for stream in (False, True):
        ada = await gateway.person(usd="1")
        huge = usage(str(10**12))
        script: Script = (
            streamed(DELTA % (b"m", b',"usage":' + huge), LAST) if stream else Plain(usage=json.loads(huge))
        )
        upstream.script(script)
        assert (await gateway.chat(ROUTER, ada, stream=stream)).status_code == 200
        (record,) = await gateway.usage(ada)
        assert await gateway.nano(ada) == 0 or record.ended == "money"
        assert await gateway.nano(bob) == 1_000_000_000


async def test_of_a_count_that_shrinks_the_last_one_is_charged(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    counts = [b',"usage":' + usage(count) for count in ("5", "100", "20", "0", "8")]
    upstream.script(streamed(*(DELTA % (b"m", count) for count in counts), LAST))
    await gateway.chat(ROUTER, ada, stream=True)
    (record,) = await gateway.usage(ada)
    assert (record.input_tokens, record.output_tokens, record.estimated) == (8, 8, False)
    assert await gateway.nano(ada) == 1_000_000_000 - 8 * 590 - 8 * 790


# Secrets of ours, said by others.


def leaks(secret: str) -> list[tuple[Script, bool]]:
    """Every place where an upstream may repeat a key, and whether it is asked to stream."""
    spelt = "".join(f"\\u{ord(character):04x}" for character in secret)
    error: dict[str, Any] = {"message": f"Bad key {secret}!", "code": secret, "param": secret, "type": secret}
    whole = json.dumps({"error": error}).encode()
    return [
        *((Raw(whole, status=status), stream) for status in (400, 401, 422, 500) for stream in (False, True)),
        (Raw(whole), False),
        (Raw(whole[:-1] + b',"choices":[]}'), False),
        (Raw(whole[:-1] + b',"choices":null}'), False),
        (Raw(f'{{"error":"Bad key {spelt}"}}'.encode()), False),
        (Raw(f'{{"message":"Bad key {spelt}"}}'.encode(), status=400), False),
        (Raw(f'{{"object":"error","message":"Bad key {secret}"}}'.encode()), False),
        (Raw(f"Bad key {secret}".encode(), status=400), False),
        (Raw(GOOD, content_type=f"text/{secret}"), True),
        (Refusal(400, headers=[("x-key", secret)]), False),
        (Wire(f"HTTP/1.1 400 {secret}\r\ncontent-length: 0\r\n\r\n".encode()), False),
        (Wire(f"HTTP/1.1 {secret}\r\n\r\n".encode()), False),
        (Wire(secret.encode()), False),
        (streamed(b"data: " + whole + b"\n\n"), True),
        *((Raw(json.dumps({"error": "x" * (4_000 - n) + secret * 300}).encode()), False) for n in range(0, 60, 7)),
        (streamed(DELTA % (b"m", b""), b"data: " + whole + b"\n\n"), True),
        (streamed(DELTA % (b"m", b""), b"data: " + whole[:-1] + b',"choices":[{"index":0,"delta":{}}]}\n\n'), True),
        (streamed(DELTA % (b"m", b""), f'event: error\ndata: {{"error":"{spelt}"}}\n\n'.encode()), True),
    ]


@pytest.mark.parametrize("word", ["eyJ", "eyJ.", "eyJ_", "sk-", "user.", "eyJa.b-", "a"])
async def test_an_error_of_megabytes_is_cut_short_and_holds_nobody_up(
    gateway: Running, upstream: ScriptedUpstream, word: str
) -> None:
    ada = await gateway.person(usd="1")
    long = json.dumps({"error": {"message": word * (7_000_000 // len(word))}}).encode()
    upstream.script(streamed(DELTA % (b"m", b""), b"data: " + long + b"\n\n"), streamed(b"data: " + long + b"\n\n"))
    upstream.script(Raw(long), Raw(long, status=400), Raw(long[:60_000] + b'"}}', status=400))
    async with asyncio.timeout(20):
        said = [await gateway.chat(ROUTER, ada, stream=stream) for stream in (True, True, False, False, False)]
    assert [answer.status_code for answer in said] == [200, 502, 502, 400, 400]
    assert all(len(answer.content) < 10_000 for answer in said)


QUOTED = 'secret"with\\marks-0123456789'


async def test_a_secret_in_an_upstreams_error_is_told_to_nobody(
    settings: Settings, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(with_provider(settings, "spare", api_key=QUOTED)) as gateway:
        ada = await gateway.person(usd="1")
        said: list[str] = []
        with logged(caplog, gateway) as log:
            for secret in (UPSTREAM_KEY, QUOTED, ada.personal_key.key):
                for script, stream in leaks(secret):
                    said.append(await _told(gateway, upstream, ada, script, stream=stream))
    for secret in (UPSTREAM_KEY, QUOTED, json.dumps(QUOTED)[1:-1], SPARE_KEY, ada.personal_key.key):
        assert secret not in "\n".join(said)
        assert secret not in "\n".join(log)
    assert "[redacted]" in "\n".join(said)
    assert "[redacted]" in "\n".join(log)


async def _told(gateway: Running, upstream: ScriptedUpstream, ada: Person, script: Script, *, stream: bool) -> str:
    upstream.script(script)
    answer: httpx2.Response = await gateway.chat(ROUTER, ada, stream=stream)
    return f"{answer.status_code} {answer.headers} {answer.text}"
