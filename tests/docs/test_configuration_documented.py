"""docs/configuration.md names every setting, its default, and nothing that is no setting."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import pytest

from penstock.config import (
    CommandOutput,
    ContractSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    Settings,
    SurfaceSettings,
)
from penstock.config_file import CREDENTIALS, TABLES, TOP_KEYS, VARIABLES
from penstock.config_tables import written_keys
from penstock.well_known import WELL_KNOWN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")

SECTIONS: dict[str, type] = {f"[{name}]": kind for name, kind in TABLES.items()} | {
    "[surfaces.NAME]": SurfaceSettings,
    "[providers.NAME]": ProviderSettings,
    "output = { … }": CommandOutput,
    "[[models]]": ModelSettings,
    "offers = [{ … }]": OfferSettings,
    "price = { … }": PriceSettings,
    "[[contracts]]": ContractSettings,
}


def rows(heading: str) -> dict[str, list[str]]:
    """The table under a heading: what stands in backticks in the first column -> the other columns."""
    section = re.search(rf"^#+ `?{re.escape(heading)}`?\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"there is no heading {heading}"
    table = re.findall(r"^\| `([^`]+)` \| (.*) \|$", section[1], re.MULTILINE)
    return {name: rest.split(" | ") for name, rest in table}


def default_of(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "*needed*"
    if field.default is None:
        return "*none*"
    return f"`{as_toml(field.default, field.name)}`"


def as_toml(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "{}" if name == "headers" else f"[{', '.join(as_toml(item, name) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(("heading", "kind"), SECTIONS.items())
def test_each_setting_is_documented_with_its_default_and_nothing_else_is(heading: str, kind: type) -> None:
    given = ("name", "api_key") if kind is ProviderSettings else ()
    expected = {key: default_of(field) for key, field in written_keys(kind, given).items()}
    expected |= dict.fromkeys(CREDENTIALS, "*none*") if kind is ProviderSettings else {}
    assert {name: columns[0] for name, columns in rows(heading).items()} == expected


def test_each_table_of_the_file_has_a_section() -> None:
    tables = set(TOP_KEYS) - set(rows("The top of the file"))
    assert tables == {re.sub(r"[\[\]]|\.NAME", "", heading) for heading in SECTIONS if heading.startswith("[")}


def test_each_field_of_the_settings_can_be_set_somewhere() -> None:
    made_by_reading = {"secrets", "now", "warnings"}
    assert {field.name for field in fields(Settings)} - made_by_reading == set(TOP_KEYS)


def test_each_variable_is_documented_and_each_documented_one_is_read() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "penstock").glob("config*.py"))
    read = set(re.findall(r"PENSTOCK_[A-Z_]*[A-Z]", source)) - {"PENSTOCK_PROVIDER"}
    secrets = {f"{name}_FILE" for name in ("PENSTOCK_KEY_PEPPER", "PENSTOCK_AUTH_SECRET")}
    overrides = {f"PENSTOCK_PROVIDER_<NAME>_{what}" for what in ("BASE_URL", "API_KEY")}
    assert set(rows("The environment")) == read | set(VARIABLES) | secrets | overrides


def test_each_well_known_key_is_documented() -> None:
    expected = {variable: [f"`{known.name}`"] for known in WELL_KNOWN for variable in known.variables}
    assert rows("Well-known keys") == expected
