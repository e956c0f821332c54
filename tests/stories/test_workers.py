"""`penstock serve --workers`: several processes on one address and one store, kept by a supervisor."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from os import kill
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.stories.caller import Caller, calling, eventually
from tests.stories.gateway import HELLO, ROUTER, Person, plain_client, running
from tests.stories.process import Process, configuration, serving_process, settings_of, verified
from tests.upstream import Exchange, Plain, ScriptedUpstream, Stream

COST_NANO = 7 * 100 + 5 * 2_000  # of the usual answer
SERVED = ("penstock_requests_total", "router", "metered", "main", "answer")
HEALTH = b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n"


async def person_of(config: Path) -> Person:
    """Somebody with $10 and a key that may call as often as it likes."""
    async with running(settings_of(config)) as gateway:
        person = await gateway.person(usd="10")
        return replace(person, personal_key=await gateway.key("personal", user=person.user, requests_per_minute=10**6))


@asynccontextmanager
async def workers_on(config: Path, *words: str) -> AsyncIterator[Process]:
    """The processes of a configuration, which must end in order."""
    async with serving_process(config, *words) as process:
        yield process
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


def pids(process: Process) -> dict[int, int]:
    """The workers that have come to serve, by number: the newest of each."""
    found = (re.search(r"worker (\d+) \((\d+)\) serves", line) for line in process.log)
    return {int(match[1]): int(match[2]) for match in found if match}


async def replaced(process: Process, number: int, pid: int) -> int:
    """Wait until another worker than `pid` serves under this number; its process id."""

    async def look() -> int:
        newest = pids(process).get(number, pid)
        return newest if newest != pid else 0

    return await eventually(look)


async def scrape(client: httpx2.AsyncClient) -> dict[frozenset[str], float]:
    """The samples of `/metrics`: name and label values, in no order -> value."""
    answer = await client.get("/metrics")
    return {
        frozenset((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def call(client: httpx2.AsyncClient, person: Person, model: str = "metered", **fields: object) -> int:
    """A chat completion; its status."""
    answer = await client.post(
        f"{ROUTER}/chat/completions",
        json={"model": model, "messages": HELLO, **fields},
        headers={"authorization": f"Bearer {person.personal_key.key}"},
    )
    return answer.status_code


async def healthy(caller: Caller) -> str:
    """Whether the gateway is well, asked on this connection; what the answer says becomes of the connection."""
    await caller.send(HEALTH)
    head = await caller.head()
    assert head.status == 200
    assert await caller.body()
    return head.headers.get("connection", "kept")


async def all_healthy(url: str) -> None:
    """Whether many new connections are all answered."""
    for _ in range(32):
        async with calling(url) as caller:
            await healthy(caller)


async def test_connections_are_spread_evenly_and_metrics_are_the_sum_of_all_that_answer(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=4)
    ada = await person_of(config)
    async with workers_on(config) as process:
        assert sorted(pids(process)) == [1, 2, 3, 4]
        assert sum("serves at" in line for line in process.log) == 1
        limits = httpx2.Limits(max_connections=128, max_keepalive_connections=128)
        async with plain_client(base_url=process.url, limits=limits) as client:
            statuses = await asyncio.gather(*(call(client, ada) for _ in range(128)))
            assert statuses == [200] * 128
            found = await scrape(client)
        spread = [found[frozenset(("penstock_connections_open", str(number)))] for number in range(1, 5)]
        assert sum(spread) == 128
        assert 12 <= min(spread) <= max(spread) <= 60
        expected = {
            ("penstock_workers_reporting",): 4,
            SERVED: 128,
            ("penstock_tokens_total", "metered", "main", "output"): 5 * 128,
            ("penstock_cost_nano_usd_total", "metered", "credits"): COST_NANO * 128,
            ("penstock_request_seconds_count",): 128,
            ("penstock_request_seconds_bucket", "+Inf"): 128,
            ("penstock_holds_open",): 0,
        }
        assert {names: found[frozenset(names)] for names in expected} == expected
        await one_that_is_silent_is_left_out(process)


async def one_that_is_silent_is_left_out(process: Process) -> None:
    """A scrape does not wait for a worker that is stopped, says so, and counts what it is known to have counted."""
    silent = pids(process)[1]
    kill(silent, signal.SIGSTOP)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(plain_client(base_url=process.url)) for _ in range(32)]
        scrapes = [asyncio.create_task(scrape(client)) for client in clients]
        answered, _ = await asyncio.wait(scrapes, return_when=asyncio.FIRST_COMPLETED)
        found = answered.pop().result()
        assert (found[frozenset({"penstock_workers_reporting"})], found[frozenset(SERVED)]) == (3, 128)
        kill(silent, signal.SIGCONT)
        await asyncio.gather(*scrapes)


async def test_a_killed_worker_is_replaced_and_neither_counters_nor_waiting_connections_are_lost(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=2)
    ada = await person_of(config)
    async with workers_on(config) as process:
        async with plain_client(base_url=process.url) as client:
            assert [await call(client, ada) for _ in range(10)] == [200] * 10
            before = await scrape(client)
        for number, pid in pids(process).items():
            kill(pid, signal.SIGSTOP)
            async with plain_client(base_url=process.url) as client:
                asked = [asyncio.create_task(client.get("/health")) for _ in range(32)]
                await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                kill(pid, signal.SIGKILL)
                assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
            await replaced(process, number, pid)
        async with plain_client(base_url=process.url) as client:
            assert [await call(client, ada) for _ in range(10)] == [200] * 10
            after = await scrape(client)
        assert (before[frozenset(SERVED)], after[frozenset(SERVED)]) == (10, 20)
    assert await verified(config)


async def test_while_a_worker_cannot_be_replaced_the_others_serve_and_when_none_can_start_it_ends_with_their_code(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=2)
    sound = config.read_text()
    async with serving_process(config) as process:
        one, other = pids(process)[1], pids(process)[2]
        config.write_text(sound + "\n[nonsense]\n")
        kill(one, signal.SIGKILL)

        async def tried_twice() -> bool:
            return sum("nonsense: is not a setting" in line for line in process.log) >= 2

        await eventually(tried_twice)
        await all_healthy(process.url)
        config.write_text(sound)
        one = await replaced(process, 1, one)
        config.write_text(sound + "\n[nonsense]\n")
        for pid in (one, other):
            kill(pid, signal.SIGKILL)
        assert await process.ended() == 3
        assert "the last one ended with 3" in await process.said("no worker can start")


async def test_calls_are_finished_or_cut_in_order_on_all_workers_when_the_supervisor_is_told_to_stop(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    await ends_in_order(tmp_path, upstream, signal.SIGTERM)


async def test_workers_notice_that_their_supervisor_was_killed_and_end_in_order(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    await ends_in_order(tmp_path, upstream, signal.SIGKILL)


async def test_told_twice_workers_cut_their_calls_at_once_and_told_on_and_on_they_still_end_in_order(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    await ends_in_order(tmp_path, upstream, signal.SIGINT, grace_s=600)


async def ends_in_order(folder: Path, upstream: ScriptedUpstream, how: signal.Signals, *, grace_s: float = 1) -> None:
    """Streams on every worker, half of which go on in time; then `how` to the supervisor, SIGINT again and again."""
    config = configuration(folder, upstream.base_url, workers=2, grace_s=grace_s)
    ada = await person_of(config)
    scripts = [Stream(tokens=20, hold_after=3) for _ in range(16)]
    upstream.script(*scripts)
    async with serving_process(config) as process, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(process.url)) for _ in scripts]
        for number, caller in enumerate(callers, 1):
            await caller.ask(ROUTER, ada, model="metered", stream=True)
            await caller.head()
            await upstream.arrival(number)
        workers = pids(process).values()
        process.signal(how)
        for script in scripts[:8]:
            script.resume.set()
        ends = [(await caller.events())[-2:] for caller in callers[:8]]
        impatient = asyncio.create_task(again_and_again(process, how)) if how is signal.SIGINT else None
        ends += [(await caller.events())[-2:] for caller in callers[8:]]
        assert {end[-1] for end in ends} == {b"data: [DONE]\n\n"}
        assert sum(b'"shutting_down"' in end[0] for end in ends) == 8
        assert await process.ended() == (-how if how is signal.SIGKILL else 0)
        if impatient:
            await impatient
        await eventually(lambda: all_gone(workers))
    async with running(settings_of(config)) as gateway:
        records = await gateway.usage(ada)
        assert sorted(record.ended for record in records) == ["answer"] * 8 + ["shutdown"] * 8
        assert await gateway.nano(ada) == 10 * 10**9 - sum(record.amount for record in records)
    assert await verified(config)


async def again_and_again(process: Process, how: signal.Signals) -> None:
    """Until it is gone."""
    with suppress(ProcessLookupError):
        while True:
            process.signal(how)
            await asyncio.sleep(0.002)


async def all_gone(processes: Iterable[int]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(runs(pid) for pid in processes)


def runs(pid: int) -> bool:
    """Whether there is such a process; a dead one may wait for whoever has inherited it to notice."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(told.strip()) and not told.startswith("Z")


