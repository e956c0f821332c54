"""What goes wrong with a database, made on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import asyncpg

from tests.engines import file_of, is_postgres

TABLES = "accounts, credentials, lots, holds, owners, usage_records"


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
