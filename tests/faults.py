"""What goes wrong with a database, made on purpose: each is a block that it lasts for.

Some are the thing itself (a server that is killed, a disk that is full), some stand in for it where the thing cannot be
had (a limit on the size of files for a disk that fails, a wire of ours for a network); each says which.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.engines import file_of, is_postgres
from tests.postgres import Replica, Server

TABLES = "accounts, credentials, lots, holds, owners, usage_records"
CHUNK = 65_536


# Of either engine.


@asynccontextmanager
async def kept_by_another(store_url: str) -> AsyncIterator[None]:
    """Somebody else works in the database: it can be read, and nobody can write until the block is left."""
    if not is_postgres(store_url):
        with closing(sqlite3.connect(file_of(store_url), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
        return
    other = await asyncpg.connect(store_url)
    try:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {TABLES} IN EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


# Of SQLite.


@contextmanager
def small_disk(folder: Path, *, megabytes: int = 4) -> Iterator[None]:
    """A disk of its own at `folder`, in memory, which is a real one as far as being full goes. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@asynccontextmanager
async def full(disk: Path) -> AsyncIterator[None]:
    """There is no room left on the disk, not for a byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def disk_that_can_hang(folder: Path) -> Iterator[None]:
    """A disk of its own at `folder`, a real file system in a file. Needs root."""
    folder.mkdir()
    image = folder.with_suffix(".image")
    image.write_bytes(b"")
    os.truncate(image, 32 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@asynccontextmanager
async def hanging(disk: Path) -> AsyncIterator[None]:
    """No write to the disk returns before the block is left."""
    await asyncio.to_thread(subprocess.run, ["fsfreeze", "--freeze", str(disk)], check=True)
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["fsfreeze", "--unfreeze", str(disk)], check=True)


@asynccontextmanager
async def failing_disk(pid: int) -> AsyncIterator[None]:
    """What a process writes fails with an I/O error: it may write no file beyond its first kilobyte.

    To SQLite that is what a broken disk is, an error of `write` other than that the disk is full.
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@asynccontextmanager
async def moved_away(file: Path) -> AsyncIterator[None]:
    """Somebody has moved the database file. He puts it back in the end."""
    elsewhere = file.with_suffix(".moved")
    os.rename(file, elsewhere)
    try:
        yield
    finally:
        os.rename(elsewhere, file)


# Of PostgreSQL.


class Way:
    """A TCP way to the server, which slows down, falls silent or breaks. `url` is the database by this way.

    Between `silent` and the end of it nothing goes either way and nothing is lost: what a network does that drops every
    packet and later is whole again, but for the pauses of TCP.
    """

    def __init__(self, server: Server, database: str) -> None:
        self.server: Server | Replica = server
        self._path = urlsplit(database).path
        self._whole = asyncio.Event()
        self._whole.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.delay_s = 0.0
        self.bytes_per_s = 10**9

    @property
    def url(self) -> str:
        return f"postgresql://{self.server.place()[0]}@127.0.0.1:{self._port}{self._path}?sslmode=disable"

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[Way]:
        await self._listen()
        try:
            yield self
        finally:
            await self._close()

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[None]:
        """Whoever waits for an answer waits, and connections that are made say nothing."""
        self._whole.clear()
        try:
            yield
        finally:
            self._whole.set()

    @asynccontextmanager
    async def cut(self) -> AsyncIterator[None]:
        """Every connection is reset, and new ones are refused."""
        await self._close()
        try:
            yield
        finally:
            await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._carry, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def break_off(self) -> None:
        """Reset every connection there is."""
        for writer in self._open:
            writer.transport.abort()

    async def _close(self) -> None:
        self._listener.close()
        await self.break_off()
        await self._listener.wait_closed()

    async def _carry(self, from_store: asyncio.StreamReader, to_store: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            from_server, to_server = await self._go_on()
        except OSError:  # nobody is there
            to_store.transport.abort()
            return
        both = {to_store, to_server}
        self._open |= both
        ways = [self._pass(from_store, to_server), self._pass(from_server, to_store)]
        done = await asyncio.wait(map(asyncio.ensure_future, ways), return_when=asyncio.FIRST_COMPLETED)
        for task in done[1]:
            task.cancel()
        self._open -= both
        for writer in both:
            writer.transport.abort()

    async def _go_on(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server itself."""
        _, place, port = self.server.place()
        if place.startswith("/"):
            return await asyncio.open_unix_connection(f"{place}/.s.PGSQL.{port}")
        return await asyncio.open_connection(place, port)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(CHUNK):
                await asyncio.sleep(self.delay_s + len(data) / self.bytes_per_s)
                await self._whole.wait()
                target.write(data)
                await target.drain()


@asynccontextmanager
async def frozen(server: Server) -> AsyncIterator[None]:
    """Every process of the server is stopped, as on a machine that hangs: connections are taken, nobody answers."""
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@asynccontextmanager
async def killed(server: Server) -> AsyncIterator[None]:
    """Every process of the server is killed; in the end it is started again and recovers."""
    await asyncio.to_thread(server.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@asynccontextmanager
async def failed_over(server: Server, replica: Replica, way: Way) -> AsyncIterator[None]:
    """The server is killed and the way leads to its replica, which only reads until, in the end, it is promoted."""
    await asyncio.to_thread(server.kill)
    way.server = replica
    await way.break_off()
    try:
        yield
    finally:
        await asyncio.to_thread(replica.promote)


@asynccontextmanager
async def read_only(server: Server, database: str) -> AsyncIterator[None]:
    """The database only reads, as when a replica has taken over that is not yet told to write; connections were cut."""
    name = urlsplit(database).path[1:]
    await tell(server, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await cut_all(server, database)
    try:
        yield
    finally:
        await tell(server, f"ALTER DATABASE {name} RESET default_transaction_read_only")


async def cut_all(server: Server, database: str) -> None:
    """End every connection to a database, from the server's side."""
    name = urlsplit(database).path[1:]
    await tell(
        server,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()",
    )


async def tell(server: Server, sql: str) -> None:
    await asyncio.to_thread(server.tell, sql)


@asynccontextmanager
async def crowded(server: Server, database: str, way: Way) -> AsyncIterator[None]:
    """Others have every connection that the server allows; ours were lost in the same moment."""
    others: list[asyncpg.Connection] = []
    async with way.cut():
        await cut_all(server, database)
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.append(await asyncpg.connect(database))
    try:
        yield
    finally:
        await asyncio.gather(*(other.close() for other in others))


@asynccontextmanager
async def waiting_for_a_replica(server: Server, database: str) -> AsyncIterator[None]:
    """No COMMIT returns: the server waits for a synchronous replica that is not there."""
    await tell(server, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await tell(server, "SELECT pg_reload_conf()")
    probe = await asyncpg.connect(database)
    with suppress(TimeoutError):  # it takes the server a moment to know
        while True:
            await probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')", timeout=0.2)
    probe.terminate()
    try:
        yield
    finally:
        await tell(server, "ALTER SYSTEM RESET synchronous_standby_names")
        await tell(server, "SELECT pg_reload_conf()")
