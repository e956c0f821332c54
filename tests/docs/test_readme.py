"""What the papers say is so: their commands work, their links lead somewhere, what they name is there.

Blocks marked `sh` and `python` in README, quickstart, API page and the pages of clients are run as they stand, page by
page and in order, by one shell in an empty folder, against a gateway in this process. Blocks marked `console`
(starting, placeholders) are not run; their make targets and commands must exist. Other marks are for reading.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.main import get_command

from penstock.access import Access
from penstock.api.wire import Wire
from penstock.cli.main import program
from penstock.config import Settings
from penstock.config_file import load
from tests.engines import ON_POSTGRES, SECRETS, is_postgres
from tests.stories.gateway import ROUTER_V1, TRUST, Running, running

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "penstock"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN = (  # half the commands are new processes, so the long pages run on one engine each
    ("README.md", "sqlite"),
    pytest.param("README.md", "postgres", marks=ON_POSTGRES),
    ("docs/quickstart.md", "sqlite"),
    pytest.param("docs/api.md", "postgres", marks=ON_POSTGRES),
)
NOT_HERE = ("README", "llamaindex")  # a list of pages, and a client that has an environment of its own
CLIENTS = {each.stem: each.read_text() for each in (ROOT / "docs/clients").glob("*.md") if each.stem not in NOT_HERE}
WRITTEN_ADDRESS = "http://127.0.0.1:8420"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# curl succeeds on any status, so the shell of the tests adds what makes it fail on a refusal.
PRELUDE = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; }\n'


@pytest.fixture
def variables(store_url: str) -> dict[str, str]:
    """The secrets, and what names the database; SQLite's is where `penstock` looks when it is run in the folder."""
    return SECRETS | ({"PENSTOCK_DATABASE_URL": store_url} if is_postgres(store_url) else {})


@pytest.fixture
def settings(store_url: str, variables: dict[str, str]) -> Settings:
    """The built-in configuration with this database."""
    settings = load(None, {"PENSTOCK_DATABASE_URL": store_url} | variables)
    return replace(settings, server=replace(settings.server, port=0, grace_s=1.0))


@pytest.mark.parametrize(("page", "engine"), RUN, indirect=["engine"])
async def test_every_command_on_the_page_works(
    page: str, settings: Settings, variables: dict[str, str], tmp_path: Path
) -> None:
    output = await _run((ROOT / page).read_text(), settings, variables, tmp_path)
    assert "demo engine" in output


@pytest.mark.parametrize("page", CLIENTS.values(), ids=CLIENTS.keys())
async def test_every_client_works_as_its_page_says(page: str, tmp_path: Path) -> None:
    settings = load(None, {"PENSTOCK_DATABASE_URL": f"sqlite:///{tmp_path}/penstock.db"})
    output = await _run(page, replace(settings, server=replace(settings.server, port=0, grace_s=1.0)), {}, tmp_path)
    assert "engine" in output  # as the built-in model calls itself; in a stream its words come one by one


