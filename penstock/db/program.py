"""Programs: what to ask the database, apart from how it is asked.

A `Program` is a generator. It yields `Fetch` (rows come back), `Run` (rows are written, nothing comes back) or several
of these `Together`, decides, and returns a result. It does no I/O, so the same text runs in a thread on SQLite and on a
connection of PostgreSQL, and can be tested by feeding it rows. Parameters are int, str, bytes, None, or a list of str
for `any_of`; no type of ours ever meets a driver's idea of it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import BindParameter, ColumnElement, bindparam
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import Boolean, Text

EACH = "/* each of */ "  # before the place on SQLite that is made as many as there are values

T = TypeVar("T")
Value = int | str | bytes | None | list[str]
Row = Sequence[Any]


class Statement:
    """A SQLAlchemy Core construct and the order in which its parameters are given. Compiled once by each engine."""

    __slots__ = ("construct", "order")

    def __init__(self, construct: Executable, *order: str) -> None:
        self.construct = construct
        self.order = order

    def __repr__(self) -> str:
        return f"Statement({self.construct}, order={self.order})"

    def text(self, dialect: Dialect) -> tuple[str, tuple[str | int, ...], dict[str, Value]]:
        """`(SQL, parameter names in the order the SQL wants them, constants)` in one engine's words."""
        compiled: Any = self.construct.compile(dialect=dialect)  # type: ignore[attr-defined]
        names = tuple(compiled.positiontup or ())
        constants = {name: compiled.params[name] for name in names if name not in self.order}
        missing = [name for name, constant in constants.items() if constant is None]
        if missing:
            raise LookupError(f"{self!r} does not say where {missing} come")
        return str(compiled), names, constants


@dataclass(frozen=True, slots=True)
class Fetch:
    """Run the statement once; its rows come back as tuples."""

    statement: Statement
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Run:
    """Run the statement once for each row of values; nothing comes back."""

    statement: Statement
    rows: Sequence[Sequence[Value]]


@dataclass(frozen=True, slots=True)
class Together:
    """Queries on different tables, of which none needs what another writes: one round trip where a round trip counts.

    What they find comes back in a list for each. No bytes and no sums among it: it may be told as JSON.
    """

    queries: Sequence[Fetch | Run]


Query = Fetch | Run | Together
Program = Generator[Query, list[Any], T]


def fetch(statement: Statement, *values: Value) -> Generator[Fetch, list[Any], list[Row]]:
    """`rows = yield from fetch(SELECT_KEYS, account_id)`: the values in the statement's order."""
    return (yield Fetch(statement, values))


def run(statement: Statement, *values: Value) -> Generator[Run, list[Any], None]:
    """`yield from run(INSERT_ACCOUNT, id, name)`: one row."""
    yield Run(statement, (values,))


class any_of(ColumnElement[bool]):  # noqa: N801 -- reads as a function in statements
    """`column` is one of the strings in the list parameter `name`."""

    inherit_cache = False
    type = Boolean()

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        self.parameter: BindParameter[str] = bindparam(name, type_=Text())

    def self_group(self, against: Any = None) -> Any:
        """As it is: SQLite would compare it with 1 otherwise, and then no index helps."""
        return self


class each_of(any_of):  # noqa: N801
    """The same, for a statement without a limit or an order of all its rows, which may come in several goes: faster
    where a statement costs no round trip. Once in a statement, and each value once in the list."""

    inherit_cache = False


@compiles(each_of, "sqlite")
def _each_of_sqlite(element: each_of, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} IN ({EACH}{compiler.process(element.parameter, **kw)})"


@compiles(any_of, "sqlite")
def _any_of_sqlite(element: any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = compiler.process(element.column, **kw), compiler.process(element.parameter, **kw)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608 -- names from the schema, values bound


@compiles(any_of, "postgresql")
@compiles(each_of, "postgresql")
def _any_of_postgresql(element: any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = compiler.process(element.column, **kw), compiler.process(element.parameter, **kw)
    return f"{column} = ANY(ARRAY(SELECT jsonb_array_elements_text({values}::jsonb)))"
