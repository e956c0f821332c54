"""The list of operations is whole, and people and accounts behave: through `perform`, on a real store in memory."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from penstock.access import Access, Surface
from penstock.cli.sample import open_sample
from penstock.errors import AuthInvalid, Forbidden, InvalidRequest, NotFound, PenstockError, WrongState
from penstock.operations.actor import LOCAL, Actor, actor_of
from penstock.operations.index import OPERATIONS, operation_named, perform
from penstock.operations.office import Office

MANAGEMENT = Surface("management", frozenset({"management", "session"}), account_rule="own", lane="credits")


async def do(office: Office, operation: str, /, actor: Actor = LOCAL, **arguments: Any) -> Any:
    return await perform(office, actor, operation_named(operation), arguments)


async def acting_as(office: Office, token: str) -> Actor:
    """The actor behind a management key or session token, admitted like any other."""
    access = Access(office.store, office.keyring, office.sessions, office.clock, 1000)
    return await actor_of(office, await access.admit(f"Bearer {token}", None, MANAGEMENT))


def test_every_operation_has_a_name_a_description_and_unless_it_is_local_an_address_of_its_own() -> None:
    assert len({each.name for each in OPERATIONS}) == len(OPERATIONS)
    addresses = [(each.method, each.path) for each in OPERATIONS if each.scope != "local"]
    assert len(set(addresses)) == len(addresses)
    assert None not in {method for method, _ in addresses}
    assert [each.name for each in OPERATIONS if each.method is None] == ["sessions.issue"]
    for each in OPERATIONS:
        assert inspect.getdoc(each.function)
        assert set(re.findall(r"{(\w+)}", each.path)) <= inspect.signature(each.function).parameters.keys()


async def test_a_user_comes_with_a_personal_account_he_owns(office: Office) -> None:
    user = await do(office, "users.create", name="  Ada  ")
    (account,) = (await do(office, "accounts.list")).data
    assert (account.id, account.kind, account.name) == (user.account, "personal", "Ada")
    assert [(member.user, member.role) for member in account.members] == [(user.id, "owner")]
    assert (await do(office, "users.list")).data == (user,)


async def test_a_team_takes_members_and_keeps_its_last_owner(office: Office) -> None:
    ada, bob = [await do(office, "users.create", name=name) for name in ("Ada", "Bob")]
    team = await do(office, "accounts.create", name="Team", owner=ada.id)
    both = await do(office, "accounts.add_member", account=team.id, user=bob.id)
    assert [(member.user, member.role) for member in both.members] == [(ada.id, "owner"), (bob.id, "member")]
    with pytest.raises(WrongState, match="last owner"):
        await do(office, "accounts.remove_member", account=team.id, user=ada.id)
    with pytest.raises(WrongState, match="member already"):
        await do(office, "accounts.add_member", account=team.id, user=bob.id)
    left = await do(office, "accounts.remove_member", account=team.id, user=bob.id)
    assert [member.user for member in left.members] == [ada.id]
    with pytest.raises(NotFound):
        await do(office, "accounts.remove_member", account=team.id, user=bob.id)


@pytest.mark.parametrize("noun", ["users", "accounts"])
async def test_people_are_listed_in_pages_that_leave_none_out_and_repeat_none(office: Office, noun: str) -> None:
    made = [await do(office, "users.create", name=str(number)) for number in range(7)]
    ids = sorted(each.id if noun == "users" else each.account for each in made)
    pages, cursor = [], None
    for _ in range(3):
        page = await do(office, f"{noun}.list", limit=3, cursor=cursor)
        pages.append([each.id for each in page.data])
        cursor = page.next
    assert (pages, cursor) == ([ids[:3], ids[3:6], ids[6:]], None)
    whole = await do(office, f"{noun}.list", limit=7)
    assert ([each.id for each in whole.data], whole.next) == (ids, None)
    assert noun == "users" or {len(each.members) for each in whole.data} == {1}
    for wrong in ({"limit": 0}, {"limit": 1001}, {"cursor": ""}):
        with pytest.raises(InvalidRequest):
            await do(office, f"{noun}.list", **wrong)


async def test_the_sample_is_found_behind_a_page_of_others(office: Office) -> None:
    for number in range(101):
        await do(office, "users.create", name=str(number))
    first = await open_sample(office, contract_tokens=1_000)
    assert (await open_sample(office, contract_tokens=1_000)).account == first.account


async def test_of_many_accounts_somebody_sees_his_own_in_pages(office: Office) -> None:
    ada = await do(office, "users.create", name="Ada")
    teams = [await do(office, "accounts.create", name=str(n), owner=ada.id if n % 2 else None) for n in range(6)]
    adas = await acting_as(office, (await do(office, "sessions.issue", user=ada.id)).token)
    first = await do(office, "accounts.list", adas, limit=2)
    rest = await do(office, "accounts.list", adas, limit=2, cursor=first.next)
    own = sorted([ada.account, *(each.id for each in teams[1::2])])
    assert ([each.id for each in (*first.data, *rest.data)], rest.next) == (own, None)


async def test_a_team_with_an_unknown_owner_is_not_made(office: Office) -> None:
    with pytest.raises(NotFound):
        await do(office, "accounts.create", name="Team", owner="usr_nobody")
    assert (await do(office, "accounts.list")).data == ()


async def test_a_personal_account_takes_no_members(office: Office) -> None:
    ada, bob = [await do(office, "users.create", name=name) for name in ("Ada", "Bob")]
    with pytest.raises(WrongState, match="personal"):
        await do(office, "accounts.add_member", account=ada.account, user=bob.id)


async def test_a_session_acts_for_its_user_and_no_longer_once_it_is_revoked(office: Office) -> None:
    ada = await do(office, "users.create", name="Ada")
    session = await do(office, "sessions.issue", user=ada.id, seconds=60)
    actor = await acting_as(office, session.token)
    assert actor.user == ada.id
    assert actor.sees == actor.manages == frozenset({ada.account})
    await do(office, "keys.revoke", key=f"ses_{ada.id}")
    with pytest.raises(AuthInvalid):
        await acting_as(office, session.token)
    with pytest.raises(WrongState):
        await do(office, "sessions.issue", user=ada.id)


async def test_a_member_sees_a_team_and_an_owner_manages_it(office: Office) -> None:
    ada, bob = [await do(office, "users.create", name=name) for name in ("Ada", "Bob")]
    team = await do(office, "accounts.create", name="Team", owner=ada.id)
    await do(office, "accounts.add_member", account=team.id, user=bob.id)
    bobs = await acting_as(office, (await do(office, "sessions.issue", user=bob.id)).token)
    assert {each.id for each in (await do(office, "accounts.list", bobs)).data} == {bob.account, team.id}
    assert (await do(office, "balances.show", bobs, account=team.id)).account == team.id
    with pytest.raises(Forbidden):
        await do(office, "accounts.remove_member", bobs, account=team.id, user=ada.id)
    adas = await acting_as(office, (await do(office, "sessions.issue", user=ada.id)).token)
    assert len((await do(office, "accounts.remove_member", adas, account=team.id, user=bob.id)).members) == 1


@pytest.mark.parametrize("operation", [each.name for each in OPERATIONS])
async def test_nothing_is_done_without_its_scope(office: Office, operation: str) -> None:
    nobody = Actor(frozenset({"inference"}), sees=None, manages=None)
    with pytest.raises(Forbidden, match="needs the scope"):
        await perform(office, nobody, operation_named(operation), {})


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "\x00", "\udc80", "x" * 201])
async def test_a_name_nobody_can_read_is_refused(office: Office, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await do(office, "users.create", name=name)
    assert refused.value.param == "name"


async def test_strange_ids_are_unknown_ids(office: Office) -> None:
    for id in ("", "acc_", "' OR 1=1", "%", "é" * 1000):
        with pytest.raises(NotFound):
            await do(office, "balances.show", account=id)
    for id in ("\x00", "\ud800", "a\nb"):
        with pytest.raises(PenstockError):
            await do(office, "balances.show", account=id)
