"""`tools.toml`: what it may say, and every mistake with its line."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.toolbox.settings import McpSettings, ToolsSettings, load
from penstock.toolbox.source import LONGEST_NAME, function_name

FILE = """
[web_fetch]
max_text_bytes = 5000
allow = ["10.1.0.0/16"]

[code_execution]
enabled = false

[web_search]
provider = "brave"
api_key_env = "BRAVE_KEY"

[mcp.github]
command = ["gh-mcp", "--stdio"]
env = ["GH_TOKEN"]

[mcp.far]
url = "https://mcp.example/mcp"
bearer_env = "FAR_TOKEN"
"""
ENVIRONMENT = {"BRAVE_KEY": "b" * 20, "GH_TOKEN": "g" * 20, "FAR_TOKEN": "f" * 20}


def test_a_file_is_read_with_what_it_names_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "tools.toml"
    path.write_text(FILE)
    settings = load(path, ENVIRONMENT)
    assert settings.web_fetch.max_text_bytes == 5000
    assert settings.web_fetch.allow == (ip_network("10.1.0.0/16"),)
    assert not settings.code_execution.enabled
    assert settings.web_search is not None
    assert settings.web_search.api_key == "b" * 20
    assert settings.mcp[0] == McpSettings(
        "github", ("gh-mcp", "--stdio"), None, ("GH_TOKEN",), variables=(("GH_TOKEN", "g" * 20),)
    )
    assert settings.mcp[1].bearer == "f" * 20
    assert not any(secret in repr(settings) for secret in ENVIRONMENT.values())


def test_without_a_file_there_are_the_tools_that_need_none() -> None:
    assert load(None, {}) == ToolsSettings()


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[web_fetc]\n", ":1: web_fetc: is not a setting (did you mean 'web_fetch'?)"),
        ("[web_fetch]\nmax_bytes = 1\n", ":2: web_fetch.max_bytes: must be a whole number"),
        ('[web_fetch]\nallow = ["10.1.0.1/16"]\n', ":2: web_fetch.allow: must be a network such as 10.1.0.0/16"),
        ('[web_search]\nprovider = "bing"\n', ":2: web_search.provider: must be"),
        ('[web_search]\nprovider = "searxng"\n', "web_search.url: is missing"),
        ('[web_search]\nprovider = "brave"\n', "web_search.api_key_env: is missing"),
        (
            '[web_search]\nprovider = "brave"\napi_key_env = "NO"\n',
            ":3: web_search.api_key_env: names NO, which is not",
        ),
        ("mcp = 7\n", ":1: mcp: must be written as [mcp.NAME]"),
        ("[mcp.x]\n", "mcp.x: needs a command or a url"),
        ('[mcp.x]\nurl = "http://h/"\ncommand = ["c"]\n', "mcp.x: needs a command or a url"),
        ('[mcp."a b"]\ncommand = ["c"]\n', "must be a name of letters"),
        ('[mcp.x]\ncommand = ["c"]\nenv = ["MISSING"]\n', ":3: mcp.x.env: names MISSING"),
        ("[", "cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, mistake: str) -> None:
    path = tmp_path / "tools.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert mistake in raised.value.message


def test_names_of_functions_are_valid_stable_and_different() -> None:
    assert function_name("box", "add") == "box__add"
    odd = {function_name("box", tool) for tool in ("a b", "a_b", "a/b", "a.b", "x" * 100, "x" * 101)}
    assert len(odd) == 6
    assert all(len(name) <= LONGEST_NAME and name.replace("-", "_").isidentifier() for name in odd)
    assert function_name("box", "a b") == function_name("box", "a b")