async def test_every_worker_reads_the_configuration_again_and_none_is_replaced_for_a_wrong_one(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=2, models=("old",))
    ada = await person_of(config)
    async with workers_on(config) as process:
        configuration(tmp_path, upstream.base_url, workers=2, models=("new",))
        process.signal(signal.SIGHUP)

        async def all_read() -> bool:
            return sum("has been read again" in line for line in process.log) == 2

        await eventually(all_read)
        async with plain_client(base_url=process.url) as client:
            statuses = await asyncio.gather(*(call(client, ada, model) for model in ("old", "new") for _ in range(16)))
        assert statuses == [404] * 16 + [200] * 16
        before = pids(process)
        config.write_text(config.read_text() + "\n[nonsense]\n")
        process.signal(signal.SIGUSR2)
        assert "nonsense" in await process.said("the workers stay as they are")
        assert pids(process) == before
        await all_healthy(process.url)


# A rolling restart.


@dataclass(frozen=True)
class ByWish:
    """A long stream, of a second, to who wishes for 30 tokens; else the usual answer."""

    async def play(self, exchange: Exchange) -> None:
        wish = exchange.received.json
        if not wish.get("stream"):
            await Plain().play(exchange)
        elif wish["max_tokens"] == 30:
            await Stream(tokens=30, gap_s=0.03).play(exchange)
        else:
            await Stream(tokens=5).play(exchange)


