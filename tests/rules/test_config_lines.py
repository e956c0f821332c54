"""Every key of a TOML document is found on its line, however it is written."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.toml_lines import Path, key_lines

DOCUMENT = '''# a comment with [brackets] and = signs
top = "a # no comment"
"quoted key" = 1
a.b . "c.d" = 2

[table]  # comment
text = """
[not.a.table]
key = "no key"
"""
raw = \'\'\'
[[nor this]]''\'\'\'
list = [
  1,
  { inner = [
      "x]", # ]
    ], other = {} },
]
[table.sub]
day = 2027-12-31 07:30:00

[[models]]
id = 'one'
offers = [{ provider = "p" }, { provider = "q" }]
[[models]]
[models.price]
input = 0.5
[[models.offers]]
provider = "r"
'''


def test_keys_are_on_their_lines() -> None:
    lines = key_lines(DOCUMENT)
    expected: dict[Path, int] = {
        ("top",): 2,
        ("quoted key",): 3,
        ("a",): 4,
        ("a", "b", "c.d"): 4,
        ("table",): 6,
        ("table", "text"): 7,
        ("table", "raw"): 11,
        ("table", "list", 1): 15,
        ("table", "list", 1, "inner", 0): 16,
        ("table", "list", 1, "other"): 17,
        ("table", "sub", "day"): 20,
        ("models", 0): 22,
        ("models", 0, "offers", 1, "provider"): 24,
        ("models", 1): 25,
        ("models", 1, "price", "input"): 27,
        ("models", 1, "offers", 0, "provider"): 29,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert set(lines) == paths(tomllib.loads(DOCUMENT))


def test_line_ends_of_windows_count_once() -> None:
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Every path in a parsed document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ({path} if path else set()).union(*(paths(child, (*path, key)) for key, child in children))


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{written(key)} = {written(child)}" for key, child in value.items()) + " }"
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(written, value)) + "]"
    return '"' + "".join(f"\\U{ord(character):08x}" if character in '"\\' or not character.isprintable() else character
                         for character in value) + '"'  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.dictionaries(TEXT, VALUES, max_size=3))
def test_every_key_of_any_document_is_found(top: dict[str, Any], table: dict[str, Any]) -> None:
    text = "".join(f"{written(key)} = {written(value)}\n" for key, value in top.items() if key != "t")
    text += "[[t]]\n" + "".join(f"{written(key)} = {written(value)}\n" for key, value in table.items()) + "[[t]]"
    assert set(key_lines(text)) == paths(tomllib.loads(text))
