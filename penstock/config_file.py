"""Reads the configuration: `load(path, environ)`, a TOML file and the environment in, settings or all mistakes out.

Nothing is kept between two calls and nothing is written, but for the secrets file where there is no database yet. How a
table becomes settings is `config_tables.py`, whether the parts fit together `config_checks.py`, what well-known keys in
the environment switch on `well_known.py`.
"""

from __future__ import annotations

import re
import ssl
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from os.path import isfile
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_type_hints

from penstock.clock import Clock
from penstock.config import (
    SURFACE_NAMES,
    AutoSettings,
    ContractSettings,
    HealthSettings,
    JwtSettings,
    KeyPrefixes,
    LimitSettings,
    ModelSettings,
    ProviderName,
    ProviderSettings,
    ResponseSettings,
    SecretSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    SurfaceSettings,
    ToolSettings,
    VariableName,
)
from penstock.config_checks import (
    Catalogue,
    check_auto,
    check_catalogue,
    check_environments,
    check_limits,
    check_prefixes,
    override_variables,
    unencrypted,
    unused_overrides,
)
from penstock.config_secrets import (
    SECRETS_FILE,
    complete_secrets,
    given_secrets,
    provider_key,
    secret_in,
    sqlite_file,
)
from penstock.config_tables import Mistakes, TableReader
from penstock.config_value import WrongValueError, convert, instant
from penstock.errors import ConfigError
from penstock.toml_lines import Path, key_lines
from penstock.vendors import VENDORS
from penstock.well_known import well_known_catalogue

T = TypeVar("T")
Complete = Callable[[Mapping[str, bytes], str, list[str]], SecretSettings]

TABLES: dict[str, type] = {
    "server": ServerSettings,
    "store": StoreSettings,
    "jwt": JwtSettings,
    "limits": LimitSettings,
    "tools": ToolSettings,
    "responses": ResponseSettings,
    "prefixes": KeyPrefixes,
    "auto": AutoSettings,
    "health": HealthSettings,
}
TOP_KEYS = (*TABLES, "well_known", "providers", "models", "contracts", "surfaces")
CREDENTIALS = ("api_key_env", "api_key_file")
VARIABLES = {
    "PENSTOCK_HOST": ("server", "host"),
    "PENSTOCK_PORT": ("server", "port"),
    "PENSTOCK_PUBLIC_URL": ("server", "public_url"),
    "PENSTOCK_WORKERS": ("server", "workers"),
    "PENSTOCK_DATABASE_URL": ("store", "url"),
}
NUMBERS = ("PENSTOCK_PORT", "PENSTOCK_WORKERS")

BUILT_IN = """
well_known = true

[providers.demo]
kind = "demo"

[[models]]
id = "penstock/demo"
aliases = ["demo"]
offers = [{ provider = "demo" }]
price = { input = 0.10, output = 0.40 }
contract = "DEMO_2027"

[[contracts]]
id = "DEMO_2027"
name = "Demo tokens until the end of 2027"
price = 0.20
minimum_tokens = 1000
expires = 2027-12-31
"""

_NO_INLINE_KEY = (
    "a key does not belong in a file that gets copied and committed; "
    'write api_key_env = "NAME" or api_key_file = "path"'
)


def load(path: FilePath | None, environ: Mapping[str, str], complete: Complete = complete_secrets) -> Settings:
    """The settings of the file at `path`, or the built-in ones when there is none, with the environment on top.

    `complete` says what becomes of secrets that are not given: see `config_secrets.py`. Raises ConfigError with every
    mistake there is, each `file:line: key: what is wrong`.
    """
    file = "built-in" if path is None else str(path)
    document, lines = _parsed(BUILT_IN if path is None else _text_of(path), file)
    mistakes = Mistakes(file, lines)
    reader = _FileReader(mistakes, environ, FilePath() if path is None else path.parent)
    parts = reader.read(document)
    found = given_secrets(environ, parts["store"].url, mistakes, reader.warnings)
    if mistakes:
        raise ConfigError(mistakes.in_order())
    try:
        secrets = complete(found, parts["store"].url, reader.warnings)
    except WrongValueError as error:
        raise ConfigError([f"{SECRETS_FILE}: {error}"]) from error
    return Settings(secrets=secrets, warnings=tuple(reader.warnings), **parts)


