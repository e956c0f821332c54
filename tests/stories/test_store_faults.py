"""The database fails while a process serves: everybody is told in time, nothing is lost, and it goes on by itself.

One story for every fault, at a real process over HTTP; docs/reliability.md has its table. Three calls are under way: a
plain one and a stream that end while the database is away, and a stream that needs more money meanwhile. Others ask in
vain. When the database is back, so is the gateway, and the books have each call at what the upstream counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx2
import pytest

from penstock.config import Settings, StoreSettings
from tests import faults
from tests.faults import Way
from tests.postgres import Server
from tests.stories.caller import Caller, calling, data, eventually
from tests.stories.gateway import HELLO, ROUTER, TRUST, Person, plain_client, running
from tests.stories.process import Process, configuration, serving_process, settings_of, verified
from tests.upstream import Plain, ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
INPUT, OUTPUT = 100, 2_000  # nano-USD a token
INPUT_ESTIMATE = 6  # tokens of the message in HELLO and its template
GRANTED = 10**9
TOKENS = 20  # of the calls that end meanwhile, within what is set aside
MANY = 1_000  # and of the stream that needs more
SLICE = 256  # tokens that are set aside for a stream at first
BUSY_S = 4.0 if "PYTEST_XDIST_WORKER" in os.environ else 1.0  # for a machine that does other things beside
REFUSED_S = 10.0 + 1.0 + BUSY_S  # a question to the store, at most, and a second
STREAM_WAITS_S = 5.0  # for a store that is away, before it is cut off
ANSWER_S = 5.0 + BUSY_S  # an answer that is complete waits for the store at most 5 s
BACK_S = 2.0 + BUSY_S  # after the database


@dataclass
class Site:
    """A process that serves, somebody with a dollar, and the upstream. `settings` are the process's, but they lead to
    the database directly."""

    config: Path
    settings: Settings
    process: Process
    http: httpx2.AsyncClient
    ada: Person
    upstream: ScriptedUpstream

    async def ask(self, base: str, **fields: Any) -> httpx2.Response:
        body = {"model": "metered", "messages": HELLO, **fields}
        headers = {"authorization": f"Bearer {self.ada.key(base).key}"} | self.ada.headers(base)
        return await self.http.post(f"{base}/chat/completions", json=body, headers=headers)

    async def look(self, path: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.ada.account_key.key}", "x-trust": self.ada.account}
        return await self.http.get(path, headers=headers)

    async def metric(self, name: str) -> float:
        lines = (await self.http.get("/metrics")).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@asynccontextmanager
async def site(folder: Path, store_url: str, *, reached_at: str | None = None) -> AsyncIterator[Site]:
    """A process that reaches the database at `store_url`, or at another address of it."""
    async with ScriptedUpstream() as upstream:
        config = configuration(folder, upstream.base_url, store=reached_at or store_url)
        settings = replace(settings_of(config), store=StoreSettings(store_url))
        async with running(settings) as gateway:
            ada = await gateway.person(usd="1")
        async with serving_process(config) as process, plain_client(base_url=process.url) as http:
            yield Site(config, settings, process, http, ada, upstream)


@dataclass(frozen=True)
class Call:
    """A call under way, held by the upstream until `script.resume` is set."""

    caller: Caller
    script: Plain | Stream


@asynccontextmanager
async def under_way(here: Site) -> AsyncIterator[tuple[Call, Call, Call]]:
    """A plain call, a stream that needs no more money than it has, and one that does."""
    scripts = (Plain(TOKENS, hold=True), Stream(TOKENS, hold_after=1), Stream(MANY, hold_after=1))
    async with AsyncExitStack() as stack:
        plain, short, long = [Call(await stack.enter_async_context(calling(here.process.url)), s) for s in scripts]
        for number, call in enumerate((plain, short, long), 1):
            here.upstream.script(call.script)
            await call.caller.ask(ROUTER, here.ada, model="metered", stream=isinstance(call.script, Stream))
            await here.upstream.arrival(number)
        for call in (short, long):
            assert (await call.caller.head()).status == 200
            await call.caller.event()
        yield plain, short, long


async def survive(here: Site, fault: AbstractAsyncContextManager[None], *, lasts_s: float) -> None:
    """The whole story. A stream that needs more money is cut off when the fault outlasts its patience."""
    cut = lasts_s > STREAM_WAITS_S
    async with under_way(here) as calls:
        plain, short, long = calls
        async with fault:
            began_s = perf_counter()
            for call in calls:
                call.script.resume.set()
            events = asyncio.create_task(long.caller.events())
            answered = asyncio.create_task(is_answered(plain, short))
            await are_refused(here)
            if cut:
                await asyncio.gather(answered, is_cut_off(events))
            assert await here.metric("penstock_store_backlog") <= len(calls) + 2  # and what chores ask
            await asyncio.sleep(max(0.0, lasts_s - (perf_counter() - began_s)))
        await is_back(here)
        await answered
        words = 1 + sum(b'"content"' in event for event in await events)
    await ends(here, words if cut else MANY)


async def ends(here: Site, words: int) -> None:
    """The process stops in good order, and the books are right; a stream that was cut had so many words."""
    here.process.signal(signal.SIGTERM)
    assert await here.process.ended() == 0
    await books_are_right(here, words)


async def is_answered(plain: Call, short: Call) -> None:
    """A call that has all it needs ends as if nothing were the matter."""
    async with asyncio.timeout(ANSWER_S):
        assert (await plain.caller.head()).status == 200
        assert json.loads(await plain.caller.body())["usage"]["completion_tokens"] == TOKENS
        assert (await short.caller.events())[-1] == DONE


async def are_refused(here: Site) -> None:
    """Whoever asks is told in time, in the words of the place where he asked; who asks for nothing is answered."""
    questions = [here.ask(base, stream=stream) for base in (ROUTER, TRUST) for stream in (False, True)]
    questions += [here.look(path) for path in ("/v1/balance", "/v1/usage", "/v1/models")]
    async with asyncio.timeout(REFUSED_S):
        answers = await asyncio.gather(*questions)
        assert (await here.http.get("/health")).status_code == 200
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert answer.json()["error"].keys() == {"message", "type", "code", "param"}


async def is_cut_off(events: asyncio.Task[list[bytes]]) -> None:
    """The stream got what was set aside for it, and was told in order why there is no more."""
    async with asyncio.timeout(STREAM_WAITS_S + REFUSED_S):
        *words, error, done = await asyncio.shield(events)
    assert data(error)["error"]["code"] == "store_unavailable"
    assert (done, len(words)) == (DONE, SLICE - 1)


async def is_back(here: Site) -> None:
    """Calls are served again, soon, and everything that was owed is written."""
    since_s = perf_counter()
    while (answer := await here.ask(ROUTER, max_tokens=TOKENS)).status_code != 200:
        assert answer.status_code == 503
    assert perf_counter() - since_s < BACK_S
    await eventually(lambda: nothing_waits(here))


async def nothing_waits(here: Site) -> bool:
    return await here.metric("penstock_store_backlog") == 0


async def books_are_right(here: Site, words: int) -> None:
    """Each call is charged at what the upstream counted, or was sent; those that were refused cost nothing."""
    async with running(here.settings) as gateway:
        records = await gateway.usage(here.ada)
        assert await gateway.nano(here.ada) == GRANTED - sum(record.amount for record in records)
    served = [record for record in records if record.status == 200]
    cut = [record for record in records if record.ended == "fault" and record.output_tokens]
    produced = [each.tokens_produced for each in here.upstream.requests if each.tokens_produced <= words]
    assert sorted(record.amount for record in served) == sorted(7 * INPUT + tokens * OUTPUT for tokens in produced)
    assert [record.amount for record in cut] == [INPUT_ESTIMATE * INPUT + words * OUTPUT] * (words < MANY)
    assert {record.amount for record in records if record not in served + cut} <= {0}
    assert await verified(here.config)


async def side_by_side(**stories: Coroutine[Any, Any, None]) -> None:
    """Tell several at once, each with a process and a database of its own: most of it is waiting."""
    outcomes = await asyncio.gather(*stories.values(), return_exceptions=True)
    failures = []
    for name, outcome in zip(stories, outcomes, strict=True):
        if isinstance(outcome, Exception):
            outcome.add_note(name)
            failures.append(outcome)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(outcomes)} stories ended badly", failures)


# SQLite.


@asynccontextmanager
async def on_file(folder: Path, empty_file: Path) -> AsyncIterator[tuple[Site, Path]]:
    os.makedirs(folder, exist_ok=True)
    file = Path(shutil.copy(empty_file, folder))
    async with site(folder, f"sqlite:///{file}") as here:
        yield here, file


async def test_a_file_that_is_locked_or_moved_away_loses_nothing(tmp_path: Path, empty_file: Path) -> None:
    async def locked() -> None:
        async with on_file(tmp_path / "locked", empty_file) as (here, file):
            await survive(here, faults.kept_by_another(f"sqlite:///{file}"), lasts_s=10)

    async def moved() -> None:
        async with on_file(tmp_path / "moved", empty_file) as (here, file):
            await survive(here, faults.moved_away(file), lasts_s=2)

    async def locked_for_a_moment() -> None:
        async with on_file(tmp_path / "moment", empty_file) as (here, file):
            async with faults.kept_by_another(f"sqlite:///{file}"):
                questions = [asyncio.create_task(here.ask(ROUTER, max_tokens=TOKENS)) for _ in range(5)]
                assert await asyncio.wait(questions, timeout=1) == (set(), set(questions))
            assert {(await question).status_code for question in questions} == {200}
            await ends(here, MANY)

    await side_by_side(locked=locked(), moved=moved(), moment=locked_for_a_moment())


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A small one and one that can hang."""
    if os.geteuid() != 0:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("only root can mount a disk")
    small, other = tmp_path / "small", tmp_path / "hanging"
    with faults.small_disk(small), faults.disk_that_can_hang(other):
        yield small, other


