"""Signals to a serving process: SIGTERM ends it in good order, SIGHUP gives it another configuration."""

from __future__ import annotations

import asyncio
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.config import SurfaceSettings
from tests.engines import SECRETS
from tests.stories.caller import Caller, calling, data, eventually
from tests.stories.gateway import HELLO, LLAMA, ROUTER, Person, Running, running
from tests.stories.process import configuration, serving_process, settings_of, verified
from tests.upstream import Plain, ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
OUTPUT, INPUT = 2_000, 100  # nano-USD a token
GRANTED = 10**9


async def person_of(config: Path) -> Person:
    async with running(settings_of(config)) as gateway:
        return await gateway.person(usd="1")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_calls_that_end_within_the_grace_time_end_well(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream, how: signal.Signals
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url, grace_s=20)
    ada = await person_of(config)
    stream, plain = Stream(tokens=20, hold_after=3), Plain(tokens=20, hold=True)
    upstream.script(stream, plain)
    async with serving_process(config) as process, calling(process.url) as one, calling(process.url) as other:
        await one.ask(ROUTER, ada, model="metered", stream=True)
        await one.head()
        await upstream.arrival(1)
        await other.ask(ROUTER, ada, model="metered")
        await upstream.arrival(2)
        process.signal(how)
        await eventually(lambda: refuses(process.url))
        stream.resume.set()
        plain.resume.set()
        assert (await one.events())[-1] == DONE
        assert (await other.head()).status == 200
        assert b'"completion_tokens":20' in (await other.body()).replace(b" ", b"")
        assert await process.ended() == 0
    async with running(settings_of(config)) as gateway:
        assert [record.ended for record in await gateway.usage(ada)] == ["answer"] * 2
        assert await gateway.nano(ada) == GRANTED - 2 * (7 * INPUT + 20 * OUTPUT)


@pytest.mark.parametrize(
    ("grace_s", "told"),
    [(1.0, [signal.SIGTERM]), (600.0, [signal.SIGINT, signal.SIGINT])],
    ids=["in time", "told twice"],
)
async def test_calls_that_do_not_are_cut_in_order_and_settled(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream, grace_s: float, told: list[signal.Signals]
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url, grace_s=grace_s)
    ada = await person_of(config)
    upstream.script(Stream(tokens=20, hold_after=3), Stream(tokens=20, hold_after=0), Plain(hold=True))
    async with (
        serving_process(config) as process,
        calling(process.url) as begun,
        calling(process.url) as unbegun,
        calling(process.url) as plain,
    ):
        await begun.ask(ROUTER, ada, model="metered", stream=True)
        await begun.head()
        words = [await begun.event() for _ in range(3)]
        await unbegun.ask(ROUTER, ada, model="metered", stream=True)
        await upstream.arrival(2)
        await plain.ask(ROUTER, ada, model="metered")
        await upstream.arrival(3)
        for how in told:
            process.signal(how)
            await eventually(lambda: refuses(process.url))
        error, done = await begun.events()
        assert data(error)["error"]["code"] == "shutting_down"
        assert done == DONE
        assert await refused_as_shutting_down(unbegun)
        assert await refused_as_shutting_down(plain)
        assert await process.ended() == 0
    for received in upstream.requests:
        await received.over.wait()
    assert all(received.aborted_at for received in upstream.requests)
    assert await verified(config)
    async with running(settings_of(config)) as gateway:
        records = await gateway.usage(ada)
        assert {(record.ended, record.status, record.state) for record in records} == {("shutdown", 503, "final")}
        assert sorted(record.output_tokens for record in records) == [0, 0, len(words)]
        assert await gateway.nano(ada) == GRANTED - sum(record.amount for record in records)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_signals_without_end_do_not_keep_it_from_writing_what_is_left(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream, how: signal.Signals
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url, grace_s=1)
    ada = await person_of(config)
    upstream.script(Stream(tokens=20, hold_after=3))
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered", stream=True)
        await caller.head()
        ending = asyncio.create_task(process.ended())
        while not ending.done():
            process.signal(how)
            await asyncio.sleep(0.001)
        assert await ending == 0
    async with running(settings_of(config)) as gateway:
        assert [record.ended for record in await gateway.usage(ada)] == ["shutdown"]


async def test_a_new_configuration_is_taken_without_touching_what_runs(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url, models=("old", "kept"))
    ada = await person_of(config)
    held = Stream(tokens=20, hold_after=3)
    upstream.script(held)
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="old", stream=True)
        await caller.head()
        configuration(tmp_path, upstream.base_url, store=store_url, models=("kept", "new"))
        process.signal(signal.SIGHUP)
        await process.said("has been read again")
        assert await statuses(process.url, ada, "old", "kept", "new") == [404, 200, 200]
        held.resume.set()
        assert (await caller.events())[-1] == DONE

        config.write_text(config.read_text() + "\n[nonsense]\n")
        process.signal(signal.SIGHUP)
        assert "nonsense" in await process.said("stays as it was")
        assert await statuses(process.url, ada, "old", "kept", "new") == [404, 200, 200]
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


