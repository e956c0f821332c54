"""From a TOML table to a settings dataclass, noting every mistake with its line.

What a table may hold is read off the dataclass: this module knows no setting by name. Which tables there are is
`config_file.py`, what a single value must be `config_value.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from penstock.config_value import WrongValueError, convert, did_you_mean, wrong
from penstock.toml_lines import Path

T = TypeVar("T")

WITHOUT_UNIT = {"price_nano_per_mtok": "price", "expires_ms": "expires"}  # in a file the value shows its unit


class Mistakes:
    """What is wrong, each with its place. Those of the environment come last."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self._file = file
        self._lines = lines
        self._notes: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"Mistakes({len(self)} in {self._file})"

    def __len__(self) -> int:
        return len(self._notes)

    def at(self, path: Path, message: str) -> None:
        """Note a mistake at a key; where the key is not written, the line is its table's."""
        known = path
        while known and known not in self._lines:
            known = known[:-1]
        line = self._lines.get(known, 1)
        name = ".".join(_shown(part) for part in path if isinstance(part, str))
        self._notes.append((line, f"{self._file}:{line}: {name}: {message}"))

    def in_environment(self, variable: str, message: str) -> None:
        """Note a mistake in an environment variable."""
        self._notes.append((float("inf"), f"environment: {variable}: {message}"))

    def in_order(self) -> list[str]:
        """The messages, by line."""
        return [note for _, note in sorted(self._notes, key=lambda note: note[0])]


class TableReader:
    """Reads tables of one document."""

    def __init__(self, mistakes: Mistakes) -> None:
        self.mistakes = mistakes

    def __repr__(self) -> str:
        return f"TableReader({self.mistakes!r})"

    def table(
        self, kind: type[T], raw: object, path: Path, given: Mapping[str, Any] | None = None, beside: Iterable[str] = ()
    ) -> T | None:
        """A `kind` from a table and the fields `given` otherwise; None when anything in it is wrong.

        Keys `beside` may stand in the table too; the caller reads them.
        """
        if not isinstance(raw, dict):
            self.mistakes.at(path, str(wrong("a table", raw)))
            return None
        before = len(self.mistakes)
        keys = written_keys(kind, given or ())
        self.refuse_unknown(raw, [*keys, *beside], path)
        hints = get_type_hints(kind, include_extras=True)
        values = dict(given or {})
        for key, field in keys.items():
            if key in raw:
                values[field.name] = self.value(hints[field.name], raw[key], (*path, key))
            elif field.default is MISSING:
                self.mistakes.at((*path, key), "is missing")
        return kind(**values) if len(self.mistakes) == before else None

    def value(self, hint: Any, raw: object, path: Path) -> Any:
        """The value `hint` asks for, or None, noted, when it is wrong."""
        kind = next((part for part in get_args(hint) if is_dataclass(part)), None)
        if isinstance(kind, type):
            return self._tables(kind, raw, path) if get_origin(hint) is tuple else self.table(kind, raw, path)
        try:
            return convert(hint, raw)
        except WrongValueError as error:
            self.mistakes.at(path, str(error))
            return None

    def refuse_unknown(self, raw: Iterable[str], known: Iterable[str], path: Path) -> None:
        """Note each key that is not a known one."""
        for key in raw:
            if key not in known:
                self.mistakes.at((*path, key), f"is not a setting{did_you_mean(key, known)}")

    def _tables(self, kind: type[T], raw: object, path: Path) -> tuple[T, ...]:
        if not isinstance(raw, list):
            self.mistakes.at(path, str(wrong("a list of tables", raw)))
            return ()
        read = [self.table(kind, item, (*path, index)) for index, item in enumerate(raw)]
        return tuple(item for item in read if item is not None)


def written_keys(kind: type, given: Iterable[str] = ()) -> dict[str, Any]:
    """What a table for `kind` may hold: key in the file -> dataclass field, without the fields `given` otherwise."""
    return {WITHOUT_UNIT.get(field.name, field.name): field for field in fields(kind) if field.name not in given}


def _shown(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)