class _FileReader(TableReader):
    """Reads one document. `folder` is where relative paths start; `environ` overrides, and holds providers' keys."""

    def __init__(self, mistakes: Mistakes, environ: Mapping[str, str], folder: FilePath) -> None:
        super().__init__(mistakes)
        self.warnings: list[str] = []
        self._environ = environ
        self._folder = folder

    def read(self, document: dict[str, Any]) -> dict[str, Any]:
        """All fields of Settings but the secrets and the warnings."""
        self.refuse_unknown(document, TOP_KEYS, ())
        single = {key: self.table(kind, document.get(key, {}), (key,)) or kind() for key, kind in TABLES.items()}
        well_known = self.value(bool, document.get("well_known", False), ("well_known",))
        catalogue = self._catalogue(document)
        check_catalogue(catalogue, self.mistakes)
        check_prefixes(single["prefixes"], _keys(document, "prefixes"), self.mistakes)
        check_limits(single["limits"], _keys(document, "limits"), self.mistakes)
        now_ms = self._now_ms()
        providers, models = tuple(catalogue.providers.values()), tuple(catalogue.models.values())
        if well_known:
            more_providers, more_models = well_known_catalogue(providers, models, self._environ, now_ms)
            providers += tuple(self._overridden(provider) for provider in more_providers)
            models += more_models
        check_auto(single["auto"], models, self.mistakes)
        self.warnings += unused_overrides(self._environ, catalogue.provider_names | {p.name for p in providers})
        self.warnings += unencrypted(providers)
        check_environments(catalogue, providers, self._environ, self.mistakes)
        single = self._overridden_tables(single)
        self._check_workers(single["server"].workers, single["store"].url)
        return single | {
            "providers": providers,
            "models": models,
            "contracts": tuple(catalogue.contracts.values()),
            "surfaces": self._surfaces(document),
            "now": self._environ.get("PENSTOCK_NOW") or None,
            "well_known": bool(well_known),
        }

    def _catalogue(self, document: dict[str, Any]) -> Catalogue:
        tables = {key: self._entries(document, key) for key in ("providers", "models", "contracts")}
        ids = [raw.get("id") for raw in tables["contracts"].values() if isinstance(raw, dict)]
        contracts = {path: self.table(ContractSettings, raw, path) for path, raw in tables["contracts"].items()}
        return Catalogue(
            providers=_sound({path: self._provider(raw, path) for path, raw in tables["providers"].items()}),
            models=_sound({path: self._model(raw, path) for path, raw in tables["models"].items()}),
            contracts=_sound(contracts),
            provider_names=frozenset(str(path[1]) for path in tables["providers"]),
            contract_ids=frozenset(name for name in ids if isinstance(name, str)),
        )

    def _entries(self, document: dict[str, Any], key: str) -> dict[Path, Any]:
        """Each `[providers.NAME]` or `[[models]]`, by its path."""
        written = "[providers.NAME]" if key == "providers" else f"[[{key}]]"
        tables = document.get(key, {} if key == "providers" else [])
        if isinstance(tables, dict) and key == "providers":
            return {(key, name): table for name, table in tables.items()}
        if isinstance(tables, list) and key != "providers":
            return {(key, index): table for index, table in enumerate(tables)}
        self.mistakes.at((key,), f"must be written as {written}, once for each")
        return {}

    def _provider(self, raw: Any, path: Path) -> ProviderSettings | None:
        before = len(self.mistakes)
        raw = _of_vendor(raw)
        name = self.value(ProviderName, path[1], path)
        api_key = self._api_key(raw, path) if isinstance(raw, dict) else None
        given = {"name": name, "api_key": api_key}
        provider = self.table(ProviderSettings, raw, path, given, beside=(*CREDENTIALS, "api_key"))
        if provider is None or len(self.mistakes) > before:
            return None
        if provider.ca_file:
            provider = replace(provider, ca_file=str(self._folder / provider.ca_file))
            if not isfile(provider.ca_file or ""):
                self.mistakes.at((*path, "ca_file"), "names a file that is not there")
            elif not _holds_certificates(provider.ca_file or ""):
                self.mistakes.at((*path, "ca_file"), "names a file that cannot be read as PEM certificates")
        return self._overridden(provider)

    def _api_key(self, raw: dict[str, Any], path: Path) -> str | None:
        """The key that `api_key_env` or `api_key_file` leads to, None where neither is given."""
        if "api_key" in raw:
            self.mistakes.at((*path, "api_key"), _NO_INLINE_KEY)
        if all(key in raw for key in CREDENTIALS):
            self.mistakes.at((*path, "api_key_file"), "api_key_env is given as well; one of the two is enough")
            return None
        if "api_key_env" in raw:
            return self._key_in_environment(raw["api_key_env"], (*path, "api_key_env"))
        return self._key_in_file(raw["api_key_file"], (*path, "api_key_file")) if "api_key_file" in raw else None

    def _key_in_environment(self, raw: object, path: Path) -> str | None:
        variable = self.value(VariableName, raw, path)
        if variable is None:
            return None
        if not self._environ.get(variable):
            if not self._environ.get(override_variables(str(path[1]))[1]):
                self.warnings.append(f"provider {path[1]} is called without a key: {variable} is not set")
            return None
        try:
            return provider_key(self._environ[variable])
        except WrongValueError as error:
            self.mistakes.in_environment(variable, str(error))
            return None

    def _key_in_file(self, raw: object, path: Path) -> str | None:
        name = self.value(str, raw, path)
        if name is None:
            return None
        try:
            return provider_key(secret_in(self._folder / name, self.warnings).decode("utf-8", "replace"))
        except WrongValueError as error:
            self.mistakes.at(path, str(error))
            return None

    def _model(self, raw: Any, path: Path) -> ModelSettings | None:
        model = self.table(ModelSettings, raw, path)
        if model is None:
            return None
        return replace(model, offers=tuple(replace(offer, model=offer.model or model.id) for offer in model.offers))

    def _surfaces(self, document: dict[str, Any]) -> tuple[tuple[str, SurfaceSettings], ...]:
        tables = document.get("surfaces", {})
        if not isinstance(tables, dict):
            self.mistakes.at(("surfaces",), "must be written as [surfaces.NAME], once for each")
            return ()
        self.refuse_unknown(tables, SURFACE_NAMES, ("surfaces",))
        read = {name: self.table(SurfaceSettings, tables.get(name, {}), ("surfaces", name)) for name in SURFACE_NAMES}
        return tuple((name, surface or SurfaceSettings()) for name, surface in read.items())

    def _overridden(self, provider: ProviderSettings) -> ProviderSettings:
        """The provider with `PENSTOCK_PROVIDER_<NAME>_BASE_URL` and `_API_KEY` in place of its own."""
        url_variable, key_variable = override_variables(provider.name)
        base_url = self._from_environment(
            url_variable, get_type_hints(ProviderSettings, include_extras=True)["base_url"]
        )
        api_key = self._environ.get(key_variable)
        try:
            api_key = provider_key(api_key) if api_key else None
        except WrongValueError as error:
            self.mistakes.in_environment(key_variable, str(error))
        return replace(provider, base_url=base_url or provider.base_url, api_key=api_key or provider.api_key)

    def _overridden_tables(self, single: dict[str, Any]) -> dict[str, Any]:
        """The tables with what `VARIABLES` set in the environment."""
        for variable, (table, field) in VARIABLES.items():
            hint = get_type_hints(TABLES[table], include_extras=True)[field]
            value = self._from_environment(variable, hint)
            if value is not None:
                single[table] = replace(single[table], **{field: value})
        return single

    def _check_workers(self, workers: int, store_url: str) -> None:
        """Several processes cannot share what is in the memory of one."""
        if workers > 1 and store_url.startswith("sqlite:") and sqlite_file(store_url) is None:
            self.mistakes.at(("server", "workers"), "needs a database that processes can share, not one in memory")

    def _from_environment(self, variable: str, hint: Any) -> Any:
        written = self._environ.get(variable)
        if not written:
            return None
        is_number = variable in NUMBERS and written.isascii() and written.isdigit() and len(written) < 10
        try:
            return convert(hint, int(written) if is_number else written)
        except WrongValueError as error:
            self.mistakes.in_environment(variable, str(error))
            return None

    def _now_ms(self) -> int:
        written = self._environ.get("PENSTOCK_NOW")
        try:
            return instant(written) if written else Clock().now_ms()
        except WrongValueError as error:
            self.mistakes.in_environment("PENSTOCK_NOW", str(error))
            return Clock().now_ms()


