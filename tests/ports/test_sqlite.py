"""What the store on SQLite asks of the library below it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from penstock.db import groups
from penstock.db.journal import ALL_LOTS
from penstock.db.program import Program, fetch
from penstock.db.sqlite import LONG_READS, SqliteStore
from penstock.db.store import LONG_READ_S
from penstock.errors import OutcomeUnknown
from tests.ledger import HandClock, admission, furnish, lot, make_tables, need

HAS_MUTEX = """
import _sqlite3, ctypes, sys
from penstock.db.mutexes import drop_mutexes
done = drop_mutexes() if sys.argv[1] == "drop" else None
library, database = ctypes.CDLL(_sqlite3.__file__), ctypes.c_void_p()
assert library.sqlite3_open(b":memory:", ctypes.byref(database)) == 0
library.sqlite3_db_mutex.restype = ctypes.c_void_p
library.sqlite3_db_mutex.argtypes = [ctypes.c_void_p]
library.sqlite3_memory_used.restype = ctypes.c_int64
print(done, bool(library.sqlite3_db_mutex(database)), library.sqlite3_memory_used() > 0)
"""


@pytest.mark.parametrize(("how", "said"), [("leave", "None True True"), ("drop", "True False False")])
def test_connections_have_no_mutex_once_it_is_dropped(how: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HAS_MUTEX, how], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == said.split()


class Watched:
    """A driver's connection that sees whether two threads use it at once. It waits in COMMIT until it is `released`."""

    def __init__(self, driver: Any) -> None:
        self.committing, self.released = threading.Event(), threading.Event()
        self.shared = False
        self._driver = driver
        self._in_use = threading.Lock()

    def execute(self, sql: str, *values: Any) -> Any:
        return self._alone(lambda: self._execute(sql, *values))

    def executemany(self, sql: str, rows: Any) -> Any:
        return self._alone(lambda: self._driver.executemany(sql, rows))

    def close(self) -> None:
        self._alone(self._driver.close)

    @property
    def in_transaction(self) -> bool:
        return bool(self._alone(lambda: self._driver.in_transaction))

    def _execute(self, sql: str, *values: Any) -> Any:
        if sql == "COMMIT":
            self.committing.set()
            assert self.released.wait(30)
        return self._driver.execute(sql, *values)

    def _alone(self, use: Any) -> Any:
        alone = self._in_use.acquire(blocking=False)
        self.shared = self.shared or not alone
        try:
            return use()
        finally:
            if alone:
                self._in_use.release()


async def test_a_store_that_is_closed_while_the_disk_hangs_leaves_its_connection_to_the_thread_that_commits(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "CLOSE_S", 0.05)
    path = tmp_path / "penstock.db"
    make_tables(str(path))
    store = SqliteStore(str(path), clock=clock)
    await store.write(furnish())
    await store.write(lot("lot_1", 10_000))
    watched = Watched(store._writer.driver)
    monkeypatch.setattr(store._writer, "driver", watched)
    decision = store.commit(admission("req_1", need(100)))
    assert await asyncio.to_thread(watched.committing.wait, 30)
    closing = asyncio.create_task(store.close())
    with pytest.raises(OutcomeUnknown):
        await decision
    watched.released.set()
    async with asyncio.timeout(30):
        await closing
    assert not watched.shared


async def test_a_long_read_that_nobody_waits_for_keeps_its_place_until_it_ends(
    tmp_path: Path, clock: HandClock
) -> None:
    path = tmp_path / "penstock.db"
    make_tables(str(path))
    store = SqliteStore(str(path), clock=clock)
    released, running = threading.Event(), threading.Semaphore(0)

    def slow() -> Program[int]:
        yield from fetch(ALL_LOTS)
        running.release()
        assert released.wait(30)
        return 1

    async def begun(count: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(store.read(slow(), within_s=LONG_READ_S)) for _ in range(count)]

    left = await begun(LONG_READS)
    for _ in left:
        assert await asyncio.to_thread(running.acquire, timeout=30)
    for each in left:
        each.cancel()
    await asyncio.wait(left)
    waiting = await begun(1)
    assert not await asyncio.to_thread(running.acquire, timeout=0.2)
    released.set()
    assert await asyncio.gather(*waiting) == [1]
    await store.close()


async def test_many_long_reads_leave_threads_for_others(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "penstock.db"
    make_tables(str(path))
    store = SqliteStore(str(path), clock=clock)
    released = threading.Event()

    def slow() -> Program[int]:
        yield from fetch(ALL_LOTS)
        assert released.wait(30)
        return 1

    reads = [asyncio.create_task(store.read(slow(), within_s=LONG_READ_S)) for _ in range(40)]
    try:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)  # all of them have begun
            await asyncio.to_thread(len, "as for a name")
            assert await store.read(fetch(ALL_LOTS)) == []
    finally:
        released.set()
    assert await asyncio.gather(*reads) == [1] * 40
    await store.close()
