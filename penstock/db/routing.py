"""How an account or a key wants its calls routed: an order of its own, and what is allowed and denied, as rows.

A subject is the id of an account or of a key. What holds for one call is put together from its account's and its keys'
rows by `combined`: nobody gains what somebody above has denied.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Row, Statement, any_of, fetch, run
from penstock.db.schema import routing

_names = ("subject", "preferred", "allowed", "denied", "updated_ms")
_columns = tuple(routing.c[name] for name in _names)
OF_SUBJECTS = Statement(select(*_columns).where(any_of(routing.c.subject, "subjects")), "subjects")
_insert = insert(routing).values({name: bindparam(name) for name in _names})
WRITE = Statement(
    _insert.on_conflict_do_update(
        index_elements=[routing.c.subject], set_={name: _insert.excluded[name] for name in _names[1:]}
    ),
    *_names,
)
CLEAR = Statement(delete(routing).where(routing.c.subject == bindparam("subject")), "subject")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one subject wants: patterns for classes, providers and models. Empty lists say nothing."""

    order: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    updated_ms: int = 0


@dataclass(frozen=True, slots=True)
class Routing:
    """What holds for a call. An offer must be on every list of `allow` and on no place of `deny`."""

    order: tuple[str, ...] = ()
    allow: tuple[tuple[str, ...], ...] = ()
    deny: tuple[str, ...] = ()


def combined(subjects: Iterable[str], wanted: Mapping[str, Wanted]) -> Routing | None:
    """What the subjects want together, the nearest first (key, the keys above it, account); None for nothing.

    The nearest order counts; allow lists all have to allow, and what any of them denies is denied.
    """
    found = [wanted[subject] for subject in subjects if subject in wanted]
    if not found:
        return None
    return Routing(
        order=next((each.order for each in found if each.order), ()),
        allow=tuple(each.allow for each in found if each.allow),
        deny=tuple(pattern for each in found for pattern in each.deny),
    )


def read_routing(subjects: Collection[str]) -> Program[dict[str, Wanted]]:
    """What these subjects want, those that want something."""
    rows = yield from fetch(OF_SUBJECTS, sorted(subjects))
    return dict(map(_wanted, rows))


def write_routing(subject: str, wanted: Wanted) -> Program[None]:
    """Enter what a subject wants, in place of what it wanted before."""
    lists = (json.dumps(each) for each in (wanted.order, wanted.allow, wanted.deny))
    yield from run(WRITE, subject, *lists, wanted.updated_ms)


def clear_routing(subject: str) -> Program[None]:
    """The subject wants nothing of its own any more."""
    yield from run(CLEAR, subject)


def _wanted(row: Row) -> tuple[str, Wanted]:
    subject, order, allow, deny, updated_ms = row
    return subject, Wanted(_list(order), _list(allow), _list(deny), updated_ms)


def _list(written: str) -> tuple[str, ...]:
    return tuple(json.loads(written))