async def test_a_disk_that_is_full_or_broken_or_hangs_loses_nothing(
    tmp_path: Path, disks: tuple[Path, Path], empty_file: Path
) -> None:
    small, hanging = disks

    async def full() -> None:
        async with on_file(small, empty_file) as (here, _):
            await survive(here, faults.full(small), lasts_s=2)

    async def broken() -> None:
        async with on_file(tmp_path / "broken", empty_file) as (here, _):
            await survive(here, faults.failing_disk(here.process.pid), lasts_s=2)

    async def hung() -> None:
        async with on_file(hanging, empty_file) as (here, _):
            await is_held_up(here, faults.hanging(hanging))

    await side_by_side(full=full(), broken=broken(), hung=hung())


async def is_held_up(here: Site, fault: AbstractAsyncContextManager[None]) -> None:
    """A system call that does not return keeps everybody waiting, and then all goes on as if nothing had been."""
    async with under_way(here) as calls:
        async with fault:
            for call in calls:
                call.script.resume.set()
            question = asyncio.create_task(here.ask(ROUTER, max_tokens=TOKENS))
            assert await asyncio.wait([question], timeout=2) == (set(), {question})
        await is_answered(*calls[:2])
        assert (await calls[2].caller.events())[-1] == DONE
        assert (await question).status_code == 200
    await ends(here, MANY)


