"""The ledger, from outside: do the books add up? What the books are is `penstock/db/ledger.py`."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.db.journal import Difference, verify
from penstock.db.store import LONG_READ_S
from penstock.operations.actor import Actor
from penstock.operations.office import Office


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether every balance is what the journal, the open holds and the usage records make it."""

    ok: bool
    differences: tuple[Difference, ...]


async def verify_ledger(office: Office, actor: Actor) -> Verification:
    """Compute every balance anew from the journal, the open holds and the usage records, and compare."""
    await office.store.settled()
    differences = await office.store.read(verify(), within_s=LONG_READ_S)
    return Verification(not differences, tuple(differences))
