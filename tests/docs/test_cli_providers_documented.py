"""docs/cli-providers.md shows each template's command as it is, and examples that are read without a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.config_file import load
from penstock.providers.cli.prompt import ORDERS, REFUSED
from penstock.providers.cli.templates import TEMPLATES

PAGE = (Path(__file__).parents[2] / "docs/cli-providers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
MODEL = '[[models]]\nid = "m"\noffers = [{ provider = "%s" }]\nprice = { free = true }\n'


def test_each_template_is_shown_with_its_command() -> None:
    shown = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert shown == {name: " ".join(template.command) for name, template in TEMPLATES.items()}


def test_what_is_refused_is_said() -> None:
    section = PAGE.split("## What it cannot carry")[1].split("##")[0]
    described = {"function_call", "top_logprobs", "modalities", "audio", "web_search_options"}
    assert {name for name in REFUSED if f"`{name}`" not in section} == described
    assert all(f"`{order}`" in PAGE for order in ORDERS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_configuration(example: str, tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text(example)
    settings = load(tmp_path / "penstock.toml", {"PENSTOCK_DATABASE_URL": "sqlite://"})
    assert settings.providers[0].kind == "cli"
