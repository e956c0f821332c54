"""What Alembic runs to migrate: on the connection it is handed, in one transaction, alone with the database.

`penstock/db/migrate.py` is the only one to start it. Two processes that begin together take turns; the second finds
nothing to do. For PostgreSQL the migrations are written down as SQL, which `migrate.py` runs in the same way.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, event
from sqlalchemy.pool import StaticPool

from penstock.db.schema import metadata


def migrate() -> None:
    """Carry out the migrations; all of them happen or none."""
    given = context.config.attributes["connection"]
    engine = create_engine("sqlite://", creator=lambda: given, poolclass=StaticPool)
    # The driver starts no transaction by itself (isolation_level None), so that this one takes the write lock at once.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        context.run_migrations()


def write_down() -> None:
    """Write the migrations as PostgreSQL's SQL, without a transaction around them, into the output buffer."""
    context.configure(dialect_name="postgresql", target_metadata=metadata)
    context.run_migrations()


write_down() if context.is_offline_mode() else migrate()
