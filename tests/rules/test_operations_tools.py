"""Rules for tools: who may set them, what they may say, and what is in force."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.app import open_office
from penstock.config import ToolSettings
from penstock.config_file import load
from penstock.errors import Forbidden, InvalidRequest, NotFound
from penstock.operations.actor import LOCAL, Actor
from penstock.operations.index import operation_named, perform
from penstock.operations.office import Office
from penstock.relay.tools import merged, permits


@pytest.fixture
async def office(store_url: str) -> AsyncIterator[Office]:
    environ = {
        "PENSTOCK_DATABASE_URL": store_url,
        "PENSTOCK_KEY_PEPPER": "p" * 40,
        "PENSTOCK_AUTH_SECRET": "a" * 40,
    }
    settings = replace(load(None, environ), tools=ToolSettings(deny=("rm",), rounds=7))
    async with open_office(settings) as office:
        yield office


async def do(office: Office, operation: str, /, actor: Actor = LOCAL, **arguments: Any) -> Any:
    return await perform(office, actor, operation_named(operation), arguments)


async def test_an_accounts_rules_stand_before_the_configured_ones(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    before = await do(office, "tools.show_policy", account=account)
    assert (before.enabled, before.deny, before.rounds, before.own) == (True, ("rm",), 7, ())
    await do(office, "tools.set_policy", account=account, allow=["web_*"], timeout_s=2.5)
    await do(office, "tools.set_policy", account=account, enabled=False)
    after = await do(office, "tools.show_policy", account=account)
    assert (after.enabled, after.allow, after.deny, after.timeout_s) == (False, ("web_*",), ("rm",), 2.5)
    assert after.own == ("allow", "enabled", "timeout_s")
    assert await do(office, "tools.clear_policy", account=account) == before


async def test_only_the_operator_sets_rules_and_only_ones_own_are_shown(office: Office) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    owner = Actor(frozenset({"management"}), sees=frozenset({account}), manages=frozenset({account}))
    stranger = replace(owner, sees=frozenset({"acc_other"}), manages=frozenset({"acc_other"}))
    assert (await do(office, "tools.show_policy", owner, account=account)).account == account
    with pytest.raises(NotFound):
        await do(office, "tools.show_policy", stranger, account=account)
    for operation, arguments in (("tools.set_policy", {"rounds": 1}), ("tools.clear_policy", {})):
        with pytest.raises(Forbidden):
            await do(office, operation, owner, account=account, **arguments)
    with pytest.raises(NotFound):
        await do(office, "tools.set_policy", account="acc_none", rounds=1)


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"allow": ["a b"]},
        {"allow": [""]},
        {"deny": ["x" * 65]},
        {"rounds": 0},
        {"rounds": 101},
        {"definitions": 129},
        {"timeout_s": 0},
        {"timeout_s": 301.0},
        {"result_bytes": 1},
        {"calls_per_minute": 0},
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused(office: Office, rules: dict[str, Any]) -> None:
    account = (await do(office, "accounts.create", name="Team")).id
    with pytest.raises(InvalidRequest):
        await do(office, "tools.set_policy", account=account, **rules)


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ({}, ["web_fetch", "web_search", "box__rm"]),
        ({"allow": ["web_*"]}, ["web_fetch", "web_search"]),
        ({"allow": ["web_?etch"]}, ["web_fetch"]),
        ({"deny": ["*__rm"]}, ["web_fetch", "web_search"]),
        ({"allow": ["web_fetch"], "deny": ["web_*"]}, []),
        ({"allow": []}, []),
        ({"allow": ["WEB_*"]}, []),
        ({"enabled": False}, []),
    ],
)
def test_what_rules_allow(rules: dict[str, Any], allowed: list[str]) -> None:
    policy = merged(ToolSettings(), rules)
    assert [name for name in ("web_fetch", "web_search", "box__rm") if permits(policy, name)] == allowed
