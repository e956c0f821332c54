"""docs/errors.md names every kind of error with its status, type and code on each surface, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.api.errors import COMMON, render_openai
from penstock.api.surfaces import PLACES, Place, Shape
from penstock.dialects.anthropic_errors import error_type
from penstock.errors import ConfigError, PenstockError, UpstreamRefused

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
THEIRS = "*the provider's*"


def rows(heading: str) -> dict[str, tuple[str, ...]]:
    """The table under a heading: the first column -> the others, without backticks."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"there is no heading {heading}"
    lines = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section[1], re.MULTILINE)
    return {name: tuple(cell.strip("`") for cell in rest.split(" | ")) for name, rest in lines}


def kinds() -> dict[str, type[PenstockError]]:
    """Every kind that a door may have to render; where classes share one, the class that gave it its name."""

    def below(root: type[PenstockError]) -> Iterator[type[PenstockError]]:
        yield root
        for each in root.__subclasses__():
            yield from below(each)

    found: dict[str, type[PenstockError]] = {}
    for each in below(PenstockError):
        found.setdefault(each.kind, each)
    del found[ConfigError.kind]
    return found


def said(kind: str, shape: Shape) -> tuple[str, str, str]:
    """Status, type and code as the page writes them."""
    if kind == UpstreamRefused.kind:
        return THEIRS, shape.type, THEIRS
    return str(shape.status or kinds()[kind].status), shape.type, shape.code or "*null*"


def test_each_kind_has_a_shape_and_each_shape_a_kind() -> None:
    assert set(COMMON) == set(kinds())


def test_each_kind_is_documented_as_it_looks_everywhere() -> None:
    documented = {kind: row[:3] for kind, row in rows("Every surface").items()}
    assert documented == {kind: said(kind, shape) for kind, shape in COMMON.items()}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.surface.name)
def test_each_surface_is_documented_where_it_differs(place: Place) -> None:
    documented = {kind: row[:3] for kind, row in rows(f"On `{place.surface.name}`").items()}
    assert documented == {kind: said(kind, shape) for kind, shape in place.shapes.items()}


def test_each_surface_has_its_section() -> None:
    assert set(re.findall(r"^## On `(\w+)`$", PAGE, re.MULTILINE)) == {place.surface.name for place in PLACES}


def test_each_error_says_what_to_do() -> None:
    assert all(row[3] for row in rows("Every surface").values())


def test_each_code_that_an_error_brings_along_is_documented() -> None:
    sources = [path for path in (ROOT / "penstock").rglob("*.py") if "providers" not in path.parts]
    raised = {code for path in sources for code in re.findall(r'\bcode="(\w+)"', path.read_text(encoding="utf-8"))}
    assert set(rows("More precise codes")) == raised


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.surface.name)
def test_what_is_documented_is_what_is_rendered(place: Place) -> None:
    page = rows("Every surface") | rows(f"On `{place.surface.name}`")
    for kind, error in kinds().items():
        if kind != UpstreamRefused.kind:
            status, body = render_openai(error(), place.shapes)
            assert page[kind][0] == str(status)
            assert f'"type": "{page[kind][1]}"'.encode() in body
            assert b'"param": null' in body


def test_anthropics_type_of_every_kind_is_documented() -> None:
    documented = {
        kind: type
        for type, (kinds_of_it,) in rows("In Anthropic's envelope").items()
        for kind in re.findall(r"\w+", kinds_of_it)
    }
    assert documented == {kind: error_type(kind) for kind in kinds()}
