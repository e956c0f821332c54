"""Statements in PostgreSQL's words: each for itself, for many rows, and several as one.

Rows travel as one list in JSON, which the server takes apart: `INSERT … VALUES` becomes `INSERT … SELECT … FROM
jsonb_array_elements(…)`, and the others likewise, all derived from the construct as it is. This is text and values; who
asks the server is `postgres.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import BindParameter, Delete, Insert, LargeBinary, Update
from sqlalchemy.dialects.postgresql import dialect as postgres_dialect
from sqlalchemy.dialects.sqlite.dml import OnConflictDoNothing, OnConflictDoUpdate
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import iterate

from penstock.db.program import Fetch, Run, Statement, Value

NUMBER = "pg_current_xact_id()::text"  # of a transaction: by it the server knows later what became of it
BLOBS = 64  # rows with bytes a statement: a kept answer has up to a megabyte, and PostgreSQL takes 256 in one list

_dialect = postgres_dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_dialect.bind_typing = BindTyping.NONE  # the server knows what type each place is; the driver asks it


class Texts:
    """The statements in PostgreSQL's words, put into them once: each for itself, and those that go together."""

    def __init__(self) -> None:
        self._alone: dict[Statement, Text] = {}
        self._together: dict[tuple[Statement, ...], str] = {}

    def __repr__(self) -> str:
        return f"Texts({len(self._alone)}, {len(self._together)} together)"

    def of(self, statement: Statement) -> Text:
        text = self._alone.get(statement)
        if text is None:
            text = self._alone[statement] = Text(statement)
        return text

    def together(self, queries: Sequence[Fetch | Run]) -> str:
        """Several as one statement, each a part of it, with all their values in one list. Its only row tells the
        transaction's number, if anything is run, and what was fetched, as JSON. Parts that fetch are gone through in
        their order."""
        statements = tuple([query.statement for query in queries])
        sql = self._together.get(statements)
        if sql is None:
            parts, found, number = [], [], "NULL"
            for place, query in enumerate(queries):
                text, given = self.of(query.statement), f"($1::jsonb->{place})"
                if isinstance(query, Run):
                    parts.append(f"part{place} AS ({text.run(given)})")
                    found.append("NULL")
                    number = NUMBER
                else:
                    columns = ", ".join([f"c{n}" for n in range(text.width)])
                    parts.append(f"part{place}({columns}) AS ({text.fetch(given)})")
                    found.append(f"(SELECT json_agg(json_build_array({columns})) FROM part{place})")  # noqa: S608
            sql = f"WITH {', '.join(parts)} SELECT {number}, json_build_array({', '.join(found)})"
            self._together[statements] = sql
        return sql


