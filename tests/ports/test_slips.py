"""Slips: what a killed process had settled is settled so, though the database did not have it yet."""

from __future__ import annotations

import asyncio
import io
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from penstock.app import open_gateway
from penstock.config import StoreSettings
from penstock.db import groups
from penstock.db.journal import verify
from penstock.db.ledger import Settlement
from penstock.db.records import KeptAnswer
from penstock.db.recovery import bury
from penstock.db.schema import holds, lots, usage_records
from penstock.db.slips import FORGOTTEN_S, SLOT_BYTES, SLOTS, Slips
from penstock.db.sqlite import SqliteStore
from tests.ledger import NOON_MS, OWNER, HandClock, admission, furnish, lot, make_tables, need, rows, settlement
from tests.stories.gateway import settings_for


@pytest.fixture
def slips(tmp_path: Path) -> Slips:
    slips = Slips(str(tmp_path / "slips"), OWNER)
    slips.open()
    return slips


def left(slips: Slips) -> dict[str, Settlement]:
    """As another process finds it."""
    return slips.left_by(OWNER)


def test_what_is_left_is_found_as_it_was(slips: Slips) -> None:
    first, second = settlement("a", need(100), 30), settlement("b", need(5, 1, keys=("k", "l")), 0, once=True)
    assert slips.leave(first) is not None
    assert slips.leave(second) is not None
    assert left(slips) == {"a": first, "b": second}
    assert oct(os.stat(slips._path(OWNER)).st_mode)[-3:] == "600"


def test_a_slot_is_used_again_once_its_settlement_is_written(slips: Slips) -> None:
    slots = [slips.leave(settlement(str(number), need(1), 1)) for number in range(SLOTS)]
    assert None not in slots
    assert len(left(slips)) == SLOTS
    assert slips.leave(settlement("one too many", need(1), 1)) is None
    freed = slots[7]
    assert freed is not None
    freed.set_result(None)
    assert slips.leave(settlement("next", need(1), 1)) is not None
    assert left(slips).keys() == {*map(str, range(SLOTS)), "next"} - {"7"}


def test_what_does_not_fit_is_not_left(slips: Slips) -> None:
    kept = KeptAnswer(200, "[]", bytes(SLOT_BYTES))
    assert slips.leave(settlement("a", need(100), 30, kept=kept)) is None
    assert left(slips) == {}


def test_where_no_file_can_be_made_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "slips").write_text("not a directory")
    slips = Slips(str(tmp_path / "slips"), OWNER)
    with pytest.raises(FileExistsError):
        slips.open()
    assert slips.leave(settlement("a", need(100), 30)) is None
    assert left(slips) == {}


def test_where_there_is_no_room_for_all_of_it_nothing_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5000]))
    slips = Slips(str(tmp_path / "slips"), OWNER)
    with pytest.raises(OSError, match="No space left"):
        slips.open()
    assert slips.leave(settlement("a", need(100), 30)) is None