# PostgreSQL. The process reaches it by a way of ours.


@asynccontextmanager
async def by_a_way(folder: Path, server: Server) -> AsyncIterator[tuple[Site, Way, str]]:
    os.mkdir(folder)
    with server.database() as database:
        async with Way(server, database).laid() as way, site(folder, database, reached_at=way.url) as here:
            yield here, way, database


@pytest.fixture
def own_server(server: Server) -> Server:
    if not server.wheel:
        pytest.skip("the server is not ours to stop")
    return server


@pytest.mark.postgres
async def test_a_network_that_is_silent_cut_or_slow_and_a_database_that_is_locked_or_read_only_lose_nothing(
    tmp_path: Path, server: Server
) -> None:
    async def silent() -> None:
        async with by_a_way(tmp_path / "silent", server) as (here, way, _):
            await survive(here, way.silent(), lasts_s=10)

    async def cut() -> None:
        async with by_a_way(tmp_path / "cut", server) as (here, way, _):
            await survive(here, way.cut(), lasts_s=2)

    async def locked() -> None:
        async with by_a_way(tmp_path / "locked", server) as (here, _, database):
            await survive(here, faults.kept_by_another(database), lasts_s=8)

    async def read_only() -> None:
        async with by_a_way(tmp_path / "read_only", server) as (here, _, database):
            await survive(here, faults.read_only(server, database), lasts_s=2)

    async def late() -> None:
        async with by_a_way(tmp_path / "late", server) as (here, way, _):
            await is_slow_and_then_away(here, way)

    await side_by_side(silent=silent(), cut=cut(), locked=locked(), read_only=read_only(), late=late())