class Text:
    """A statement in PostgreSQL's words: `sql` for one set of values; `many` for rows, given as a list of lists.

    Values that come in a list are taken out of it by the server: to encode one text costs next to nothing, to encode
    each value by itself more than all the rest.
    """

    __slots__ = ("_blobs", "_constants", "_construct", "_identity", "_order", "_places", "_words", "many", "sql")

    def __init__(self, statement: Statement) -> None:
        construct: Any = statement.construct
        self.sql, names, self._constants = statement.text(_dialect)
        self._construct = construct
        self._order = statement.order
        self._places = [self._order.index(name) if name in self._order else name for name in names]
        self._words: Any = (construct.inline() if isinstance(construct, Insert) else construct).compile(
            dialect=_dialect
        )
        self._blobs = any(isinstance(each.type, LargeBinary) for each in self._words.binds.values())
        self.many = ""
        self._identity: Callable[[Any], Any] | None = None
        if isinstance(construct, Insert | Update | Delete) and names:
            self.many = self.run("$1::jsonb")
            identity = [self._order.index(name) for name in _identity(construct, self._order)]
            self._identity = itemgetter(*identity) if identity else None

    def __repr__(self) -> str:
        return f"Text({self.sql!r})"

    def arrange(self, values: Sequence[Value]) -> list[Any]:
        """The values as `sql` wants them. A list is JSON to PostgreSQL."""
        found = [values[place] if isinstance(place, int) else self._constants[place] for place in self._places]
        return [as_json(value) if isinstance(value, list) else value for value in found]

    def rounds(self, rows: Sequence[Sequence[Value]]) -> Sequence[Sequence[Sequence[Value]]]:
        """The rows as `many` wants them. More than one set when they are too large together, or when rows mean the same
        row, which then is written as often as they say, in their order: one statement can touch a row but once."""
        if self._blobs and len(rows) > BLOBS:
            return [each for at in range(0, len(rows), BLOBS) for each in self.rounds(rows[at : at + BLOBS])]
        identity = self._identity
        if identity is None or len(set(map(identity, rows))) == len(rows):
            return [rows]
        seen: Counter[Any] = Counter()
        rounds: list[list[Sequence[Value]]] = []
        for row in rows:
            same = identity(row)
            if seen[same] == len(rounds):
                rounds.append([])
            rounds[seen[same]].append(row)
            seen[same] += 1
        return rounds

    @property
    def can_witness(self) -> bool:
        """Whether it inserts rows of which each says which one it is."""
        return isinstance(self._construct, Insert) and self._identity is not None

    def witness(self, row: Sequence[Value]) -> tuple[str, list[Value]]:
        """A question, with its values, which transaction has written an inserted row last: a number of 32 bits."""
        table: Any = self._construct.table
        names = [column.name for column in table.primary_key]
        which = " AND ".join(f"{name} = ${place}" for place, name in enumerate(names, 1))
        return f"SELECT xmin::text FROM {table.name} WHERE {which}", [row[self._order.index(name)] for name in names]  # noqa: S608

    @property
    def width(self) -> int:
        """How many columns come back."""
        return len(self._construct.exported_columns)

    def fetch(self, given: str) -> str:
        """The statement for one set of values, a list in JSON."""
        return self._taking_from(given, str(self._words))

    def run(self, given: str) -> str:
        """The statement for rows of values, a list of lists in JSON."""
        rows = "jsonb_array_elements(:rows) AS given"
        if isinstance(self._construct, Insert):
            place, instead = r" VALUES \((.*?)\)", rf" SELECT \1 FROM {rows}"  # noqa: S608
        else:
            word = "FROM" if isinstance(self._construct, Update) else "USING"
            place, instead = r"\s+WHERE ", f" {word} {rows} WHERE "
        many, changes = re.subn(place, instead, str(self._words), count=1)
        if not changes:
            raise LookupError(f"{self!r} cannot be run for many rows at once")
        return self._taking_from("given.value", many).replace(":rows", given)

    def _taking_from(self, given: str, words: str) -> str:
        """The statement in these words with its parameters taken from a list in JSON."""

        def taken(place: re.Match[str]) -> str:
            name = self._words.positiontup[int(place[1]) - 1]
            kind = self._words.binds[name].type
            if name in self._constants:
                return str(self._words.render_literal_value(self._constants[name], kind))
            value = f"{given}->>{self._order.index(name)}"
            if isinstance(kind, LargeBinary):
                return f"decode({value}, 'base64')"
            return f"({value})::{kind.compile(_dialect)}"

        return re.sub(r"\$(\d+)", taken, words)


def as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _identity(construct: Insert | Update | Delete, order: Sequence[str]) -> list[str]:
    """The parameters that say which row is meant; none when every row is a new one."""
    if isinstance(construct, Insert):
        key = [column.name for column in construct.table.primary_key.columns]  # type: ignore[attr-defined]
        return key if set(key) <= set(order) else []
    found = {each.key for each in iterate(construct.whereclause) if isinstance(each, BindParameter)}
    return [name for name in order if name in found]


@compiles(OnConflictDoUpdate, "postgresql")
@compiles(OnConflictDoNothing, "postgresql")
def _on_conflict(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    """The clause is the same on both engines; PostgreSQL could name a constraint as well, which ours never do."""
    element.constraint_target = None
    return str(getattr(compiler, f"visit_{element.__visit_name__}")(element, **kw))