@pytest.mark.parametrize("at", [0, 4, 8, 100])
def test_a_slip_that_is_not_whole_is_none(slips: Slips, at: int) -> None:
    slips.leave(settlement("a", need(100), 30))
    slips.leave(settlement("b", need(100), 30))
    with open(slips._path(OWNER), "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))
    assert set(left(slips)) == {"b"}


def test_a_slip_of_a_version_with_other_fields_is_none(slips: Slips, monkeypatch: pytest.MonkeyPatch) -> None:
    slips.leave(settlement("a", need(100), 30))
    monkeypatch.setattr("penstock.db.slips._NAMES", 7)
    slips.leave(settlement("b", need(100), 30))
    assert set(left(slips)) == {"b"}


def test_a_file_that_is_cut_off_or_nonsense_harms_nobody(slips: Slips) -> None:
    slips.leave(settlement("a", need(100), 30))
    slips.leave(settlement("b", need(100), 30))
    path = slips._path(OWNER)
    for size in range(2 * SLOT_BYTES):
        os.truncate(path, 2 * SLOT_BYTES - size)
        assert set(left(slips)) <= {"a", "b"}
    with open(path, "wb") as file:
        file.write(os.urandom(8 * SLOT_BYTES))
    assert left(slips) == {}


def test_old_files_of_nobody_are_dropped(slips: Slips, tmp_path: Path) -> None:
    slips.leave(settlement("a", need(100), 30))
    for name in ("own_gone", "own_known"):
        (tmp_path / "slips" / name).write_bytes(b"")
    now_s = os.stat(slips._path(OWNER)).st_mtime
    slips.tidy({OWNER, "own_known"}, now_s + FORGOTTEN_S / 2)
    assert sorted(os.listdir(tmp_path / "slips")) == sorted([OWNER, "own_gone", "own_known"])
    slips.tidy({OWNER, "own_known"}, now_s + FORGOTTEN_S * 2)
    assert sorted(os.listdir(tmp_path / "slips")) == sorted([OWNER, "own_known"])
    slips.close()
    assert os.listdir(tmp_path / "slips") == ["own_known"]


@pytest.fixture
async def dying(slips: Slips, tmp_path: Path) -> SqliteStore:
    """The store of a process that is about to be killed, with 1,000 units in it."""
    make_tables(str(tmp_path / "penstock.db"))
    store = SqliteStore(str(tmp_path / "penstock.db"), clock=HandClock(), slips=slips)
    await store.write(furnish())
    await store.write(lot("lot_1", 1_000))
    return store


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nothing can be written meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_what_a_dead_process_had_settled_is_settled_so_and_not_under_review(
    dying: SqliteStore, tmp_path: Path
) -> None:
    for request in ("told", "cut off"):
        await dying.commit(admission(request, need(200)))
    with locked(tmp_path / "penstock.db"):
        posted = dying.post(settlement("told", need(200), 123))
        assert posted.done()  # the answer leaves all the same
        for task in dying._groups._tasks:  # it is killed
            task.cancel()
    survivor = Slips(str(tmp_path / "slips"), "own_other")
    store = SqliteStore(dying.path, clock=HandClock(), slips=survivor)
    try:
        assert await store.write(bury(OWNER, NOON_MS, slips=survivor.left_by(OWNER))) == 2
        found = {row["request_id"]: (row["state"], row["amount"]) for row in await rows(store, usage_records)}
        assert found == {"told": ("final", 123), "cut off": ("review", 0)}
        assert await rows(store, holds) == []
        assert [row["remaining"] for row in await rows(store, lots)] == [877]
        assert await store.read(verify()) == []
        assert await store.write(bury(OWNER, NOON_MS, slips=survivor.left_by(OWNER))) == 0  # once is enough
        assert [row["remaining"] for row in await rows(store, lots)] == [877]
    finally:
        await store.close()
        await dying.close()


async def test_a_slip_stays_until_its_settlement_is_written_however_long_that_takes(
    dying: SqliteStore, slips: Slips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "WRITE_S", 0.0)
    for request in ("a", "b"):
        await dying.commit(admission(request, need(200)))
    with locked(tmp_path / "penstock.db"):
        assert dying.post(settlement("a", need(200), 1)).done()
        await asyncio.sleep(2 * groups.LOOK_S)  # whoever waited for a settlement has been let go by now
        assert dying.post(settlement("b", need(200), 2)).done()
        assert set(left(slips)) == {"a", "b"}
    await dying.settled()
    assert {row["request_id"]: row["amount"] for row in await rows(dying, usage_records)} == {"a": 1, "b": 2}
    await dying.close()


async def test_a_settlement_without_a_slip_is_awaited(dying: SqliteStore, tmp_path: Path) -> None:
    for request in ("a", "b"):
        await dying.commit(admission(request, need(200)))
    kept = KeptAnswer(200, "[]", bytes(SLOT_BYTES))
    waiting = dying.post(settlement("a", need(200), 1, kept=kept, once=True))
    assert not waiting.done()
    await waiting
    assert dying.post(settlement("b", need(200), 1)).done()
    await dying.close()
    assert os.listdir(tmp_path / "slips") == []  # everything has been written: nothing is left


@pytest.mark.parametrize(("synchronous", "leaves"), [("FULL", True), ("NORMAL", True), ("EXTRA", False)])
async def test_who_fears_power_cuts_has_answers_wait_for_the_disk(
    synchronous: Literal["FULL", "NORMAL", "EXTRA"], leaves: bool, tmp_path: Path
) -> None:
    settings = settings_for("sqlite://")
    store = StoreSettings(f"sqlite:///{tmp_path}/penstock.db", synchronous)
    async with open_gateway(replace(settings, store=store), io.StringIO()):
        assert (tmp_path / "penstock.db-slips").exists() is leaves