@pytest.mark.postgres
async def test_told_to_stop_while_the_server_is_away_a_stream_ends_in_order(tmp_path: Path, server: Server) -> None:
    async def silent() -> None:
        async with by_a_way(tmp_path / "silent", server) as (here, way, _):
            await ends_in_order_without_a_store(here, way.silent())

    async def cut() -> None:
        async with by_a_way(tmp_path / "cut", server) as (here, way, _):
            await ends_in_order_without_a_store(here, way.cut())

    await side_by_side(silent=silent(), cut=cut())


async def ends_in_order_without_a_store(here: Site, fault: AbstractAsyncContextManager[None]) -> None:
    """A stream is cut and told so, and what it owes is written when the store is back before the process has ended."""
    here.upstream.script(Stream(TOKENS, hold_after=3))
    async with calling(here.process.url) as caller:
        await caller.ask(ROUTER, here.ada, model="metered", stream=True)
        await caller.head()
        words = [await caller.event() for _ in range(3)]
        async with fault:
            here.process.signal(signal.SIGTERM)
            error, done = await caller.events()
        assert (data(error)["error"]["code"], done) == ("shutting_down", DONE)
    assert await here.process.ended() == 0
    async with running(here.settings) as gateway:
        (record,) = await gateway.usage(here.ada)
        assert (record.ended, record.state, record.output_tokens) == ("shutdown", "final", len(words))
        assert await gateway.nano(here.ada) == GRANTED - record.amount
    assert await verified(here.config)


async def is_slow_and_then_away(here: Site, way: Way) -> None:
    """Answers that come late slow calls down; when they come too late, the server counts as away."""
    way.delay_s, way.bytes_per_s = 0.02, 100_000
    slow = await asyncio.gather(*(here.ask(ROUTER, stream=stream) for stream in (False, True) * 5))
    assert {answer.status_code for answer in slow} == {200}
    way.delay_s = 2.0
    await are_refused(here)
    way.delay_s = 0.0
    await is_back(here)
    await ends(here, MANY)


@pytest.mark.postgres
async def test_a_server_that_is_killed_and_back_after_ten_seconds_has_lost_nothing(
    tmp_path: Path, own_server: Server
) -> None:
    async with by_a_way(tmp_path / "killed", own_server) as (here, _, _):
        await survive(here, faults.killed(own_server), lasts_s=10)


@pytest.mark.postgres
async def test_a_server_that_hangs_for_ten_seconds_has_lost_nothing(tmp_path: Path, own_server: Server) -> None:
    async with by_a_way(tmp_path / "frozen", own_server) as (here, _, _):
        await survive(here, faults.frozen(own_server), lasts_s=10)


@pytest.mark.postgres
async def test_a_server_that_has_no_connection_left_is_used_again_when_it_has(tmp_path: Path, server: Server) -> None:
    async with by_a_way(tmp_path / "crowded", server) as (here, way, database):
        await survive(here, faults.crowded(server, database, way), lasts_s=2)


@pytest.mark.postgres
async def test_a_commit_that_is_in_doubt_is_refused_as_such_and_what_it_may_have_held_is_given_back(
    tmp_path: Path, own_server: Server
) -> None:
    """The server waits for a synchronous replica, so no COMMIT returns, and it cannot say what will become of it."""

    @asynccontextmanager
    async def doubt() -> AsyncIterator[None]:
        async with faults.waiting_for_a_replica(own_server, database):
            question = asyncio.create_task(other.ask(ROUTER))
            yield
        answer = await question
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        said = answer.json()["error"]["message"]
        assert "not known" in said or "nothing was charged" in said  # the latter when a chore was before it

    one, two = by_a_way(tmp_path / "one", own_server), by_a_way(tmp_path / "other", own_server)
    async with one as (here, _, database), two as (other, _, _):
        await survive(here, doubt(), lasts_s=10)
        await is_back(other)
        assert (await other.look("/v1/balance")).json()["credits"]["held"]["nano"] == 0
        await ends(other, MANY)


@pytest.mark.postgres
async def test_a_failover_to_a_replica_loses_nothing_that_was_committed(tmp_path: Path, own_server: Server) -> None:
    async with by_a_way(tmp_path / "failover", own_server) as (here, way, database):
        with own_server.replica() as replica:
            here.settings = replace(here.settings, store=StoreSettings(replica.url(database)))
            await survive(here, faults.failed_over(own_server, replica, way), lasts_s=2)
