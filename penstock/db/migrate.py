"""Brings a database to the schema this version of Penstock works with.

`upgrade` runs the migrations in `migrations/` with Alembic. Whether there is anything to run is asked on the bare
driver, so that a start on a database that is up to date does not import Alembic, which takes half a second and 10 MB. A
new SQLite database has no past: it is made from the schema, and a test holds that the migrations come to the same.

On PostgreSQL, Alembic writes the migrations as SQL and asyncpg runs it, in one transaction: a migration may say
anything there that needs no answer from the database.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import ssl
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from penstock.config_secrets import sqlite_file
from penstock.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    import asyncpg
    from alembic.config import Config

T = TypeVar("T")

HEAD = "0008"  # the newest migration there is; a test compares
WAIT_S = 30.0  # for another process that is migrating the same database
TURN = 0x6D696772617465  # "migrate" in ASCII: the advisory lock of the process whose turn it is
REVISION = "SELECT version_num FROM alembic_version"
VERSION_TABLE = (  # where Alembic keeps how far a database is
    "CREATE TABLE alembic_version "
    "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


def upgrade(url: str) -> str | None:
    """Bring the database at `url` up to date; the revision it was at, None when it was empty.

    A SQLite file is made when there is none, readable by its owner alone. StoreUnavailable when the database cannot be
    opened, ConfigError when it is of a newer Penstock or of another engine.
    """
    before = current(url)
    if is_postgres(url):
        return before if before == HEAD else _finish(_upgrade_server(url))
    path = _file(url)
    if path is None or before == HEAD:
        return before
    _refuse_newer(before, str(path))
    try:
        _create(path)
        if before is not None or not _make(path):
            run_migrations(path)
    except (OSError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error
    return before


def current(url: str) -> str | None:
    """The revision of the database at `url`; None when nothing is there yet. Nothing is created."""
    if is_postgres(url):
        return _finish(_revision_of_server(url))
    path = _file(url)
    if path is None or not _exists(path):
        return None
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            found = connection.execute(REVISION).fetchone() if known else None
    except sqlite3.Error as error:
        raise _unavailable(path, error) from error
    return None if found is None else str(found[0])


def is_current(url: str) -> bool:
    """Whether `upgrade` has nothing to do. A database in memory is always as it should be."""
    return current(url) == HEAD or not (is_postgres(url) or _file(url))


def require(url: str) -> None:
    """StoreUnavailable when there is no database at `url`: one that others use, or whose books somebody wants to see,
    must not be made anew where it is missing."""
    path = None if is_postgres(url) else _file(url)
    if path is not None and not _exists(path):
        raise StoreUnavailable(f"There is no database at {path}.")


def is_postgres(url: str) -> bool:
    """Whether `url` names a PostgreSQL database."""
    return url.startswith("postgresql://")


def create_tables(connection: sqlite3.Connection) -> None:
    """Make every table of the schema in a new database, with their indexes."""
    from sqlalchemy.dialects.sqlite import dialect  # noqa: PLC0415 -- not needed to ask whether all is up to date
    from sqlalchemy.schema import CreateIndex, CreateTable  # noqa: PLC0415

    from penstock.db.schema import metadata  # noqa: PLC0415

    words = dialect()
    for table in metadata.sorted_tables:
        connection.execute(str(CreateTable(table).compile(dialect=words)))
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            connection.execute(str(CreateIndex(index).compile(dialect=words)))


def _file(url: str) -> Path | None:
    """The database file; None for a database in memory. ConfigError for another engine."""
    if url != "sqlite://" and not url.startswith("sqlite:///"):
        raise ConfigError(["store.url: is neither sqlite:///penstock.db nor postgresql://user@host/database"])
    return sqlite_file(url)


def _exists(path: Path) -> bool:
    """Whether the file is there. StoreUnavailable when that cannot be found out."""
    try:
        return path.exists()
    except OSError as error:
        raise _unavailable(path, error) from error


def _create(path: Path) -> None:
    """An empty file with the right permissions, unless it exists; SQLite gives its companions the same."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _make(path: Path) -> bool:
    """Make what a database without anything in it should have. Whether it was one."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            return False
        create_tables(connection)
        connection.execute(VERSION_TABLE)
        connection.execute("INSERT INTO alembic_version VALUES (?)", (HEAD,))
        connection.execute("COMMIT")
    return True


def run_migrations(path: Path) -> None:
    """Bring a SQLite database up to date from wherever it is; from nothing, too."""
    from alembic import command  # noqa: PLC0415 -- slow to import, needed once in a database's life
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    config = _config()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)) as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, HEAD)
        except DBAPIError as error:  # what the driver has raised, in a wrapping
            raise error.orig or error from error


def _config(output: StringIO | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config(output_buffer=output)
    scripts = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    return config


def _refuse_newer(revision: str | None, database: str) -> None:
    if revision is not None and revision > HEAD:
        raise ConfigError([f"store.url: {database} is at revision {revision}, which a newer Penstock has made"])


def _unavailable(path: Path, error: Exception) -> StoreUnavailable:
    reason = error.strerror if isinstance(error, OSError) else error
    return StoreUnavailable(f"The database {path} cannot be opened: {reason}.")


async def _revision_of_server(url: str) -> str | None:
    async with _connected(url) as connection:
        return await _read_revision(connection)


async def _upgrade_server(url: str) -> str | None:
    """Migrate when it is our turn; the revision there was then."""
    async with _connected(url) as connection, connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({TURN})")
        before = await _read_revision(connection)
        _refuse_newer(before, server_name(url))
        if before != HEAD:
            await connection.execute(_sql_from(before))
    return before


async def _read_revision(connection: asyncpg.Connection) -> str | None:
    if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
        return None
    found = await connection.fetchval(REVISION)
    return None if found is None else str(found)


def _sql_from(revision: str | None) -> str:
    """The migrations from `revision` to the newest, as PostgreSQL's SQL."""
    from alembic import command  # noqa: PLC0415 -- slow to import, needed once in a database's life

    written = StringIO()
    command.upgrade(_config(written), f"{revision or 'base'}:{HEAD}", sql=True)
    return written.getvalue()


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a server. StoreUnavailable when it goes wrong, ConfigError when it never can go right."""
    try:
        import asyncpg  # noqa: PLC0415 -- comes with an extra
    except ImportError as error:
        raise ConfigError(["store.url: PostgreSQL needs the extra: pip install 'penstock[postgres]'"]) from error
    try:
        async with asyncio.timeout(WAIT_S):
            try:
                connection = await asyncpg.connect(url)
            except asyncpg.exceptions.ClientConfigurationError as error:
                raise ConfigError([f"store.url: {error}"]) from error
            except ssl.SSLError:  # which a wrong certificate makes a ValueError as well
                raise
            except (ValueError, OverflowError):  # whose words may be a piece of the password
                raise ConfigError(["store.url: is no address; write special characters in a password as %XX"]) from None
            try:
                yield connection
            finally:
                connection.terminate()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = str(error) or f"it has not answered for {WAIT_S:.0f} seconds"
        raise StoreUnavailable(f"The database {server_name(url)} cannot be opened: {reason}.") from error


def server_name(url: str) -> str:
    """The database of a `postgresql://` address and its host, without who connects and how."""
    parts = urlsplit(url)
    return f"{parts.path.removeprefix('/')} at {parts.hostname or 'this machine'}"


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run asynchronous work to its end, whether or not the caller has an event loop. At start nothing else goes on."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
