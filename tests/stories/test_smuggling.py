"""Request smuggling: whatever shape a request has, it is one request or none, for us and for the upstream behind us.

Against `penstock serve` over a bare socket. Behind every shape follows a request that must never be answered where the
shape is refused: there the connection ends.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.ports.test_http1_fuzz import mutated, pieces
from tests.stories.gateway import Person, Running, running
from tests.stories.process import settings_of
from tests.stories.served import Served, served
from tests.stories.shapes import BODY, CHUNKS, CODED, HEX, HIDDEN, LINE, MARK, REFUSED, TAKEN, Got, answers, head
from tests.stories.wire_property import wire_says
from tests.upstream import Exchange, ScriptedUpstream

ALL = [*REFUSED.values(), *TAKEN.values()]
GRANTED = 1_000_000_000
USUAL_HEADERS = {"host", "accept-encoding", "content-type", "user-agent", "content-length"}


async def in_turn(served: Served, shapes: dict[str, bytes], *, cut: bool) -> dict[str, bytes]:
    """What each shape, followed by a hidden request, brings back. Twenty at a time."""
    gate, cuts = asyncio.Semaphore(20), random.Random(8) if cut else None

    async def one(shape: bytes) -> bytes:
        async with gate:
            return await served.said(shape + HIDDEN, cuts=cuts)

    return dict(zip(shapes, await asyncio.gather(*map(one, shapes.values())), strict=True))


def wrong_refusal(raw: bytes) -> str | None:
    """What is wrong with the answer to a shape that has to be refused; None when nothing is."""
    got = answers(raw)
    if not got:
        return "not answered"
    if len(got) > 1 or got[0].status != 400:
        return f"answered with {[answer.status for answer in got]}"
    complete = set(got[0].error) == {"message", "type", "code", "param"} and got[0].error["type"]
    announced = got[0].headers["connection"] == "close" and got[0].headers["x-request-id"].startswith("req_")
    return None if complete and announced else f"refused as {got[0]}"


async def test_what_is_ambiguous_is_refused_and_nothing_is_found_behind_it(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with served(tmp_path, upstream) as server:
        for cut in (False, True):
            said = await in_turn(server, REFUSED, cut=cut)
            wrong = {name: why for name, raw in said.items() if (why := wrong_refusal(raw))}
            assert wrong == {}
        assert upstream.requests == []
    async with running(settings_of(server.config)) as gateway:
        assert await gateway.nano(server.people[0]) == GRANTED
        assert await gateway.usage(server.people[0]) == ()


async def test_what_is_taken_is_exactly_one_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with served(tmp_path, upstream) as server:
        for cut in (False, True):
            for name, raw in (await in_turn(server, TAKEN, cut=cut)).items():
                statuses = [answer.status for answer in answers(raw)]
                assert statuses == ([200] if name == "HTTP/1.0" else [200, 404]), name
    assert len(upstream.requests) == 2 * len(TAKEN)
    for received in upstream.requests:
        assert received.headers.keys() == USUAL_HEADERS | {"content-length"}
        assert received.json == {
            "model": "metered",
            "messages": [{"role": "user", "content": MARK}],
            "max_tokens": 5,
        }


async def test_a_key_in_a_trailer_is_no_key(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    late = b"Authorization: Bearer %(key)s\r\nContent-Type: application/json\r\n\r\n"
    request = head(CODED, known=b"Host: gateway\r\n") + HEX + b"\r\n" + BODY + b"\r\n0\r\n" + late
    async with served(tmp_path, upstream) as server:
        got = answers(await server.said(request + HIDDEN))
    assert [answer.status for answer in got] == [401, 404]
    assert upstream.requests == []


async def test_a_body_that_looks_like_requests_is_a_body(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    inside = HIDDEN + head(CODED, known=b"Host: x\r\n") + CHUNKS + b"0\r\n\r\n" + LINE
    body = BODY.replace(MARK.encode(), inside.replace(b"\r\n", b"\\r\\n").replace(b'"', b'\\"'))
    async with served(tmp_path, upstream) as server:
        got = answers(await server.said(head(b"Content-Length: %d\r\n" % len(body)) + body + HIDDEN))
    assert [answer.status for answer in got] == [200, 404]
    (received,) = upstream.requests
    assert received.json["messages"][0]["content"].encode().startswith(HIDDEN)


@dataclass(frozen=True)
class Echo:
    """Answers with the prompt: whose answer it is can be seen."""

    async def play(self, exchange: Exchange) -> None:
        message = {"role": "assistant", "content": exchange.received.json["messages"][0]["content"]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        await asyncio.sleep(0)
        await exchange.document({"id": "c", "model": "m", "choices": [choice], "usage": usage})


async def test_of_many_pipelines_and_much_garbage_everybody_gets_the_answers_to_his_own_questions(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Echo()
    people, connections, each = 4, 6, 8
    cuts = random.Random(9)
    async with served(tmp_path, upstream, people=people) as server:

        async def pipeline(who: int, number: int) -> None:
            marks = [f"caller-{who}-{number}-{place}" for place in range(each)]
            raw = await server.said(b"".join(map(question, marks)) + HIDDEN, who=who, cuts=cuts)
            got = answers(raw)
            assert [_content(answer) for answer in got[:-1]] == marks
            assert got[-1].status == 404

        async def garbage(shape: bytes) -> None:
            await server.said(shape + HIDDEN, cuts=cuts)

        shapes = cuts.sample(list(REFUSED.values()), people * connections)
        honest = [pipeline(who, number) for who in range(people) for number in range(connections)]
        await asyncio.gather(*honest, *map(garbage, shapes))
        assert len(upstream.requests) == people * connections * each
    async with running(settings_of(server.config)) as gateway:
        for person in server.people:
            assert len(await _usage(gateway, person)) == connections * each


def question(mark: str) -> bytes:
    body = BODY.replace(MARK.encode(), mark.encode())
    return head(b"Content-Length: %d\r\n" % len(body)) + body


def _content(answer: Got) -> str:
    assert answer.status == 200
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


async def _usage(gateway: Running, person: Person) -> tuple[object, ...]:
    assert await gateway.nano(person) >= 0
    return await gateway.usage(person)


ASKED = [shape.replace(b"%(key)s", b"nobody") + HIDDEN.replace(b"Connection: close\r\n", b"") for shape in ALL]
TELLING = st.sampled_from([b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"f", b"\xff", b"\x0b"])
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("=+-"), TELLING), max_size=3)


@examples(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(ASKED), CHANGES, st.lists(st.integers(1, 80), max_size=3))
async def test_no_bytes_are_more_requests_here_than_elsewhere(
    gateway: Running, shape: bytes, changes: list[tuple[float, str, bytes]], lengths: list[int]
) -> None:
    await wire_says(gateway.port, pieces(mutated(shape, changes), lengths))
