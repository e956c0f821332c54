"""The process is killed in mid-stream: what had been noted is charged, nothing stays held, and the books add up.

Kills at random moments under load are in `test_torture.py`.
"""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path

from penstock.config_file import load
from tests.stories.caller import calling, eventually
from tests.stories.gateway import ROUTER, running
from tests.stories.process import configuration, serving_process, verified
from tests.upstream import Plain, ScriptedUpstream, Stream

OUTPUT, INPUT = 2_000, 100  # nano-USD a token
GRANTED = 10**9


async def test_a_killed_stream_is_charged_for_what_was_noted_and_is_under_review(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url)
    async with running(load(config, {})) as gateway:
        ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=1000, hold_after=200))
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered", stream=True)
        await caller.head()
        for _ in range(200):
            await caller.event()
        progress = await eventually(lambda: noted(tmp_path))
        process.signal(signal.SIGKILL)
        assert await process.ended() == -signal.SIGKILL
    assert await verified(config)
    async with running(load(config, {})) as gateway:
        (record,) = await gateway.usage(ada)
        assert (record.state, record.ended, record.estimated) == ("review", "crash", True)
        assert 128 <= record.output_tokens <= 200
        assert record.amount >= progress
        assert record.amount == record.input_tokens * INPUT + record.output_tokens * OUTPUT
        assert await gateway.nano(ada) == GRANTED - record.amount
    assert await verified(config)


async def test_a_killed_call_that_had_produced_nothing_is_free_and_under_review(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = configuration(tmp_path, upstream.base_url)
    async with running(load(config, {})) as gateway:
        ada = await gateway.person(usd="1")
    upstream.script(Plain(hold=True))
    async with serving_process(config) as process, calling(process.url) as caller:
        await caller.ask(ROUTER, ada, model="metered")
        await upstream.arrival(1)
        process.signal(signal.SIGKILL)
        await process.ended()
    async with running(load(config, {})) as gateway:
        (record,) = await gateway.usage(ada)
        assert (record.state, record.ended, record.amount) == ("review", "crash", 0)
        assert await gateway.nano(ada) == GRANTED


async def noted(folder: Path) -> int:
    """How much the furthest open hold is known to owe, in nano-USD."""
    with closing(sqlite3.connect(f"file:{folder}/penstock.db?mode=ro", uri=True)) as database:
        (progress,) = database.execute("SELECT max(progress) FROM holds").fetchone()
    return int(progress or 0)
