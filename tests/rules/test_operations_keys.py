"""Keys: what each kind belongs to, that a child can never do more than its parent, and that accounts are apart."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.access import Access, Surface
from penstock.app import open_office
from penstock.config_file import load
from penstock.db.credentials import (
    DEEPEST,
    Credential,
    Identity,
    NewCredential,
    find_lineage,
    identify,
    insert_credential,
    revoke,
    still_good,
)
from penstock.db.journal import ALL_LOTS
from penstock.db.ledger import Admission
from penstock.db.program import Program, fetch
from penstock.db.sqlite import LONG_READS
from penstock.db.store import LONG_READ_S
from penstock.errors import AuthInvalid, Forbidden, InvalidRequest, NotFound, WrongState
from penstock.money.books import Granted, Need, Refusal, Refused
from penstock.operations.actor import LOCAL, Actor, actor_of
from penstock.operations.index import operation_named, perform
from penstock.operations.key_views import KeyView, MintedKey
from penstock.operations.keys import mint
from penstock.operations.office import Office
from tests.engines import SECRETS
from tests.ledger import counting

MANAGEMENT = Surface("management", frozenset({"management", "session"}), account_rule="own", lane="credits")
MODEL = "penstock/demo"


@pytest.fixture
async def account(office: Office) -> str:
    return str((await do(office, "accounts.create", name="Team")).id)


async def do(office: Office, operation: str, /, actor: Actor = LOCAL, **arguments: Any) -> Any:
    return await perform(office, actor, operation_named(operation), arguments)


async def acting_as(office: Office, token: str) -> Actor:
    access = Access(office.store, office.keyring, office.sessions, office.clock, 1000)
    return await actor_of(office, await access.admit(f"Bearer {token}", None, MANAGEMENT))


async def owner(office: Office, made: MintedKey) -> Identity | None:
    digest = office.keyring.digest(made.key)
    return (await office.store.read(identify([digest], office.clock.now_ms()))).get(digest)


async def manager_of(office: Office, account: str, *scopes: str) -> Actor:
    made = await do(
        office, "keys.create", kind="management", name="m", account=account, scopes=scopes or ("management",)
    )
    return await acting_as(office, made.key)


async def admitted(office: Office, keys: tuple[str, ...], account: str, units: int) -> Any:
    need = Need(account, keys, "credits", "USD", value_rate=1_000_000, want=units, least=units)
    asked = Admission(office.ids.new("req"), need, "own_test", office.clock.now_ms() + 60_000, "[]")
    return await office.store.commit(asked)


async def keys_of(office: Office, account: str, *, state: str) -> list[KeyView]:
    page = await do(office, "keys.list", account=account, limit=1000)
    found = list(page.data)
    while page.next:
        page = await do(office, "keys.list", account=account, limit=1000, cursor=page.next)
        found += page.data
    return [each for each in found if each.state == state]


def many_children(office: Office, parent: MintedKey, count: int) -> Program[None]:
    """Children of a key, as if minted one by one."""
    for number in range(count):
        yield from insert_credential(
            NewCredential(
                id=office.ids.new("key"), kind=parent.kind, name=str(number), display="", digest=None, user_id=None,
                account_id=parent.account, parent_id=parent.id, scopes=parent.scopes, created_ms=number,
                requests_per_minute=1,
            )
        )  # fmt: skip


def child_of(parent: Credential) -> NewCredential:
    """A child as lax as its parent."""
    return NewCredential(
        id="", kind=parent.kind, name="child", display="", digest=None, user_id=None, account_id=parent.account_id,
        parent_id=parent.id, scopes=parent.scopes, created_ms=0, requests_per_minute=parent.requests_per_minute,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("team", "team."), ("account", "ak_"), ("inference", "pen_sk_"), ("management", "pen_live_")],
)
async def test_a_key_of_an_account_is_shown_once_and_known_by_its_digest(
    office: Office, account: str, kind: str, prefix: str
) -> None:
    made = await do(office, "keys.create", kind=kind, name="k", account=account)
    assert made.key.startswith(prefix)
    assert made.display == f"{prefix}…{made.key[-4:]}"
    assert made.key not in repr(made)
    (listed,) = (await do(office, "keys.list")).data
    assert not hasattr(listed, "key")
    assert (listed.id, listed.state, listed.account) == (made.id, "active", account)
    identity = await owner(office, made)
    assert identity is not None
    assert (identity.keys, identity.account, identity.kind) == ((made.id,), account, kind)


async def test_a_personal_key_pays_from_the_personal_account_and_an_account_key_reaches_every_membership(
    office: Office,
) -> None:
    user = await do(office, "users.create", name="Ada")
    team = await do(office, "accounts.create", name="Team", owner=user.id)
    personal = await do(office, "keys.create", kind="personal", name="p", user=user.id)
    everywhere = await do(office, "keys.create", kind="account", name="a", user=user.id)
    first, second = await owner(office, personal), await owner(office, everywhere)
    assert first is not None
    assert second is not None
    assert (first.account, first.own_account) == (user.account, user.account)
    assert second.account is None
    assert second.accounts == {user.account, team.id}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "personal", "account": "?"},
        {"kind": "inference"},
        {"kind": "inference", "user": "?"},
        {"kind": "account", "user": "?", "account": "?"},
        {"kind": "inference", "account": "?", "scopes": ["management"]},
        {"kind": "management", "account": "?", "scopes": []},
        {"kind": "management", "account": "?", "scopes": ["everything"]},
        {"kind": "team", "account": "?", "models": ["no/such"]},
        {"kind": "team", "account": "?", "models": []},
        {"kind": "team", "account": "?", "limit": "0"},
        {"kind": "team", "account": "?", "limit": "1e3"},
        {"kind": "team", "account": "?", "expires": "2020-01-01"},
        {"kind": "team", "account": "?", "expires": "soon"},
        {"kind": "team", "account": "?", "expires": "9999-12-31T23:59:59-14:00"},  # in the year 10000, UTC
        {"kind": "team", "account": "?", "requests_per_minute": 0},
        {"kind": "team", "account": "?", "requests_per_minute": 10**12},
        {"kind": "team", "account": "?", "name": ""},
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(office: Office, account: str, wrong: dict[str, Any]) -> None:
    arguments = {"name": "k"} | wrong | ({"account": account} if "account" in wrong else {})
    with pytest.raises(InvalidRequest) as refused:
        await do(office, "keys.create", **arguments)
    assert refused.value.param
    assert (await do(office, "keys.list")).data == ()


async def test_a_key_for_somebody_unknown_is_not_made(office: Office) -> None:
    with pytest.raises(NotFound):
        await do(office, "keys.create", name="k", kind="inference", account="acc_x")
    with pytest.raises(NotFound):
        await do(office, "keys.create", name="k", kind="personal", user="usr_x")
    personal = (await do(office, "users.create", name="Ada")).account
    with pytest.raises(InvalidRequest, match="team account"):
        await do(office, "keys.create", kind="team", name="k", account=personal)


async def test_a_child_has_at_most_what_its_parent_has(office: Office, account: str) -> None:
    parent = await do(
        office, "keys.create", kind="inference", name="p", account=account, models=[MODEL], limit="10",
        expires="2099-01-01", requests_per_minute=60,
    )  # fmt: skip
    same = await do(office, "keys.child", key=parent.id, name="same")
    for field in ("kind", "account", "scopes", "models", "limit", "expires", "requests_per_minute", "environment"):
        assert getattr(same, field) == getattr(parent, field)
    less = await do(
        office, "keys.child", key=parent.id, name="less", limit="0.5", expires="2098-01-01", requests_per_minute=1
    )
    assert (less.parent, less.limit.usd, less.requests_per_minute) == (parent.id, "0.50", 1)


@pytest.mark.parametrize(
    "more",
    [
        {"limit": "10.000000001"},
        {"expires": "2099-01-01T00:00:01Z"},
        {"requests_per_minute": 61},
        {"requests_per_minute": 0},
        {"scopes": ["management"]},
        {"scopes": []},
        {"models": ["penstock/other"]},
    ],
)
async def test_a_child_that_could_do_more_is_refused(office: Office, account: str, more: dict[str, Any]) -> None:
    parent = await do(
        office, "keys.create", kind="inference", name="p", account=account, models=[MODEL], limit="10",
        expires="2099-01-01", requests_per_minute=60,
    )  # fmt: skip
    with pytest.raises(InvalidRequest):
        await do(office, "keys.child", key=parent.id, name="c", **more)


@pytest.mark.parametrize("kind", ["worker", "tools_worker"])
@pytest.mark.parametrize("bound", [{"limit": "1"}, {"models": [MODEL]}])
async def test_a_child_of_a_workers_key_has_neither_limit_nor_models_as_its_parent_has_none(
    office: Office, account: str, kind: str, bound: dict[str, Any]
) -> None:
    parent = await do(office, "keys.create", kind=kind, name="p", account=account)
    with pytest.raises(InvalidRequest, match="calls no models"):
        await do(office, "keys.child", key=parent.id, name="c", **bound)


async def test_a_revoked_parent_ends_its_children_at_identification_and_at_admission(
    office: Office, account: str
) -> None:
    await do(office, "balances.grant", account=account, usd="1")
    parent = await do(office, "keys.create", kind="inference", name="p", account=account)
    child = await do(office, "keys.child", key=parent.id, name="c")
    grandchild = await do(office, "keys.child", key=child.id, name="g")
    line = (grandchild.id, child.id, parent.id)
    known = await owner(office, grandchild)
    assert known is not None
    assert known.keys == line
    assert isinstance(await admitted(office, line, account, 1), Granted)
    await do(office, "keys.revoke", key=parent.id)
    for made in (parent, child, grandchild):
        assert await owner(office, made) is None
    assert await admitted(office, line, account, 1) == Refused(Refusal.KEY_INVALID)
    assert {each.state for each in (await do(office, "keys.list")).data} == {"revoked"}
    with pytest.raises(WrongState):
        await do(office, "keys.child", key=parent.id, name="late")


async def test_a_childs_spending_counts_for_its_parent(office: Office, account: str) -> None:
    await do(office, "balances.grant", account=account, usd="1")
    parent = await do(office, "keys.create", kind="inference", name="p", account=account, limit="0.000000010")
    child = await do(office, "keys.child", key=parent.id, name="c", limit="0.000000006")
    line = (child.id, parent.id)
    assert (await admitted(office, line, account, 7)).why is Refusal.KEY_LIMIT
    assert isinstance(await admitted(office, line, account, 6), Granted)
    refused = await admitted(office, (parent.id,), account, 5)
    assert (type(refused), refused.available) == (Refused, 4)
    assert isinstance(await admitted(office, (parent.id,), account, 4), Granted)


async def test_families_of_keys_are_no_deeper_than_identification_looks(office: Office, account: str) -> None:
    key = await do(office, "keys.create", kind="inference", name="p", account=account)
    for _ in range(DEEPEST - 1):
        key = await do(office, "keys.child", key=key.id, name="c")
    with pytest.raises(WrongState, match="generations"):
        await do(office, "keys.child", key=key.id, name="c")


async def test_revoking_keeps_the_first_time_and_does_not_touch_others(office: Office, account: str) -> None:
    first, second = [await do(office, "keys.create", kind="team", name=n, account=account) for n in ("a", "b")]
    once = await do(office, "keys.revoke", key=first.id)
    assert (await do(office, "keys.revoke", key=first.id)).revoked == once.revoked
    assert [each.state for each in (await do(office, "keys.list")).data] == ["revoked", "active"]
    assert second.state == "active"


async def test_keys_are_listed_in_pages_that_leave_none_out_and_repeat_none(office: Office, account: str) -> None:
    other = (await do(office, "accounts.create", name="Other")).id
    made = []
    for number in range(7):
        made.append((await do(office, "keys.create", kind="inference", name=str(number), account=account)).id)
        await do(office, "keys.create", kind="inference", name="other", account=other)
    made.sort()  # of one millisecond they come in any order
    pages, cursor = [], None
    for _ in range(3):
        page = await do(office, "keys.list", account=account, limit=3, cursor=cursor)
        pages.append([each.id for each in page.data])
        cursor = page.next
    assert pages == [made[:3], made[3:6], made[6:]]
    assert cursor is None
    assert (await do(office, "keys.list", account=account, limit=7)).next is None
    assert len((await do(office, "keys.list", limit=10)).data) == 10
    for limit in (0, 1001):
        with pytest.raises(InvalidRequest):
            await do(office, "keys.list", limit=limit)


async def test_a_key_with_many_children_is_revoked_in_transactions_that_ask_little(
    office: Office, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked = await do(office, "keys.create", kind="management", name="leaked", account=account)
    await office.store.write(many_children(office, leaked, 1_200))
    asked, write = [], office.store.write

    async def counted(program: Program[Any]) -> Any:
        asked.append(0)
        return await write(counting(program, asked))

    monkeypatch.setattr(office.store, "write", counted)
    once = await do(office, "keys.revoke", key=leaked.id)
    assert once.state == "revoked"
    assert max(asked) <= 6
    assert (await keys_of(office, account, state="active")) == []
    asked.clear()
    assert (await do(office, "keys.revoke", key=leaked.id)).revoked == once.revoked
    assert sum(asked) <= 6


async def test_a_revocation_that_broke_off_is_finished_when_it_is_repeated_and_holds_meanwhile(
    office: Office, account: str
) -> None:
    parent = await do(office, "keys.create", kind="worker", name="p", account=account)
    child = await do(office, "keys.child", key=parent.id, name="c")
    grandchild = await do(office, "keys.child", key=child.id, name="g")
    now_ms = office.clock.now_ms()
    everyone = {parent.id, child.id, grandchild.id}
    assert await office.store.read(still_good(everyone, now_ms)) == everyone
    await office.store.write(revoke([parent.id], now_ms))
    assert await owner(office, grandchild) is None
    assert await office.store.read(still_good(everyone, now_ms)) == set()
    await do(office, "keys.revoke", key=parent.id)
    assert {each.id for each in await keys_of(office, account, state="revoked")} == everyone


async def test_a_management_key_sees_and_changes_its_own_account_only(office: Office, account: str) -> None:
    other = (await do(office, "accounts.create", name="Other")).id
    theirs = await do(office, "keys.create", kind="inference", name="theirs", account=other)
    manager = await manager_of(office, account)
    assert [each.id for each in (await do(office, "accounts.list", manager)).data] == [account]
    assert {each.account for each in (await do(office, "keys.list", manager)).data} == {account}
    for operation, arguments in (
        ("balances.show", {"account": other}),
        ("keys.list", {"account": other}),
        ("usage.list", {"account": other}),
        ("usage.summary", {"account": other}),
        ("keys.revoke", {"key": theirs.id}),
        ("keys.child", {"key": theirs.id, "name": "c"}),
        ("keys.create", {"kind": "inference", "name": "k", "account": other}),
        ("accounts.add_member", {"account": other, "user": "usr_x"}),
        ("accounts.remove_member", {"account": other, "user": "usr_x"}),
    ):
        with pytest.raises(NotFound) as foreign:
            await do(office, operation, manager, **arguments)
        unknown = {name: "acc_x" if value == other else "key_x" if value == theirs.id else value
                   for name, value in arguments.items()}  # fmt: skip
        with pytest.raises(NotFound) as absent:
            await do(office, operation, manager, **unknown)
        assert foreign.value.message == absent.value.message
    for operation in ("users.list", "users.create", "accounts.create", "balances.grant", "ledger.verify"):
        with pytest.raises(Forbidden):
            await do(office, operation, manager)
    assert (await do(office, "keys.create", manager, kind="inference", name="k", account=account)).account == account


async def test_an_operator_key_acts_on_every_account_but_issues_no_sessions(office: Office, account: str) -> None:
    other = (await do(office, "accounts.create", name="Other")).id
    operator = await manager_of(office, account, "operator")
    assert (await do(office, "balances.grant", operator, account=other, usd="2")).usd.usd == "2.00"
    user = await do(office, "users.create", operator, name="Ada")
    with pytest.raises(Forbidden):
        await do(office, "sessions.issue", operator, user=user.id)


async def test_a_reading_key_changes_nothing(office: Office, account: str) -> None:
    reader = await manager_of(office, account, "read")
    assert (await do(office, "balances.show", reader, account=account)).account == account
    with pytest.raises(Forbidden):
        await do(office, "keys.create", reader, kind="inference", name="k", account=account)


async def test_nobody_rises_by_minting(office: Office, account: str) -> None:
    operators = await do(office, "keys.create", kind="management", name="o", account=account, scopes=["operator"])
    manager = await manager_of(office, account)
    with pytest.raises(Forbidden):
        await do(office, "keys.create", manager, kind="management", name="k", account=account, scopes=["operator"])
    for operation, rest in (("keys.child", {"name": "c", "scopes": ["read"]}), ("keys.revoke", {})):
        with pytest.raises(Forbidden):
            await do(office, operation, manager, key=operators.id, **rest)


async def test_a_child_of_a_management_key_mints_only_its_own_children(office: Office, account: str) -> None:
    parent = await do(office, "keys.create", kind="management", name="p", account=account)
    child = await do(office, "keys.child", key=parent.id, name="c")
    acting = await acting_as(office, child.key)
    with pytest.raises(Forbidden):
        await do(office, "keys.create", acting, kind="inference", name="k", account=account)
    with pytest.raises(Forbidden):
        await do(office, "keys.child", acting, key=parent.id, name="sibling")
    assert (await do(office, "keys.child", acting, key=child.id, name="own", scopes=["read"])).parent == child.id
    await do(office, "keys.revoke", key=parent.id)
    with pytest.raises(AuthInvalid):
        await acting_as(office, child.key)


@pytest.mark.parametrize("scope", ["management", "operator"])
async def test_a_child_changes_keys_of_its_own_line_and_nothing_of_an_account(office: Office, scope: str) -> None:
    ada, eve = [await do(office, "users.create", name=name) for name in ("Ada", "Eve")]
    team = (await do(office, "accounts.create", name="Team", owner=ada.id)).id
    parent = await do(office, "keys.create", kind="management", name="p", account=team, scopes=[scope])
    other = await do(office, "keys.create", kind="inference", name="o", account=team)
    child = await do(office, "keys.child", key=parent.id, name="c", expires="2099-01-01")
    acting = await acting_as(office, child.key)
    for operation, arguments in (
        ("accounts.add_member", {"account": team, "user": eve.id, "role": "owner"}),
        ("accounts.remove_member", {"account": team, "user": ada.id}),
        ("routes.set", {"account": team, "deny": ["*"]}),
        ("routes.clear", {"account": team}),
        ("routes.set", {"key": parent.id, "deny": ["*"]}),
        ("routes.set", {"key": other.id, "deny": ["*"]}),
        ("routes.clear", {"key": other.id}),
        ("tools.set_policy", {"account": team, "enabled": False}),
        ("tools.clear_policy", {"account": team}),
        ("keys.revoke", {"key": parent.id}),
        ("keys.revoke", {"key": other.id}),
    ):
        with pytest.raises(Forbidden):
            await do(office, operation, acting, **arguments)
    own = await do(office, "keys.child", acting, key=child.id, name="g")
    assert (await do(office, "routes.set", acting, key=own.id, deny=["*"])).deny == ("*",)
    assert (await do(office, "keys.revoke", acting, key=own.id)).state == "revoked"
    assert (await do(office, "keys.revoke", acting, key=child.id)).state == "revoked"


async def test_operators_rights_are_not_handed_on(office: Office, account: str) -> None:
    other = (await do(office, "accounts.create", name="Other")).id
    parent = await do(office, "keys.create", kind="management", name="o", account=account, scopes=["operator"])
    with pytest.raises(InvalidRequest) as refused:
        await do(office, "keys.child", key=parent.id, name="c", scopes=["operator"])
    assert refused.value.param == "scopes"
    child = await do(office, "keys.child", key=parent.id, name="c")
    assert child.scopes == ("management",)
    assert (await do(office, "keys.child", key=parent.id, name="r", scopes=["read"])).scopes == ("read",)
    line = await office.store.read(find_lineage(parent.id))
    key, row = mint(office, replace(child_of(line[0]), id=office.ids.new("key"), scopes=("operator",)))
    await office.store.write(insert_credential(row))  # as they could be minted once
    for acting in (await acting_as(office, child.key), await acting_as(office, key)):
        for operation, arguments in (
            ("users.create", {"name": "Eve"}),
            ("accounts.create", {"name": "Eve"}),
            ("balances.grant", {"account": account, "usd": "1"}),
            ("keys.create", {"kind": "inference", "name": "k", "account": account}),
        ):
            with pytest.raises(Forbidden):
                await do(office, operation, acting, **arguments)
        with pytest.raises(NotFound):
            await do(office, "balances.show", acting, account=other)
        assert (await do(office, "balances.show", acting, account=account)).credits.total.nano == 0


async def test_an_operators_key_bounds_only_another_operators(office: Office, account: str) -> None:
    made = await do(
        office, "keys.create", kind="management", name="o", account=account, scopes=["operator"],
        requests_per_minute=60, expires="2099-01-01",
    )  # fmt: skip
    operator = await acting_as(office, made.key)
    lax = await do(
        office, "keys.create", operator, kind="inference", name="k", account=account, requests_per_minute=5_000
    )
    assert (lax.requests_per_minute, lax.expires) == (5_000, None)
    child = await do(office, "keys.child", operator, key=lax.id, name="c")
    assert (child.requests_per_minute, child.expires) == (5_000, None)
    of_its_own = await do(office, "keys.child", operator, key=made.id, name="c")
    assert (of_its_own.requests_per_minute, of_its_own.expires) == (60, "2099-01-01T00:00:00Z")
    another = {"kind": "management", "name": "p", "account": account, "scopes": ["operator"]}
    for more in ({"requests_per_minute": 61}, {"expires": "2099-01-01T00:00:01Z"}):
        with pytest.raises(InvalidRequest):
            await do(office, "keys.create", operator, **another, **more)


async def test_no_key_makes_one_that_may_more_or_longer_than_itself(office: Office, account: str) -> None:
    lax = await do(office, "keys.create", kind="inference", name="lax", account=account, requests_per_minute=5_000)
    made = await do(
        office, "keys.create", kind="management", name="m", account=account,
        requests_per_minute=60, expires="2099-01-01",
    )  # fmt: skip
    maker = await acting_as(office, made.key)
    for more in ({"requests_per_minute": 61}, {"expires": "2099-01-01T00:00:01Z"}):
        for operation, arguments in (
            ("keys.create", {"kind": "inference", "account": account}),
            ("keys.create", {"kind": "management", "account": account}),
            ("keys.child", {"key": lax.id}),
            ("keys.child", {"key": made.id}),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await do(office, operation, maker, name="k", **arguments, **more)
            assert refused.value.param in more
    for operation, arguments in (
        ("keys.create", {"kind": "inference", "account": account}),
        ("keys.child", {"key": lax.id}),
    ):
        usual = await do(office, operation, maker, name="k", **arguments)
        assert (usual.requests_per_minute, usual.expires) == (60, "2099-01-01T00:00:00Z")
        less = await do(office, operation, maker, name="k", requests_per_minute=59, expires="2098-01-01", **arguments)
        assert (less.requests_per_minute, less.expires) == (59, "2098-01-01T00:00:00Z")


async def test_a_person_makes_no_key_that_may_ask_more_often_than_a_session(office: Office) -> None:
    ada = await do(office, "users.create", name="Ada")
    adas = await acting_as(office, (await do(office, "sessions.issue", user=ada.id)).token)
    with pytest.raises(InvalidRequest, match="1,000"):
        await do(office, "keys.create", adas, kind="personal", name="k", user=ada.id, requests_per_minute=1_001)
    own = await do(office, "keys.create", adas, kind="personal", name="k", user=ada.id)
    assert (own.requests_per_minute, own.expires) == (1_000, None)


async def test_a_person_who_came_when_the_usual_rate_was_lower_makes_keys_of_the_usual_one(office: Office) -> None:
    ada = await do(office, "users.create", name="Ada")
    adas = await acting_as(office, (await do(office, "sessions.issue", user=ada.id)).token)
    limits = replace(office.settings.limits, requests_per_minute=6_000)
    later = replace(office, settings=replace(office.settings, limits=limits))
    own = await do(later, "keys.create", adas, kind="personal", name="k", user=ada.id)
    assert own.requests_per_minute == 6_000
    with pytest.raises(InvalidRequest):
        await do(later, "keys.create", adas, kind="personal", name="k", user=ada.id, requests_per_minute=6_001)


async def test_a_key_is_revoked_however_many_long_reads_are_under_way(tmp_path: Path) -> None:
    released = threading.Event()

    def slow() -> Program[int]:
        yield from fetch(ALL_LOTS)
        assert released.wait(60)
        return 1

    async with open_office(load(None, SECRETS | {"PENSTOCK_DATABASE_URL": f"sqlite:///{tmp_path}/p.db"})) as office:
        account = (await do(office, "accounts.create", name="Team")).id
        leaked = await do(office, "keys.create", kind="account", name="leaked", account=account)
        reads = [asyncio.create_task(office.store.read(slow(), within_s=LONG_READ_S)) for _ in range(LONG_READS)]
        try:
            await asyncio.sleep(0)  # they have taken their places
            async with asyncio.timeout(10):
                assert (await do(office, "keys.revoke", key=leaked.id)).state == "revoked"
        finally:
            released.set()
            await asyncio.gather(*reads)


@pytest.mark.parametrize("bound", [{"limit": "1"}, {"models": [MODEL]}])
async def test_a_management_key_calls_no_models_and_says_so(
    office: Office, account: str, bound: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="calls no models") as refused:
        await do(office, "keys.create", kind="management", name="k", account=account, **bound)
    assert refused.value.param in bound
    parent = await do(office, "keys.create", kind="management", name="p", account=account)
    with pytest.raises(InvalidRequest, match="calls no models"):
        await do(office, "keys.child", key=parent.id, name="c", **bound)


async def test_a_users_keys_are_the_users_business(office: Office) -> None:
    ada, bob = [await do(office, "users.create", name=name) for name in ("Ada", "Bob")]
    adas = await acting_as(office, (await do(office, "sessions.issue", user=ada.id)).token)
    own = await do(office, "keys.create", adas, kind="account", name="k", user=ada.id)
    bobs = await do(office, "keys.create", kind="account", name="k", user=bob.id)
    with pytest.raises(NotFound):
        await do(office, "keys.create", adas, kind="account", name="k", user=bob.id)
    with pytest.raises(NotFound):
        await do(office, "keys.revoke", adas, key=bobs.id)
    manager = await manager_of(office, ada.account)
    with pytest.raises(NotFound):  # it would reach the user's other accounts
        await do(office, "keys.child", manager, key=own.id, name="c")
    assert {each.user for each in (await do(office, "keys.list", adas)).data if each.kind == "account"} == {ada.id}
    assert (await do(office, "keys.revoke", adas, key=own.id)).state == "revoked"
