"""Migrating: every database ends with the same schema, whoever made it and however many began at once."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from penstock.db import migrate
from penstock.db.schema import metadata
from penstock.errors import ConfigError, StoreUnavailable

SCHEMA = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic%' ORDER BY type, name"


def test_a_migrated_database_is_what_the_schema_says(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/penstock.db"
    assert (migrate.current(url), migrate.is_current(url)) == (None, False)
    migrate.run_migrations(tmp_path / "penstock.db")
    assert (migrate.current(url), migrate.is_current(url)) == (migrate.HEAD, True)
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_new_database_is_made_like_a_migrated_one(tmp_path: Path) -> None:
    migrate.run_migrations(tmp_path / "migrated.db")
    assert migrate.upgrade(f"sqlite:///{tmp_path}/made.db") is None
    with (
        closing(sqlite3.connect(tmp_path / "migrated.db")) as migrated,
        closing(sqlite3.connect(tmp_path / "made.db")) as made,
        closing(sqlite3.connect(":memory:")) as in_memory,
    ):
        migrate.create_tables(in_memory)
        assert _tables(in_memory) == _tables(made) == _tables(migrated)
        stamps = [list(each.execute("SELECT * FROM alembic_version")) for each in (made, migrated)]
        kept = [list(each.execute("PRAGMA table_info(alembic_version)")) for each in (made, migrated)]
        assert stamps == [[(migrate.HEAD,)]] * 2
        assert kept[0] == kept[1]


def test_the_newest_migration_is_the_one_that_start_up_looks_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.HEAD]


def test_the_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    migrate.upgrade(f"sqlite:///{tmp_path}/penstock.db")
    assert stat.S_IMODE((tmp_path / "penstock.db").stat().st_mode) == 0o600


def test_a_database_is_made_and_opened_without_what_it_does_not_need(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/penstock.db"
    script = (
        "import sys; from penstock.db import migrate; "
        f"print(migrate.upgrade({url!r}), "
        "*(each in sys.modules for each in ('alembic', 'sqlalchemy.dialects.postgresql', 'sqlalchemy')))"
    )
    for before, sqlalchemy in (("None", "True"), (migrate.HEAD, "False")):
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ran.stdout.split() == [before, "False", "False", sqlalchemy]


def test_a_serving_process_on_sqlite_does_not_load_what_postgresql_needs() -> None:
    script = "import sys, penstock.app; print('sqlalchemy.dialects.postgresql' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


def test_tables_that_are_not_ours_are_not_taken_for_a_database_of_ours(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "penstock.db")) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    with pytest.raises(StoreUnavailable, match="users already exists"):
        migrate.upgrade(f"sqlite:///{tmp_path}/penstock.db")
    with closing(sqlite3.connect(tmp_path / "penstock.db")) as connection:
        assert [name for _, name, _ in _tables(connection)] == ["users"]


def test_processes_that_migrate_at_once_all_find_a_whole_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/penstock.db"
    script = f"from penstock.db import migrate; migrate.upgrade({url!r}); assert migrate.is_current({url!r})"
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait(timeout=30) for process in running] == [0, 0, 0]


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/penstock.db"
    migrate.upgrade(url)
    with closing(sqlite3.connect(tmp_path / "penstock.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(ConfigError, match="newer"):
        migrate.upgrade(url)


@pytest.mark.parametrize("url", ["mysql://localhost/penstock", "sqlite://penstock.db"])
def test_another_engine_or_an_address_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        migrate.upgrade(url)


def test_what_is_no_database_is_reported_as_unavailable(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreUnavailable, match=r"text\.db"):
        migrate.upgrade(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(StoreUnavailable, match="No such file"):
        migrate.upgrade(f"sqlite:///{tmp_path}/absent/penstock.db")
    for ask in (migrate.current, migrate.upgrade, migrate.require):
        with pytest.raises(StoreUnavailable, match="name too long"):
            ask(f"sqlite:///{tmp_path}/{'x' * 300}.db")


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return [(kind, name, " ".join((sql or "").split())) for kind, name, sql in connection.execute(SCHEMA)]