@dataclass
class Load:
    """Callers that never pause until `enough` is set. `calls` were answered well, `failures` were not."""

    url: str
    person: Person
    calls: int = 0
    farewells: int = 0  # connections that a worker ended by saying so in its last answer
    failures: list[str] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep_calling(self, *, stream: bool, tokens: int = 5, per_connection: int = 10**9) -> None:
        """Call on one connection, and on another when a worker has ended it or it has had so many calls."""
        while not self.enough.is_set():
            async with calling(self.url) as caller:
                ended = False
                for _ in range(per_connection):
                    if ended or self.enough.is_set():
                        break
                    try:
                        ended = await self._call(caller, stream=stream, max_tokens=tokens)
                    except (OSError, EOFError, AssertionError) as error:
                        self.failures.append(f"{type(error).__name__} {error}")
                        ended = True

    async def _call(self, caller: Caller, *, stream: bool, max_tokens: int) -> bool:
        """One call; whether the connection ended with it, as was said."""
        await caller.ask(ROUTER, self.person, model="metered", stream=stream, max_tokens=max_tokens)
        head = await caller.head()
        assert head.status == 200, head
        body = await caller.body()
        assert not stream or body.endswith(b"data: [DONE]\n\n"), body[-200:]
        self.calls += 1
        if head.headers.get("connection") != "close":
            return False
        self.farewells += 1
        assert await caller.closed()
        return True


