"""What a tools worker is told: `tools.toml`, read once into frozen types. `docs/tools.md` explains each setting.

Keys never stand in the file: it names the environment variable that holds one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from penstock.config_tables import Mistakes, TableReader
from penstock.config_value import matching, number, web_address, whole, wrong
from penstock.errors import ConfigError
from penstock.toml_lines import key_lines

Seconds = Annotated[float, number(0.1, 300)]
Bytes = Annotated[int, whole(1_000, 4_000_000_000)]
ServerName = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", "a name of letters, digits, '-' and '_'")]
VariableName = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")]
TABLES = ("web_fetch", "code_execution", "web_search", "mcp")


def network(raw: object) -> IPv4Network | IPv6Network:
    """Reads a network such as `10.1.0.0/16`."""
    try:
        if isinstance(raw, str):
            return ip_network(raw)
    except ValueError:
        pass
    raise wrong("a network such as 10.1.0.0/16", raw, str)


@dataclass(frozen=True, slots=True)
class WebFetchSettings:
    """`web_fetch`. `max_bytes` is what is read of a page, `max_text_bytes` what the model gets of it. `allow` are
    networks that may be reached though they are not the internet's."""

    enabled: bool = True
    max_bytes: Bytes = 2_000_000
    max_text_bytes: Bytes = 60_000
    allow: tuple[Annotated[IPv4Network | IPv6Network, network], ...] = ()


@dataclass(frozen=True, slots=True)
class CodeExecutionSettings:
    """`code_execution`: what one program may use, and how many run at once."""

    enabled: bool = True
    timeout_s: Seconds = 5.0
    memory_bytes: Bytes = 512_000_000
    files_bytes: Bytes = 16_000_000
    processes: Annotated[int, whole(1, 1_000)] = 16
    max_output_bytes: Bytes = 30_000
    parallel: Annotated[int, whole(1, 256)] = 4


@dataclass(frozen=True, slots=True)
class WebSearchSettings:
    """`web_search`: which engine, and how to reach it. Off without one."""

    provider: Literal["searxng", "brave", "tavily"]
    url: Annotated[str, web_address] | None = None
    api_key_env: VariableName | None = None
    results: Annotated[int, whole(1, 20)] = 5
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class McpSettings:
    """An MCP server: a command to run here, or the URL of one that speaks Streamable HTTP. `env` are the names of
    variables it is given; `bearer_env` names the one that holds the token for `url`."""

    name: str
    command: tuple[str, ...] = ()
    url: Annotated[str, web_address] | None = None
    env: tuple[VariableName, ...] = ()
    bearer_env: VariableName | None = None
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    bearer: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ToolsSettings:
    """Everything."""

    web_fetch: WebFetchSettings = WebFetchSettings()
    code_execution: CodeExecutionSettings = CodeExecutionSettings()
    web_search: WebSearchSettings | None = None
    mcp: tuple[McpSettings, ...] = ()

    def secrets(self) -> list[str]:
        """What must not get into a log."""
        search = [self.web_search.api_key] if self.web_search is not None else []
        servers = [text for each in self.mcp for text in (each.bearer, *(value for _, value in each.variables))]
        return [each for each in (*search, *servers) if each]


def load(path: Path | None, environ: Mapping[str, str]) -> ToolsSettings:
    """The settings in a file; the built-in tools that need none when there is none. ConfigError with every mistake."""
    if path is None:
        return ToolsSettings()
    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text, parse_float=Decimal)
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    mistakes = Mistakes(str(path), key_lines(text))
    settings = _Reader(mistakes, environ).read(document)
    if mistakes:
        raise ConfigError(mistakes.in_order())
    return settings


class _Reader(TableReader):
    """Reads one document, and what it names in the environment."""

    def __init__(self, mistakes: Mistakes, environ: Mapping[str, str]) -> None:
        super().__init__(mistakes)
        self._environ = environ

    def read(self, document: dict[str, Any]) -> ToolsSettings:
        self.refuse_unknown(document, TABLES, ())
        return ToolsSettings(
            web_fetch=self.table(WebFetchSettings, document.get("web_fetch", {}), ("web_fetch",)) or WebFetchSettings(),
            code_execution=self.table(CodeExecutionSettings, document.get("code_execution", {}), ("code_execution",))
            or CodeExecutionSettings(),
            web_search=self._search(document["web_search"]) if "web_search" in document else None,
            mcp=self._servers(document.get("mcp", {})),
        )

    def _search(self, raw: Any) -> WebSearchSettings | None:
        read = self.table(WebSearchSettings, raw, ("web_search",), given={"api_key": None})
        if read is None:
            return None
        if read.provider == "searxng" and read.url is None:
            self.mistakes.at(("web_search", "url"), "is missing: where the SearXNG server is")
        if read.provider != "searxng" and read.api_key_env is None:
            self.mistakes.at(("web_search", "api_key_env"), "is missing: the environment variable with the key")
        return replace(read, api_key=self._variable(read.api_key_env, ("web_search", "api_key_env")))

    def _servers(self, raw: Any) -> tuple[McpSettings, ...]:
        if not isinstance(raw, dict):
            self.mistakes.at(("mcp",), "must be written as [mcp.NAME], once for each")
            return ()
        read = [self._server(name, table) for name, table in raw.items()]
        return tuple(each for each in read if each is not None)

    def _server(self, name: str, raw: Any) -> McpSettings | None:
        path = ("mcp", name)
        self.value(ServerName, name, path)
        read = self.table(McpSettings, raw, path, given={"name": name, "variables": (), "bearer": None})
        if read is None:
            return None
        if bool(read.command) == (read.url is not None):
            self.mistakes.at(path, "needs a command or a url, and one of them only")
        variables = [(variable, self._variable(variable, (*path, "env"))) for variable in read.env]
        return replace(
            read,
            variables=tuple((variable, value) for variable, value in variables if value is not None),
            bearer=self._variable(read.bearer_env, (*path, "bearer_env")),
        )

    def _variable(self, name: str | None, path: tuple[str | int, ...]) -> str | None:
        if name is None:
            return None
        value = self._environ.get(name)
        if not value:
            self.mistakes.at(path, f"names {name}, which is not set in the environment")
        return value or None
