"""Rules for the tools of connected workers, account by account. What an account has no rule of its own for is as
configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, get_type_hints

from penstock.config import ToolSettings
from penstock.config_value import WrongValueError, convert
from penstock.db.accounts import find_account
from penstock.db.program import Program
from penstock.db.tools import own_policy, write_policy
from penstock.errors import InvalidRequest, NotFound
from penstock.operations.actor import Actor
from penstock.operations.office import Office


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicyView:
    """The rules in force for an account; `own` names those it has itself. `timeout_s` is for one call of a tool."""

    account: str
    enabled: bool
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    rounds: int
    definitions: int
    timeout_s: float
    result_bytes: int
    calls_per_minute: int
    own: tuple[str, ...]


async def show_tool_policy(office: Office, actor: Actor, *, account: str) -> ToolPolicyView:
    """Show what models may do with tools in an account's calls."""
    actor.check_sees(account)
    return _view(office, account, await office.store.read(_own(account)))


async def set_tool_policy(
    office: Office,
    actor: Actor,
    *,
    account: str,
    enabled: bool | None = None,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
    rounds: int | None = None,
    definitions: int | None = None,
    timeout_s: float | None = None,
    result_bytes: int | None = None,
    calls_per_minute: int | None = None,
) -> ToolPolicyView:
    """Give an account rules of its own for tools; what is left out stays as it is.

    `allow` and `deny` are patterns of names such as `web_*`; what `deny` matches is denied. `rounds` bounds how often
    one completion may call tools, `definitions` how many a model is told of; `timeout_s`, `result_bytes` and
    `calls_per_minute` are for the calls of tools.
    """
    actor.check_governs(account)
    given = {
        "enabled": enabled,
        "allow": allow,
        "deny": deny,
        "rounds": rounds,
        "definitions": definitions,
        "timeout_s": timeout_s,
        "result_bytes": result_bytes,
        "calls_per_minute": calls_per_minute,
    }
    changes = _checked({name: value for name, value in given.items() if value is not None})
    return _view(office, account, await office.store.write(_set(account, changes, office.clock.now_ms())))


async def clear_tool_policy(office: Office, actor: Actor, *, account: str) -> ToolPolicyView:
    """Drop an account's own rules for tools, so that those configured apply."""
    actor.check_governs(account)
    return _view(office, account, await office.store.write(_clear(account, office.clock.now_ms())))


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the configuration would take them. InvalidRequest."""
    if not given:
        raise InvalidRequest("Name a rule to set.")
    hints = get_type_hints(ToolSettings, include_extras=True)
    checked = {}
    for name, value in given.items():
        try:
            checked[name] = convert(hints[name], _as_in_toml(value))
        except WrongValueError as error:
            raise InvalidRequest(f"'{name}' {error}.", param=name) from None
    return checked


def _as_in_toml(value: Any) -> Any:
    """A value as the configuration's reader expects it."""
    if isinstance(value, float):
        return Decimal(str(value))
    return value if isinstance(value, bool | int) else list(value)


def _own(account: str) -> Program[dict[str, Any]]:
    if (yield from find_account(account)) is None:
        raise NotFound("There is no such account.")
    return (yield from own_policy(account))


def _set(account: str, changes: Mapping[str, Any], now_ms: int) -> Program[dict[str, Any]]:
    policy = {**(yield from _own(account)), **changes}
    yield from write_policy(account, policy, now_ms)
    return policy


def _clear(account: str, now_ms: int) -> Program[dict[str, Any]]:
    yield from _own(account)
    yield from write_policy(account, {}, now_ms)
    return {}


def _view(office: Office, account: str, own: Mapping[str, Any]) -> ToolPolicyView:
    configured = {field.name: getattr(office.settings.tools, field.name) for field in fields(ToolSettings)}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return ToolPolicyView(account=account, own=tuple(sorted(own)), **{**configured, **changes})
