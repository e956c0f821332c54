"""Who has dialled in, on whichever process: rows that the process with the connection writes and all others read.

A row says what a peer offers, how many jobs it has and where its process can be asked (`address`, on a private
network). `beat` changes at least every few seconds; a row whose beat does not change any more is nobody's
(`recovery.Sightings`), and a process that is buried takes its rows with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Run, Statement, fetch
from penstock.db.schema import workers

TOLD_TO_LEAVE = 2  # of a row's `draining`; 1 is a peer that said so itself, and does not come back

_names = tuple(column.name for column in workers.columns)
_row = insert(workers).values({name: bindparam(name) for name in _names})
WRITE_WORKER = Statement(
    _row.on_conflict_do_update(
        index_elements=[workers.c.id],
        set_={name: getattr(_row.excluded, name) for name in ("offer", "outstanding", "draining", "beat")},
    ),
    *_names,
)
WORKERS_ELSEWHERE = Statement(
    select(workers).where(workers.c.owner_id != bindparam("owner")).order_by(workers.c.id), "owner"
)
DROP_WORKER = Statement(delete(workers).where(workers.c.id == bindparam("id")), "id")
DROP_WORKERS_OF = Statement(delete(workers).where(workers.c.owner_id == bindparam("owner")), "owner")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A connected peer as the store knows it; the fields are the table's columns, in order. `offer` is JSON."""

    id: str
    owner_id: str
    kind: str
    credential_id: str
    account_id: str
    shared: int
    address: str
    offer: str
    outstanding: int
    draining: int
    beat: int
    connected_ms: int


def note_workers(present: Sequence[WorkerRow], gone: Sequence[str]) -> Program[None]:
    """Write how these stand now, and forget those that have gone."""
    if gone:
        yield Run(DROP_WORKER, [(id,) for id in gone])
    if present:
        yield Run(WRITE_WORKER, [tuple(getattr(each, name) for name in _names) for each in present])


def workers_elsewhere(owner: str) -> Program[list[WorkerRow]]:
    """Everybody who is connected to another process than this one."""
    return [WorkerRow(*row) for row in (yield from fetch(WORKERS_ELSEWHERE, owner))]