async def test_a_reload_can_take_another_upstream(tmp_path: Path, store_url: str, upstream: ScriptedUpstream) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url)
    ada = await person_of(config)
    held = Stream(tokens=20, hold_after=3)
    upstream.script(held)
    async with ScriptedUpstream() as successor, serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered", stream=True)
        await caller.head()
        configuration(tmp_path, successor.base_url, store=store_url)
        process.signal(signal.SIGHUP)
        await process.said("has been read again")
        assert await statuses(process.url, ada, "metered") == [200]
        assert (len(upstream.requests), len(successor.requests)) == (1, 1)
        held.resume.set()
        assert (await caller.events())[-1] == DONE


async def test_limits_that_a_reload_brings_hold_for_the_next_call(gateway: Running) -> None:
    running, ada = gateway.gateway, await gateway.person(usd="1")
    headers = {"authorization": f"Bearer {ada.personal_key.key}"}
    wish = {"model": LLAMA, "messages": HELLO, "max_tokens": 50}
    statuses = []
    for most in (1_000, 49, 50):
        limits = replace(running.office.settings.limits, max_output_tokens=most, draining_calls=most, attempts=2)
        await running.reload(replace(running.office.settings, limits=limits))
        answer = await gateway.http.post(f"{ROUTER}/chat/completions", json=wish, headers=headers)
        statuses.append(answer.status_code)
    assert statuses == [200, 400, 200]
    assert (running.relay.drains.most, running.relay.attempts.most) == (50, 2)


async def test_a_surface_that_a_reload_switches_off_goes_on_and_the_log_and_the_settings_say_so(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    before = (await gateway.http.get("/api/v1/config")).json()
    off = SurfaceSettings(enabled=False)
    await gateway.gateway.reload(replace(gateway.gateway.office.settings, surfaces=(("trust", off),)))
    assert (await gateway.http.get("/api/v1/config")).json() == before
    assert (await gateway.get("/v1/balance", await gateway.person(usd="1"))).status_code == 200
    assert "surfaces" in caplog.text


async def test_a_configuration_that_cannot_be_written_down_stays_as_it_was(
    tmp_path: Path, empty_file: Path, upstream: ScriptedUpstream
) -> None:
    store = tmp_path / "moving.db"
    shutil.copy(empty_file, store)
    config = configuration(tmp_path, upstream.base_url, store=f"sqlite:///{store}", models=("old",))
    async with serving_process(config) as process:
        store.rename(tmp_path / "moved.db")
        configuration(tmp_path, upstream.base_url, store=f"sqlite:///{store}", models=("new",))
        process.signal(signal.SIGHUP)
        await process.said("stays as it was: The ledger cannot be reached")
        (tmp_path / "moved.db").rename(store)
        process.signal(signal.SIGHUP)
        await process.said("has been read again")


async def test_a_reload_makes_no_secrets_where_they_are_lost(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config, kept = configuration(tmp_path, upstream.base_url), tmp_path / "penstock.secrets"
    async with serving_process(config, environ=dict.fromkeys(SECRETS, "")) as process:
        kept.rename(tmp_path / "moved.secrets")
        process.signal(signal.SIGHUP)
        await process.said("stays as it was: penstock.secrets: is not there")
        assert not kept.exists()
        (tmp_path / "moved.secrets").rename(kept)
        process.signal(signal.SIGHUP)
        await process.said("has been read again")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_gateway_with_other_secrets_than_its_databases_does_not_start(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream, workers: int
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url, workers=workers)
    await person_of(config)
    with pytest.raises(AssertionError, match=r"it ended with 3: .*PENSTOCK_KEY_PEPPER: is not the one"):
        async with serving_process(config, environ={"PENSTOCK_KEY_PEPPER": "x" * 32}):
            pass


async def refuses(url: str) -> bool:
    """Whether no new connection is taken."""
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.transport.abort()
    return False


async def refused_as_shutting_down(caller: Caller) -> bool:
    status = (await caller.head()).status
    return status == 503 and b'"shutting_down"' in await caller.body()


async def statuses(url: str, person: Person, *models: str) -> list[int]:
    """What calls of these models come to, one after the other on one connection."""
    found = []
    async with calling(url) as caller:
        for model in models:
            await caller.ask(ROUTER, person, model=model)
            found.append((await caller.head()).status)
            await caller.body()
    return found