def _keys(document: dict[str, Any], table: str) -> frozenset[str]:
    """The settings that are written in a table."""
    raw = document.get(table)
    return frozenset(raw) if isinstance(raw, dict) else frozenset()


def _holds_certificates(file: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError:
        return False
    return True


def _text_of(path: FilePath) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}:1: not UTF-8 text"]) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError([f"{path}: cannot be read ({reason})"]) from error


def _parsed(text: str, file: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """What the document says and where."""
    try:
        # A number keeps all its digits as a Decimal; as a float 0.1 would not be a tenth.
        return tomllib.loads(text, parse_float=Decimal), key_lines(text)
    except RecursionError as error:
        raise ConfigError([f"{file}:1: nested too deeply"]) from error
    except (ValueError, ArithmeticError) as error:  # tomllib lets pass what int() and Decimal() raise on huge numbers
        message, line = _without_place(str(error))
        raise ConfigError([f"{file}:{line}: not TOML: {message}"]) from error


def _without_place(message: str) -> tuple[str, int]:
    """`Expected '=' (at line 3, column 5)` -> what it says and the line."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    if match is None:
        return "a number is too large", 1
    return match[1], int(match[2] or 1)


def _of_vendor(raw: Any) -> Any:
    """A provider's table with what its vendor's name, or a kind that only one vendor is of, fills in."""
    if not isinstance(raw, dict):
        return raw
    vendor = raw.get("vendor", "anthropic" if raw.get("kind") == "anthropic" else None)
    return {**VENDORS.get(vendor, {}), **raw} if isinstance(vendor, str) else raw


def _sound(entries: dict[Path, T | None]) -> dict[Path, T]:
    return {path: entry for path, entry in entries.items() if entry is not None}
