"""What a command prints: JSON for programs, tables for people. It knows nothing of what the values mean.

They may come from anywhere, so that only what can be printed is: the rest would be orders to a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer

WIDE = 200  # columns when the output is no terminal: nothing is cut off in a file


def show_json(value: Any) -> None:
    """The value as it came, the same from every door."""
    typer.echo(json_text(value, indent=2))


def show_text(text: str, *, err: bool = False) -> None:
    """A line, or several, on standard output or on standard error."""
    typer.echo(printable(text), err=err)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, in which what cannot be printed is escaped as JSON has it."""
    written = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(each if _is_plain(each) else json.dumps(each)[1:-1] for each in written)


def printable(text: str) -> str:
    """The text with what cannot be printed as `\\x1b`; lines stay lines."""
    return "".join(each if _is_plain(each) else ascii(each)[1:-1] for each in text)


def show_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """A table with a row for each dictionary; `columns` are what is shown of them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numbers = any(_is_number(row.get(column)) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    _print(table)


def show_fields(value: dict[str, Any]) -> None:
    """Names and values, one a line; what is empty is left out, and so are lists of things."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, each in value.items():
        if each not in (None, "", []) and not (isinstance(each, list) and isinstance(each[0], dict)):
            table.add_row(name.replace("_", " "), _cell(each))
    _print(table)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False).print(table)


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text(_words(value))


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return f"${_words(value['usd'])}" if "usd" in value else ", ".join(_words(each) for each in value.values())
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _is_plain(character: str) -> bool:
    return character.isprintable() or character == "\n"


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, dict) and "usd" in value)
