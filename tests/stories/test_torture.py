"""The crash and cut proof in short: a few seeded histories of each part, on both engines. At length: `make torture`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from tests.postgres import ABSENT
from torture import cut, drain, kill, spend
from torture.__main__ import QUICK
from torture.farm import POSTGRESQL, SQLITE, Databases, Upstream, databases, upstream_process
from torture.table import Row

SEED = 2  # the same histories every time; `python -m torture PART --quick --seed 2` draws them as well


@pytest.fixture(scope="module")
def found() -> Iterator[Databases]:
    with databases() as found:
        yield found


@pytest.fixture
async def truth() -> AsyncIterator[Upstream]:
    async with upstream_process() as upstream:
        yield upstream


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def engine(request: pytest.FixtureRequest, found: Databases) -> str:
    if request.param not in found.engines:
        pytest.skip(ABSENT)
    return str(request.param)


def violations(rows: Sequence[Row]) -> list[str]:
    return [words for row in rows for words in row.violations]


async def test_a_crowd_uses_one_balance_up_and_never_more(engine: str, found: Databases, truth: Upstream) -> None:
    rows = await spend.run(engine, found, truth, seed=SEED, size=QUICK.crowd)
    assert violations(rows) == []
    assert [row.part for row in rows] == ["spend usd", "spend contract", "spend limit"]
    assert all(0 < int(row.seen["answered"]) < QUICK.crowd.calls for row in rows)  # the balance did end


async def test_killed_at_any_moment_it_loses_and_doubles_nothing(
    engine: str, found: Databases, truth: Upstream
) -> None:
    rows = await kill.run(engine, found, truth, seed=SEED, histories=QUICK.kills[engine])
    assert violations(rows) == []
    assert int(rows[0].seen["cut by a kill"]) > 0


async def test_a_stream_cut_at_any_point_is_charged_what_its_upstream_counted(
    engine: str, found: Databases, truth: Upstream
) -> None:
    rows = await cut.run(engine, found, truth, seed=SEED, histories=QUICK.cuts[engine], streams=QUICK.streams)
    assert violations(rows) == []
    endings = {ended for row in rows for ended in row.seen}
    assert endings >= {"caller_gone", "upstream_failed", "timeout", "money", "shutdown"}


async def test_told_to_stop_with_live_streams_it_ends_in_order_and_settles_all(
    engine: str, found: Databases, truth: Upstream
) -> None:
    rows = await drain.run(engine, found, truth, seed=SEED, histories=QUICK.drains[engine], streams=QUICK.live)
    assert violations(rows) == []
    assert {"answer", "shutdown"} <= rows[0].seen.keys()