async def _run(page: str, settings: Settings, variables: dict[str, str], folder: Path) -> str:
    """What comes of all that is to be run of a page, against a gateway with somebody's money."""
    async with running(settings) as gateway:
        person = await gateway.person(usd="1")
        script = PRELUDE + "".join(_runnable(page)).replace(WRITTEN_ADDRESS, gateway.url)
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", script, cwd=folder, env=_environment(folder, KEY=person.personal_key.key, **variables),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
    assert process.returncode == 0, f"{output.decode()}\n{errors.decode()}"
    return output.decode()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [link for link in _links(page) if not _resolves(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_test_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"`((?:penstock|tests|bench|torture|docs|examples|requirements)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_and_command_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    shown = [body for mark, body in BLOCK.findall(text) if mark in ("console", "sh")]
    lines = [line for block in shown for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {match[1] for line in lines if (match := re.match(r"make ([a-z][a-z-]+)\b", line))}
    assert asked <= targets
    commands = [match[1] for line in lines if (match := re.search(r"(?:^|[(=… ])penstock ((?:[a-z][a-z-]* ?)+)", line))]
    assert [words for words in commands if not _is_command(words.split())] == []


def test_the_map_names_every_package_and_only_modules_that_are_there() -> None:
    rows = re.findall(
        r"^\| (?:`([\w/]+)`)? ?\| ((?:`[\w/]+` ?)+)\|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE
    )
    named: dict[str, set[str]] = {}
    package = ""
    for opened, modules in rows:
        package = opened or package
        named.setdefault(package, set()).update(re.findall(r"`([\w/]+)`", modules))
    assert named.keys() == {"penstock", *(f"penstock/{each.parent.name}" for each in PACKAGE.glob("*/__init__.py"))}
    for package, modules in named.items():
        folder = ROOT / package
        there = {each.stem for each in folder.glob("*.py")} | {
            f"{each.name}/" for each in folder.iterdir() if each.is_dir()
        }
        assert modules <= there, package


def test_the_import_direction_on_the_map_is_the_one_that_is_checked() -> None:
    shown = re.search(r"```text\n(__main__\n.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert shown
    checked = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert checked
    names = {each.stem for each in PACKAGE.glob("*.py")} | {each.parent.name for each in PACKAGE.glob("*/__init__.py")}
    layers = [
        [name for name in re.findall(r"\w+", line) if name in names] for line in re.findall(r'"(.+?)"', checked[1])
    ]
    assert [re.findall(r"\w+", line) for line in shown[1].splitlines()] == layers


async def test_every_wire_address_is_on_the_api_page_and_no_other(settings: Settings) -> None:
    page = (ROOT / "docs/api.md").read_text()
    found = re.findall(r"^\| `(GET|POST) (/[\w/]+)`", page, re.MULTILINE)
    bases = {
        base for row in re.findall(r"^\| \w+ \| (`/.*?) \|", page, re.MULTILINE) for base in re.findall(r"`(.+?)`", row)
    }
    not_on_forward = {"/responses"}
    below = {"/chat/completions", "/embeddings", "/models"} | not_on_forward
    documented = {(method, path) for method, path in found if path not in below}
    documented |= {
        (method, base + path)
        for method, path in found
        if path in below
        for base in bases
        if path not in not_on_forward or "gateway" not in base
    }
    async with running(settings) as gateway:
        assert documented == _served(gateway)


async def test_every_header_of_an_answer_is_on_the_api_page(settings: Settings) -> None:
    page = (ROOT / "docs/api.md").read_text()
    usual = {"date", "content-type", "content-length", "transfer-encoding", "cache-control", "x-accel-buffering"}
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        plain = await gateway.chat(ROUTER_V1, ada, model="demo", headers={"idempotency-key": "once"})
        again = await gateway.chat(ROUTER_V1, ada, model="demo", headers={"idempotency-key": "once"})
        streamed = await gateway.chat(TRUST, ada, model="demo", stream=True)
    sent = plain.headers.keys() | again.headers.keys() | streamed.headers.keys()
    assert [name for name in sent - usual if f"| `{name}` |" not in page] == []


def test_examples_in_json_and_pictures_are_well_formed() -> None:
    for page in PAGES:
        for mark, body in BLOCK.findall(page.read_text()):
            if mark == "json":
                json.loads(body)
    for picture in (ROOT / "docs").glob("*.svg"):
        ElementTree.parse(picture)


def _runnable(text: str) -> Iterator[str]:
    """The blocks that are run, as shell."""
    for mark, body in BLOCK.findall(text):
        if mark == "sh":
            yield f"{body}\necho\n"
        elif mark == "python":
            yield f"python - <<'END_OF_BLOCK'\n{body}END_OF_BLOCK\n"


def _environment(folder: Path, **variables: str) -> dict[str, str]:
    """An environment with `penstock` and `python` as this interpreter has them, and little else."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("penstock", "-m penstock"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    path = f"{programs}:{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "no_proxy": "*", **variables}


def _links(page: Path) -> list[str]:
    text = BLOCK.sub("", page.read_text())
    return [
        link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http:", "https:", "mailto:"))
    ]


def _resolves(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(page: Path) -> set[str]:
    """The names that a page's headings get where it is shown."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _is_command(words: list[str]) -> bool:
    """Whether `words` begin with a command of the command line; what follows it is an argument."""
    found: Any = get_command(program())
    for word in words:
        commands = getattr(found, "commands", None)
        if commands is None:
            return True
        if word not in commands:
            return False
        found = commands[word]
    return True


def _served(gateway: Running) -> set[tuple[str, str]]:
    """Every method and address of the wire endpoints."""
    office, parts = gateway.office, gateway.gateway
    access = Access(office.store, office.keyring, office.sessions, office.clock, 1)
    wire = Wire(relay=parts.relay, access=access, office=office, observer=parts.observer)
    return {(method, path) for path, route in wire.routes().items() for method in route.endpoints}
