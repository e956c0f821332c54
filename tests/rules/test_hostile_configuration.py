"""Configuration files that went wrong, by accident or on purpose: settings or mistakes, nothing else, and no secret."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import properties

EXAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))]
PROVIDER = '[providers.p]\nbase_url = "https://h/v1"\n'
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1, 10**30, 1e308, float("nan"), float("inf"), "", "x", "demo", "http://h", "http://h:0", "//",
     "\x00", "\u202e", "0.1", "1e9", "x" * 600, [], [[]], ["x", "x"], {}, {"x": 1}, {"": ""}, {"*": ["x"]},
     date(2027, 1, 1), datetime(1, 1, 1, tzinfo=UTC), [{"provider": "x"}], {"input": -1}, {"free": True, "input": 1},
     {"Host": "x"}, {"X-A": "a\r\nb"}]
)  # fmt: skip


def test_the_examples_are_there_and_good() -> None:
    assert len(EXAMPLES) == 2
    assert all(map(properties.configuration, EXAMPLES))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An example with lines swapped, doubled or gone, and a few bytes that are not its own."""
    lines = draw(st.sampled_from(EXAMPLES)).split(b"\n")
    for _ in range(draw(st.integers(1, 4))):
        at, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["swap", "double", "drop", "spoil"])):
            case "swap":
                lines[at], lines[other] = lines[other], lines[at]
            case "double":
                lines.insert(other, lines[at])
            case "drop":
                lines[at] = b""
            case _:
                place = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:place] + draw(st.binary(max_size=3)) + lines[at][place + 1 :]
    return b"\n".join(lines)


@given(damaged())
def test_a_damaged_file_is_read_or_refused(text: bytes) -> None:
    properties.configuration(text)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    properties.configuration(text)


@st.composite
def changed(draw: st.DrawFn) -> str:
    """An example that says something else in a few places, some of them new."""
    document = tomllib.loads(draw(st.sampled_from(EXAMPLES)).decode())
    for _ in range(draw(st.integers(1, 4))):
        holder, key = draw(st.sampled_from(list(_places(document))))
        holder[key] = deepcopy(draw(ODD))
    return "\n".join(f"{_key(name)} = {_written(value)}" for name, value in document.items() if value is not None)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a document that can be set, and a new setting in each table."""
    if isinstance(value, dict):
        yield value, "new"
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _written(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "{" + ", ".join(f"{_key(k)} = {_written(v)}" for k, v in value.items() if v is not None) + "}"
        case list():
            return "[" + ", ".join(_written(each) for each in value if each is not None) + "]"
        case str():
            return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
        case date():
            return value.isoformat()
    return repr(value)


def _key(name: str) -> str:
    return _written(name)


@given(changed())
def test_whatever_a_file_sets_it_is_settings_or_mistakes(text: str) -> None:
    tomllib.loads(text)
    properties.configuration(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        PROVIDER + 'api_key = "canary-inline"\n',
        PROVIDER + 'api_key = ["canary-inline"]\n',
        PROVIDER.replace("//h", "//user:canary@h"),
        PROVIDER.replace("/v1", "/v1?key=canary"),
        PROVIDER + 'proxy_url = "http://user:canary@h"\n',
        PROVIDER + 'headers = { Authorization = "Bearer canary" }\n',
        PROVIDER + 'headers = { x-api-key = "canary" }\n',
        PROVIDER + 'headers = { x-a = "canary\\n" }\n',
        PROVIDER + 'api_key_file = "/nowhere/canary\\u0000"\n',
        '[store]\nurl = "mysql://user:canary@h/d"\n',
        '[store]\nurl = "postgresql://user:canary@h/d\\n"\n',
        '[server]\nport = "canary"\n',
        '[jwt]\nsecret = "canary"\n',
        PROVIDER + 'api_key = "canary\n',
        'auth_secret = "canary"\n',
        "[server]\nhost = 'canary' 'canary'\n",
    ],
)
def test_a_mistake_never_repeats_what_may_be_a_secret(text: str) -> None:
    assert properties.configuration(text.encode()) is None
