"""The prices that were ever in force, by version: usage records name the version they were charged with."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Run, Statement
from penstock.db.schema import prices

_names = ("version", "price", "created_ms")
WRITE_PRICE = Statement(
    insert(prices).values({name: bindparam(name) for name in _names}).on_conflict_do_nothing(), *_names
)


def note_prices(versions: Mapping[str, str], now_ms: int) -> Program[None]:
    """Keep prices (JSON by version) that are not known yet."""
    if versions:
        yield Run(WRITE_PRICE, [(version, price, now_ms) for version, price in sorted(versions.items())])