async def test_a_rolling_restart_under_load_fails_no_call_and_refuses_no_connection(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=2, grace_s=10)
    ada = await person_of(config)
    upstream.usual = ByWish()
    async with workers_on(config) as process:
        load_ = Load(process.url, ada)
        tasks = [
            *(asyncio.create_task(load_.keep_calling(stream=stream)) for stream in (False, True) for _ in range(2)),
            *(asyncio.create_task(load_.keep_calling(stream=True, tokens=30)) for _ in range(3)),
            asyncio.create_task(load_.keep_calling(stream=False, per_connection=1)),
        ]
        await upstream.arrival(50)
        before = pids(process)
        process.signal(signal.SIGUSR2)
        for number, pid in before.items():
            await replaced(process, number, pid)
        await process.said("all 2 workers have been replaced")
        served = load_.calls
        await upstream.arrival(len(upstream.requests) + 50)
        load_.enough.set()
        await asyncio.gather(*tasks)
        assert load_.failures == []
        assert not set(pids(process).values()) & set(before.values())
        assert await all_gone(before.values())
        assert load_.farewells >= 7  # the connections that were kept, each at its worker's end
        assert served > 50
        async with plain_client(base_url=process.url) as client:
            found = await scrape(client)
        assert found[frozenset(SERVED)] == load_.calls
    async with running(settings_of(config)) as gateway:
        records = await gateway.usage(ada)
        assert len(records) == min(load_.calls, 1000)
        assert {record.ended for record in records} == {"answer"}
    assert await verified(config)


async def test_an_idle_connection_is_answered_once_more_by_the_worker_that_retires(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url)
    async with workers_on(config, "--workers", "2", "--sample") as process, AsyncExitStack() as stack:
        await process.said("curl")
        assert sum("A sample account" in line for line in process.log) == 1
        callers = [await stack.enter_async_context(calling(process.url)) for _ in range(16)]
        assert [await healthy(caller) for caller in callers] == ["kept"] * 16
        process.signal(signal.SIGUSR2)

        async def all_ended() -> bool:
            ended = [caller for caller in callers if await healthy(caller) == "close"]
            assert all([await caller.closed() for caller in ended])
            callers[:] = [caller for caller in callers if caller not in ended]
            return not callers

        await eventually(all_ended)
        await process.said("all 2 workers have been replaced")


async def test_a_gateway_of_one_process_has_no_workers_and_is_not_ended_by_the_signal_to_replace_them(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=3)
    async with serving_process(config, "--workers", "1") as process:
        assert pids(process) == {}
        process.signal(signal.SIGUSR2)
        await process.said("it goes on")
        await all_healthy(process.url)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


async def test_a_worker_that_starts_while_the_database_is_moved_away_does_not_make_another(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, workers=2)
    ada = await person_of(config)
    database, away = tmp_path / "penstock.db", tmp_path / "away"
    away.mkdir()
    async with workers_on(config) as process, plain_client(base_url=process.url) as client:
        files = [tmp_path / f"penstock.db{end}" for end in ("", "-wal", "-shm")]
        moved = [file.rename(away / file.name) for file in files if file.exists()]
        killed = pids(process)[1]
        kill(killed, signal.SIGKILL)

        async def tried_twice() -> bool:
            return sum("There is no database" in line for line in process.log) > 1

        await eventually(tried_twice)
        assert not database.exists()
        for file in moved:
            file.rename(tmp_path / file.name)
        await replaced(process, 1, killed)
        await all_healthy(process.url)
        assert [await call(client, ada) for _ in range(3)] == [200] * 3
    assert await verified(config)
