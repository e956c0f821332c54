"""Brings a database to the schema this version of Penstock works with.

`upgrade` runs the migrations in `migrations/` with Alembic. Whether there is anything to run is read with bare
sqlite3, so that a start on a database that is up to date does not import Alembic. A database in memory has no past:
it is made from the schema.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from penstock.config_secrets import sqlite_file
from penstock.errors import ConfigError, StoreUnavailable

HEAD = "0001"  # the newest migration there is; a test compares
WAIT_S = 30.0  # for another process that is migrating the same database


def upgrade(url: str) -> str | None:
    """Bring the database at `url` up to date; the revision it was at, None when it was empty.

    The file is made when there is none, readable by its owner alone. StoreUnavailable when it cannot be opened,
    ConfigError when it is of a newer Penstock, or not SQLite.
    """
    before = current(url)
    path = _file(url)
    if path is None or before == HEAD:
        return before
    if before is not None and before > HEAD:
        raise ConfigError([f"store.url: {path} is at revision {before}, which a newer Penstock has made"])
    try:
        _create(path)
        _run_migrations(path)
    except (OSError, sqlite3.Error) as error:
        raise _unavailable(path, error) from error
    return before


def current(url: str) -> str | None:
    """The revision of the database at `url`; None when nothing is there yet. Nothing is created."""
    path = _file(url)
    if path is None or not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    except sqlite3.Error as error:
        raise _unavailable(path, error) from error
    return None if found is None else str(found[0])


def is_current(url: str) -> bool:
    """Whether `upgrade` has nothing to do. A database in memory is always as it should be."""
    return _file(url) is None or current(url) == HEAD


def create_in_memory(connection: sqlite3.Connection) -> None:
    """Make every table of the schema in a new database."""
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
        raise ConfigError(["store.url: this version of Penstock keeps its books in SQLite (sqlite:///penstock.db)"])
    return sqlite_file(url)


def _create(path: Path) -> None:
    """An empty file with the right permissions, unless it exists; SQLite gives its companions the same."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _run_migrations(path: Path) -> None:
    from alembic import command  # noqa: PLC0415 -- slow to import, needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    scripts = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with closing(sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


def _unavailable(path: Path, error: Exception) -> StoreUnavailable:
    reason = error.strerror if isinstance(error, OSError) else error
    return StoreUnavailable(f"The database {path} cannot be opened: {reason}.")
