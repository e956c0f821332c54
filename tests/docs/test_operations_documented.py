"""The list of operations, the command line and their two pages say the same."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from typer.main import get_command

from penstock.cli.desk import ExitCode, open_desk
from penstock.cli.main import program
from penstock.operations.choices import KeyKind
from penstock.operations.index import OPERATIONS, Operation

ROOT = Path(__file__).resolve().parents[2]
CLI_PAGE = (ROOT / "docs/cli.md").read_text()
OPERATIONS_PAGE = (ROOT / "docs/operations.md").read_text()
COMMON = {"--json", "--config", "--database-url", "--url", "--key"}


def test_every_operation_is_documented_with_address_scope_and_parameters() -> None:
    table = re.findall(r"^\| `([\w.]+)` \| (.+?) \| `(\w+)` \| (.*?)\|$", OPERATIONS_PAGE, re.MULTILINE)
    documented = {name: (address, scope, _quoted(parameters)) for name, address, scope, parameters in table}
    assert documented == {
        each.name: (f"`{each.method} {each.path}`" if each.method else "not over HTTP", each.scope, _parameters(each))
        for each in OPERATIONS
    }


def test_every_command_is_documented_with_its_options_and_no_other() -> None:
    table = re.findall(r"^\| `penstock ([^`]+)` \| (.*?) ?\| ", CLI_PAGE, re.MULTILINE)
    documented = {_words(command): (_places(command), _quoted(options)) for command, options in table}
    assert documented == {
        words: (_arguments(command), [option for option in _options(command) if option not in COMMON])
        for words, command in _commands(get_command(program()), ())
    }


def test_every_common_option_and_exit_code_is_documented() -> None:
    assert all(f"`{option} " in CLI_PAGE or f"`{option}`" in CLI_PAGE for option in COMMON)
    assert len(inspect.signature(open_desk).parameters) == len(COMMON)
    codes = re.findall(r"^\| (\d) \|", CLI_PAGE, re.MULTILINE)
    assert sorted(map(int, codes)) == sorted({*map(int, ExitCode), 2})


def test_every_operation_has_a_command_and_every_command_passes_what_the_operation_takes() -> None:
    passed = dict(_performed())
    assert passed == {each.name: _parameters(each) for each in OPERATIONS}
    on_page = re.findall(r"^\| `penstock [^`]+` \| .*? ?\| `([\w.]+)`", CLI_PAGE, re.MULTILINE)
    assert on_page == [each.name for each in OPERATIONS]


def test_every_kind_of_key_is_documented() -> None:
    kinds = re.findall(r"^\| `(\w+)` \| `(?:user|team|pen|ak|wrk|tls)\S*", OPERATIONS_PAGE, re.MULTILINE)
    assert set(kinds) == set(get_args(KeyKind))


def _parameters(operation: Operation) -> list[str]:
    parameters = inspect.signature(operation.function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _performed() -> Iterator[tuple[str, list[str]]]:
    """Each `desk.perform("name", parameter=…)` in the sources of the command line."""
    for path in (ROOT / "penstock/cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "desk.perform":
                assert isinstance(node.args[0], ast.Constant)
                yield str(node.args[0].value), [keyword.arg or "" for keyword in node.keywords]


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, each in inner.items():
        yield from _commands(each, (*words, name))


def _options(command: Any) -> list[str]:
    return [each.opts[0] for each in command.params if each.param_type_name == "option"]


def _arguments(command: Any) -> list[str]:
    return [each.name.upper() for each in command.params if each.param_type_name == "argument"]


def _words(written: str) -> tuple[str, ...]:
    return tuple(word for word in written.split() if not word.isupper())


def _places(written: str) -> list[str]:
    return [word for word in written.split() if word.isupper()]


def _quoted(written: str) -> list[str]:
    return re.findall(r"`([^`]+)`", written)
