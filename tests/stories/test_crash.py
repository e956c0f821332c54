"""The process is killed in mid-stream: what had been noted is charged, nothing stays held, and the books add up.

Kills at random moments under load are in `test_torture.py`.
"""

from __future__ import annotations

import signal
from pathlib import Path

from sqlalchemy import func, select

from penstock.app import open_office
from penstock.db.program import Program, Statement, fetch
from penstock.db.schema import holds
from tests.engines import file_of, only_on_sqlite
from tests.stories.caller import calling, eventually
from tests.stories.gateway import HELLO, ROUTER, TRUST, plain_client, running
from tests.stories.process import configuration, serving_process, settings_of, verified
from tests.upstream import Plain, ScriptedUpstream, Stream

OUTPUT, INPUT = 2_000, 100  # nano-USD a token
GRANTED = 10**9
FURTHEST = Statement(select(func.max(holds.c.progress)))


async def test_a_killed_stream_is_charged_for_what_was_noted_and_is_under_review(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url)
    async with running(settings_of(config)) as gateway:
        ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=1000, hold_after=200))
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered", stream=True)
        await caller.head()
        for _ in range(200):
            await caller.event()
        async with open_office(settings_of(config)) as office:
            progress = await eventually(lambda: office.store.read(noted()))
        process.signal(signal.SIGKILL)
        assert await process.ended() == -signal.SIGKILL
    assert await verified(config)
    async with running(settings_of(config)) as gateway:
        (record,) = await gateway.usage(ada)
        assert (record.state, record.ended, record.estimated) == ("review", "crash", True)
        assert 128 <= record.output_tokens <= 200
        assert record.amount >= progress
        assert record.amount == record.input_tokens * INPUT + record.output_tokens * OUTPUT
        assert await gateway.nano(ada) == GRANTED - record.amount
    assert await verified(config)


async def test_a_killed_call_that_had_produced_nothing_is_free_and_under_review(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url)
    async with running(settings_of(config)) as gateway:
        ada = await gateway.person(usd="1")
    upstream.script(Plain(hold=True))
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered")
        await upstream.arrival(1)
        process.signal(signal.SIGKILL)
        await process.ended()
    async with running(settings_of(config)) as gateway:
        (record,) = await gateway.usage(ada)
        assert (record.state, record.ended, record.amount) == ("review", "crash", 0)
        assert await gateway.nano(ada) == GRANTED


@only_on_sqlite
async def test_what_a_killed_process_has_half_written_into_the_log_of_the_file_is_left_out(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url)
    async with running(settings_of(config)) as gateway:
        ada = await gateway.person(usd="1")
    async with serving_process(config) as process, plain_client(base_url=process.url) as http:
        headers = {"authorization": f"Bearer {ada.account_key.key}", "x-trust": ada.account}
        await http.post(f"{TRUST}/chat/completions", json={"model": "metered", "messages": HELLO}, headers=headers)
        assert (await http.get(f"{TRUST}/balance", headers=headers)).status_code == 200  # so it is settled
        process.signal(signal.SIGKILL)
        await process.ended()
    break_off_in_mid_page(Path(f"{file_of(store_url)}-wal"))
    async with running(settings_of(config)) as gateway:
        (record,) = await gateway.usage(ada)
        assert (record.state, record.amount) == ("final", 7 * INPUT + 5 * OUTPUT)
        assert await gateway.nano(ada) == GRANTED - record.amount


def break_off_in_mid_page(log: Path) -> None:
    """Add most of another page to the log, as a process leaves it that is killed while it writes."""
    written = log.read_bytes()
    assert len(written) > 10_000
    log.write_bytes(written + written[32:3_000])


def noted() -> Program[int]:
    """How much the furthest open hold is known to owe, in nano-USD."""
    ((progress,),) = yield from fetch(FURTHEST)
    return int(progress or 0)
