"""Which secrets the database is used with, as fingerprints: who comes with others would make keys that no gateway
knows, and know none that were made. What a fingerprint is says `config_secrets.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import bindparam, select
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Run, Statement, fetch
from penstock.db.schema import credentials, fingerprints

_names = ("secret", "fingerprint")
_row = insert(fingerprints)
_values = _row.values({name: bindparam(name) for name in _names})
KNOWN = Statement(select(fingerprints.c.secret, fingerprints.c.fingerprint))
NOTE = Statement(_values.on_conflict_do_nothing(), *_names)
REPLACE = Statement(
    _values.on_conflict_do_update(
        index_elements=[fingerprints.c.secret], set_={"fingerprint": _row.excluded.fingerprint}
    ),
    *_names,
)
ANY_KEY = Statement(select(credentials.c.id).limit(1))


def known_fingerprints() -> Program[dict[str, str]]:
    """The fingerprint of each secret; empty where none was ever noted."""
    rows = yield from fetch(KNOWN)
    return {secret: fingerprint for secret, fingerprint in rows}  # noqa: C416 -- a row is no pair to mypy


def note_fingerprints(mine: Mapping[str, str]) -> Program[dict[str, str]]:
    """Note the fingerprints of secrets of which none is known; those that are known then."""
    yield Run(NOTE, sorted(mine.items()))
    return (yield from known_fingerprints())


def note_first_fingerprints(mine: Mapping[str, str]) -> Program[dict[str, str]]:
    """The same, where no key was made yet; in a database with keys none of which is known, none is noted."""
    if (yield from fetch(ANY_KEY)):
        return (yield from known_fingerprints())
    return (yield from note_fingerprints(mine))


def replace_fingerprints(mine: Mapping[str, str]) -> Program[list[str]]:
    """Have these be the ones from now on; the names of those secrets that were known as others."""
    known = yield from known_fingerprints()
    yield Run(REPLACE, sorted(mine.items()))
    return [name for name, fingerprint in mine.items() if known.get(name, fingerprint) != fingerprint]
