"""The list of operations: one entry each, and every door is a rendering of it.

An entry names the operation, the function that does it, its place on the HTTP door below `/api/v1` and the scope it
needs. The function's keyword parameters are the operation's parameters, its docstring is the description. An
operation without a method is for the operator at the machine only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penstock.errors import Forbidden
from penstock.operations.accounts import add_member, create_account, list_accounts, remove_member
from penstock.operations.actor import Actor, Scope
from penstock.operations.balances import grant_balance, show_balance
from penstock.operations.child_keys import create_child_key
from penstock.operations.discovery import discover_models
from penstock.operations.keys import create_key, list_keys, revoke_key
from penstock.operations.ledger import verify_ledger
from penstock.operations.models import list_models
from penstock.operations.office import Office
from penstock.operations.pulse import show_pulse
from penstock.operations.routes import clear_route, explain_route, set_route, show_route
from penstock.operations.sessions import issue_session
from penstock.operations.tools import clear_tool_policy, set_tool_policy, show_tool_policy
from penstock.operations.usage import list_usage, summarize_usage
from penstock.operations.users import create_user, list_users
from penstock.operations.values import require_printable

HEADERS = {"idempotency_key": "Idempotency-Key"}
"""Parameters that go in a header over HTTP."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that can be done. Path parameters in braces are parameters of the function."""

    name: str
    function: Callable[..., Awaitable[Any]]
    scope: Scope
    method: Literal["GET", "POST", "DELETE"] | None = None
    path: str = ""


OPERATIONS = (
    Operation("users.create", create_user, "operator", "POST", "/users"),
    Operation("users.list", list_users, "operator", "GET", "/users"),
    Operation("sessions.issue", issue_session, "local"),
    Operation("accounts.create", create_account, "operator", "POST", "/accounts"),
    Operation("accounts.list", list_accounts, "read", "GET", "/accounts"),
    Operation("accounts.add_member", add_member, "management", "POST", "/accounts/{account}/members"),
    Operation("accounts.remove_member", remove_member, "management", "DELETE", "/accounts/{account}/members/{user}"),
    Operation("keys.create", create_key, "management", "POST", "/keys"),
    Operation("keys.list", list_keys, "read", "GET", "/keys"),
    Operation("keys.revoke", revoke_key, "management", "DELETE", "/keys/{key}"),
    Operation("keys.child", create_child_key, "management", "POST", "/keys/{key}/children"),
    Operation("balances.show", show_balance, "read", "GET", "/accounts/{account}/balance"),
    Operation("balances.grant", grant_balance, "operator", "POST", "/accounts/{account}/grants"),
    Operation("usage.list", list_usage, "read", "GET", "/usage"),
    Operation("usage.summary", summarize_usage, "read", "GET", "/usage/summary"),
    Operation("tools.show_policy", show_tool_policy, "read", "GET", "/accounts/{account}/tools"),
    Operation("tools.set_policy", set_tool_policy, "operator", "POST", "/accounts/{account}/tools"),
    Operation("tools.clear_policy", clear_tool_policy, "operator", "DELETE", "/accounts/{account}/tools"),
    Operation("models.list", list_models, "read", "GET", "/models"),
    Operation("models.discover", discover_models, "operator", "GET", "/models/discovery"),
    Operation("routes.show", show_route, "read", "GET", "/routes"),
    Operation("routes.set", set_route, "management", "POST", "/routes"),
    Operation("routes.clear", clear_route, "management", "DELETE", "/routes"),
    Operation("routes.explain", explain_route, "read", "GET", "/routes/explain"),
    Operation("pulse", show_pulse, "read", "GET", "/pulse"),
    Operation("ledger.verify", verify_ledger, "operator", "GET", "/ledger/verification"),
)


def operation_named(name: str) -> Operation:
    """The operation of that name. KeyError when there is none."""
    return {each.name: each for each in OPERATIONS}[name]


async def perform(office: Office, actor: Actor, operation: Operation, arguments: Mapping[str, Any]) -> Any:
    """Do it, when the actor's scopes allow it and no argument holds what nobody can have meant.

    The errors are those of `penstock/errors.py`; anything else is a defect.
    """
    if not actor.may(operation.scope):
        raise Forbidden(f"{operation.name} needs the scope '{operation.scope}'.")
    require_printable(arguments)
    return await operation.function(office, actor, **arguments)
