"""The project's own papers agree with each other: Makefile, pyproject, locks and the record of dependencies.

These tests read files of the repository and run `make help`; they import nothing of Penstock but its version.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import penstock

ROOT = Path(__file__).resolve().parents[2]
# The home and work directories of some machine, its package folders, and the hosts of package registries.
FOREIGN = re.compile(
    r"/(?:root|home/[a-z]\w*|work|Users/\w+)/|file:/{3}opt|/opt/(?:pypi|wheels)|\b(?:pypi\.org|pythonhosted\.org)"
)


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # under another make it would print directories
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == targets
    assert {"setup", "demo", "serve", "test", "check", "bench", "help"} <= set(targets)


def test_the_version_is_written_once() -> None:
    project = _pyproject()
    assert "version" in project["project"]["dynamic"]
    assert "version" not in project["project"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'__version__ = "{penstock.__version__}"' in source
    assert [path.name for path in (ROOT / "penstock").rglob("*.py") if "\n__version__ =" in path.read_text()] == [
        "__init__.py"
    ]


def test_every_dependency_has_its_reason_on_record_and_no_other_does() -> None:
    record = (ROOT / "docs/decisions/0007-dependencies.md").read_text()
    on_record = {_normal(name) for name in re.findall(r"\| `([\w-]+)` (?=\|)", record)}
    extras = set(_pyproject()["project"]["optional-dependencies"])
    assert on_record - extras == _dependencies()


def test_the_locks_cover_every_dependency_with_hashes_and_agree() -> None:
    run, dev = _pins("run"), _pins("dev")
    assert run.items() <= dev.items()
    assert _dependencies() <= dev.keys()
    assert {_name(line) for line in _pyproject()["project"]["dependencies"]} <= run.keys()
    assert not {"litellm", "torch"} & dev.keys()
    assert _pins("fuzz").keys() == {"atheris"}


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _files()
        for number, line in enumerate(_text(path).splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert found == []


def test_every_test_and_file_of_tests_that_a_paper_names_is_there() -> None:
    papers = [ROOT / "ARCHITECTURE.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(path.read_text() for path in papers)
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named - set(re.findall(r"def (test_\w+)", sources)) == set()
    files = set(re.findall(r"`(tests/[\w/.]+)`", text))
    assert {name for name in files if not (ROOT / name).exists()} == set()


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _dependencies() -> set[str]:
    """All distributions named in pyproject.toml, the build's included, without Penstock itself."""
    project = _pyproject()
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    return {_name(line) for lines in lists for line in lines} - {"penstock"}


def _pins(lock: str) -> dict[str, set[str]]:
    """Distribution -> its pinned versions (more than one when Pythons differ). Every pin has hashes."""
    pins: dict[str, set[str]] = {}
    for pin in re.split(r"\n(?=[a-z])", (ROOT / f"requirements/{lock}.lock").read_text())[1:]:
        assert "--hash=sha256:" in pin, pin
        name, version = re.match(r"([\w.-]+)==(\S+)", pin).groups()  # type: ignore[union-attr]
        pins.setdefault(_normal(name), set()).add(version)
    return pins


def _name(requirement: str) -> str:
    return _normal(re.split(r"[^\w.-]", requirement)[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files() -> Iterator[Path]:
    """The files of the tree; not what tools leave in dotted or cache directories."""
    for path in ROOT.rglob("*"):
        directories = path.relative_to(ROOT).parts[:-1]
        made_by_tools = path.name == ".git" or any(
            part == "__pycache__" or (part.startswith(".") and part != ".ci") for part in directories
        )
        if path.is_file() and not made_by_tools:
            yield path


def _text(path: Path) -> str:
    """What a file says, or nothing when it is no text."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""
