"""Credentials: who may enter where, for how long, how often and up to which amount; and how soon a no is a no."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from penstock.access import REMEMBER_S
from penstock.app import open_office
from penstock.config import JwtSettings, LimitSettings, SecretSettings, Settings
from penstock.errors import ConfigError
from penstock.operations.accounts import add_member, create_account, remove_member
from penstock.operations.actor import LOCAL
from penstock.operations.child_keys import create_child_key
from penstock.operations.key_views import KeyView, MintedKey
from penstock.operations.keys import list_keys, revoke_key
from penstock.operations.sessions import issue_session
from tests.engines import tell
from tests.stories.gateway import (
    AUTH_SECRET,
    BASES,
    DEEPSEEK,
    FORWARD,
    LLAMA,
    ROUTER,
    ROUTER_V1,
    TRUST,
    Person,
    Running,
    running,
)
from tests.upstream import Plain, ScriptedUpstream, Stream

COST_NANO = 7 * 590 + 5 * 790  # of the usual answer, at the price of LLAMA
SEEN_AT_ONCE = {
    TRUST: ("auth_error", "auth_error"),
    FORWARD: ("authentication_error", "invalid_api_key"),
    ROUTER: ("authentication_error", "invalid_api_key"),
    ROUTER_V1: ("authentication_error", "invalid_api_key"),
}


async def admitted(gateway: Running, base: str, person: Person, key: MintedKey | None = None, **fields: Any) -> int:
    """The status of a call; a 401 must look as it does on that surface."""
    answer = await gateway.chat(base, person, key=key, **fields)
    if answer.status_code == 401:
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == SEEN_AT_ONCE[base]
    return answer.status_code


async def seen(gateway: Running, key: MintedKey) -> KeyView:
    """The key as it stands once everything that ended is settled; nothing is held by it then."""
    await gateway.office.store.settled()
    (view,) = [each for each in (await list_keys(gateway.office, LOCAL)).data if each.id == key.id]
    assert view.held.nano == 0
    return view


@contextmanager
def later(gateway: Running, seconds: float) -> Iterator[None]:
    """Inside, the gateway's wall clock is that much ahead."""
    clock = gateway.office.clock
    clock.offset_ms += int(seconds * 1000)
    try:
        yield
    finally:
        clock.offset_ms -= int(seconds * 1000)


async def test_each_kind_of_key_enters_its_own_surface_and_is_a_plain_401_elsewhere(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    team = await create_account(gateway.office, LOCAL, name="Team", owner=ada.user)
    await gateway.grant(replace(ada, account=team.id), usd="1")
    keys = {
        "account": ada.account_key,
        "inference": ada.inference_key,
        "personal": ada.personal_key,
        "team": await gateway.key("team", account=team.id),
        "management": await gateway.key("management", account=ada.account),
    }
    welcome = {TRUST: {"account"}, FORWARD: {"inference"}, ROUTER: {"personal", "team"}}
    for base, kinds in (welcome | {ROUTER_V1: welcome[ROUTER]}).items():
        for kind, key in keys.items():
            expected = 200 if kind in kinds else 401
            assert await admitted(gateway, base, ada, key) == expected, f"{kind} on {base}"
            listed = await gateway.get(f"{base}/models", ada, key=key)
            assert listed.status_code == expected


async def test_who_is_refused_costs_no_write(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person()
    office = gateway.office
    good, barred = [(await issue_session(office, LOCAL, user=each.user)).token for each in (ada, bob)]
    assert (await gateway.http.get("/api/v1/keys", headers={"authorization": f"Bearer {barred}"})).status_code == 200
    await revoke_key(office, LOCAL, key=f"ses_{bob.user}")
    await revoke_key(office, LOCAL, key=bob.personal_key.id)
    management = await gateway.key("management", account=ada.account)
    gateway.gateway.relay._access._known.clear()
    written: list[str] = []
    for name in ("write", "commit", "post"):
        monkeypatch.setattr(office.store, name, counted(getattr(office.store, name), written))
    nobody = office.sessions.issue("usr_nobody")
    keys = [nobody, barred, office.keyring.mint("personal"), office.keyring.mint("management"), bob.personal_key.key]
    paths = ["/api/v1/keys", f"{TRUST}/models", f"{ROUTER}/models", f"{FORWARD}/balance", "/api/workers/v1/connect"]
    paths += ["/api/tools/v1/connect", "/api/tools/v1/tools", f"{ROUTER}/responses/resp_x", "/metrics", "/health"]
    for path in paths:
        for key in ("-", "x", *keys):
            await gateway.http.get(path, headers={"authorization": f"Bearer {key}", "x-trust": ada.account})
    for path in (f"{ROUTER}/chat/completions", f"{FORWARD}/embeddings", "/api/tools/v1/execute"):
        for key in ("-", *keys, good, management.key):
            await gateway.http.post(path, json={"model": LLAMA}, headers={"authorization": f"Bearer {key}"})
    assert written == []
    assert (await gateway.http.get("/api/v1/keys", headers={"authorization": f"Bearer {good}"})).status_code == 200
    assert written.count("write") == 1
    for _ in range(2):
        gateway.gateway.relay._access._known.clear()
        await gateway.http.get("/api/v1/keys", headers={"authorization": f"Bearer {good}"})
    assert written.count("write") == 1


async def test_headers_that_are_padded_are_admitted_and_not_remembered(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    known = gateway.gateway.relay._access._known
    known.clear()
    key = ada.personal_key.key
    for number in range(20):
        padded = {"authorization": f"Bearer {' ' * (2_000 + number)}{key}"}
        assert (await gateway.http.get(f"{ROUTER}/models", headers=padded)).status_code == 200
        named = {"authorization": f"Bearer {key}", "x-trust": "x" * (2_000 + number)}
        assert (await gateway.http.get(f"{ROUTER}/models", headers=named)).status_code == 200
    assert sum(len(authorization or "") + len(trust or "") for authorization, trust, _ in known) < 2_000
    await gateway.get(f"{ROUTER}/models", ada)
    assert len(known) == 1


def counted(does: Any, written: list[str]) -> Any:
    def do(*arguments: Any, **more: Any) -> Any:
        written.append(does.__name__)
        return does(*arguments, **more)

    return do


async def test_a_typo_is_refused_without_a_look_up(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    secret = ada.personal_key.key
    last = "A" if secret[-1] != "A" else "B"
    mistyped = [
        secret[:-1] + last,
        secret[:9] + ("a" if secret[9] != "a" else "b") + secret[10:],
        secret[:-1],
        secret + "A",
        secret.removeprefix("user."),
        "user.",
        "user.é" + secret[6:],
        "sk-proj-" + secret[5:],
        "pen_sk_" + "0" * 42,
        "x" * 4_000,
    ]
    for each in mistyped:
        assert gateway.office.keyring.kind(each) is None
        headers = [(b"authorization", f"Bearer {each}".encode())]
        answer = await gateway.http.post(f"{ROUTER}/chat/completions", json={}, headers=headers)
        assert answer.status_code == 401


async def test_the_scheme_may_be_written_in_any_case_and_the_key_may_not(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    secret = ada.personal_key.key
    for text, status in (
        (f"bearer {secret}", 200),
        (f"BEARER   {secret}  ", 200),
        (f"Bearer {secret.upper()}", 401),
        (f"Token {secret}", 401),
        (secret, 401),
    ):
        answer = await gateway.chat(ROUTER, ada, headers={"authorization": text.strip()})
        assert answer.status_code == status


async def test_a_revoked_key_is_refused_at_the_very_next_call(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    for base in BASES[:3]:
        assert await admitted(gateway, base, ada) == 200
        await revoke_key(gateway.office, LOCAL, key=ada.key(base).id)
        assert await admitted(gateway, base, ada) == 401
        assert await admitted(gateway, base, ada, stream=True) == 401
    assert len(upstream.requests) == 3


async def test_a_revocation_by_another_process_counts_at_the_very_next_call(
    gateway: Running, settings: Settings
) -> None:
    ada = await gateway.person(usd="1")
    assert await admitted(gateway, ROUTER, ada) == 200
    async with open_office(settings) as elsewhere:
        await revoke_key(elsewhere, LOCAL, key=ada.personal_key.id)
        assert await admitted(gateway, ROUTER, ada) == 401


async def test_a_key_and_money_from_another_process_count_at_once(gateway: Running, settings: Settings) -> None:
    ada = await gateway.person()
    assert await admitted(gateway, ROUTER, ada) == 402
    async with open_office(settings) as elsewhere:
        there = replace(gateway, gateway=replace(gateway.gateway, office=elsewhere))
        await there.grant(ada, usd="1")
        key = await there.key("personal", user=ada.user)
        assert await admitted(gateway, ROUTER, ada) == 200
        assert await admitted(gateway, ROUTER, ada, key) == 200


async def test_a_call_under_way_survives_the_revocation_of_its_key(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    script = Stream(tokens=5, hold_after=2)
    upstream.script(script)
    call = asyncio.create_task(gateway.chat(ROUTER, ada, stream=True))
    await (await upstream.arrival(1)).events.reach(2)
    await revoke_key(gateway.office, LOCAL, key=ada.personal_key.id)
    script.resume.set()
    answer = await call
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "error" not in answer.text
    assert await gateway.nano(ada) == 1_000_000_000 - COST_NANO


async def test_an_expired_key_is_refused_from_that_instant_on(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, expires="2099-01-01")
    clock = gateway.office.clock
    until_s = (4_070_908_800_000 - clock.now_ms()) / 1000
    assert await admitted(gateway, ROUTER, ada, key) == 200
    with later(gateway, until_s - 60):
        assert await admitted(gateway, ROUTER, ada, key) == 200
    with later(gateway, until_s + 1):
        assert await admitted(gateway, ROUTER, ada, key) == 401


async def test_a_removed_member_is_out_within_a_second(gateway: Running) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person()
    team = await create_account(gateway.office, LOCAL, name="Team", owner=ada.user)
    of_team = replace(bob, account=team.id)
    await add_member(gateway.office, LOCAL, account=team.id, user=bob.user)
    assert (await gateway.get(f"{TRUST}/models", of_team)).status_code == 200
    await remove_member(gateway.office, LOCAL, account=team.id, user=bob.user)
    clock = gateway.office.clock
    removed_s = asked_s = clock.monotonic()
    while (answer := await gateway.get(f"{TRUST}/models", of_team)).status_code == 200:
        assert asked_s - removed_s <= REMEMBER_S
        await asyncio.sleep(0.01)  # or the rate limit would end this first
        asked_s = clock.monotonic()
    assert answer.status_code == 403
    assert await admitted(gateway, TRUST, of_team) == 403


async def test_it_is_not_said_whether_an_account_exists_that_one_may_not_use(gateway: Running) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    foreign = await gateway.chat(TRUST, ada, headers={"x-trust": bob.account})
    unknown = await gateway.chat(TRUST, ada, headers={"x-trust": "acc_nobody"})
    assert foreign.status_code == unknown.status_code == 403
    assert foreign.json() == unknown.json()


async def test_a_child_key_ends_with_its_parent_and_spends_within_its_limits(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    parent = await gateway.key("personal", user=ada.user, limit="0.001")
    child = await create_child_key(gateway.office, LOCAL, key=parent.id, name="child", models=[LLAMA])
    grandchild = await create_child_key(gateway.office, LOCAL, key=child.id, name="grandchild")
    assert await admitted(gateway, ROUTER, ada, grandchild, model=DEEPSEEK) == 404
    assert await admitted(gateway, ROUTER, ada, grandchild, max_tokens=5) == 200
    assert [(await seen(gateway, key)).spent.nano for key in (parent, child, grandchild)] == [COST_NANO] * 3
    await revoke_key(gateway.office, LOCAL, key=parent.id)
    for key in (parent, child, grandchild):
        assert await admitted(gateway, ROUTER, ada, key, max_tokens=5) == 401


async def test_a_parents_limit_is_also_its_childrens(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    parent = await gateway.key("personal", user=ada.user, limit="0.000001")
    child = await create_child_key(gateway.office, LOCAL, key=parent.id, name="child")
    refused = await gateway.chat(ROUTER, ada, key=child)
    assert refused.status_code == 402
    assert refused.json()["error"]["message"] == "The spending limit of this key does not cover this request."


@pytest.mark.parametrize("base", [TRUST, FORWARD, ROUTER])
async def test_a_key_spends_its_limit_and_not_a_nano_dollar_more(
    gateway: Running, upstream: ScriptedUpstream, base: str
) -> None:
    ada = await gateway.person(usd="1", tokens=1_000_000)
    binding = {"account": ada.account} if base == FORWARD else {"user": ada.user}
    key = await gateway.key(ada.key(base).kind, limit="0.002", **binding)
    upstream.usual = Plain(tokens=1_000, prompt_tokens=7)
    statuses = [await admitted(gateway, base, ada, key) for _ in range(20)]
    assert set(statuses) == {200, 402}
    assert statuses == sorted(statuses)
    spent = (await seen(gateway, key)).spent.nano
    # What is left is less than the dearest reading of the shortest request, which is all that its 402 says.
    assert 2_000_000 - 200_000 < spent <= 2_000_000
    assert sum(record.cost.nano for record in await gateway.usage(ada)) == spent


async def test_parallel_calls_never_spend_more_than_the_keys_limit(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, limit="0.0005")
    upstream.usual = Plain(tokens=40, prompt_tokens=7)
    answers = await asyncio.gather(*(gateway.chat(ROUTER, ada, key=key, max_tokens=40) for _ in range(64)))
    served = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 402}
    spent = (await seen(gateway, key)).spent.nano
    assert spent == sum(record.amount for record in await gateway.usage(ada)) <= 500_000
    assert len(served) == len(upstream.requests)
    assert {record.uncollected for record in await gateway.usage(ada)} == {0}


async def test_a_key_waits_when_its_rate_is_used_up_and_goes_on_afterwards(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, requests_per_minute=3)
    statuses = [await admitted(gateway, ROUTER, ada, key) for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = await gateway.chat(ROUTER, ada, key=key)
    wait_s = int(refused.headers["retry-after"])
    assert 1 <= wait_s <= 20
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert await admitted(gateway, ROUTER, ada) == 200  # another key of the same user
    with later(gateway, wait_s):
        assert await admitted(gateway, ROUTER, ada, key) == 200
        assert await admitted(gateway, ROUTER, ada, key) == 429


async def test_reading_counts_against_the_same_rate_as_calling(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("account", user=ada.user, requests_per_minute=3)
    headers = {"authorization": f"Bearer {key.key}", "x-trust": ada.account}
    statuses = [
        (await gateway.http.get(f"{gateway.url}/v1/{page}", headers=headers)).status_code
        for page in ("models", "balance", "usage", "models")
    ]
    assert statuses == [200, 200, 200, 429]
    assert await admitted(gateway, TRUST, ada, key) == 429


async def test_a_revoked_key_reads_nothing_more(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    headers = {"authorization": f"Bearer {ada.account_key.key}", "x-trust": ada.account}
    assert (await gateway.http.get(f"{gateway.url}/v1/balance", headers=headers)).status_code == 200
    await revoke_key(gateway.office, LOCAL, key=ada.account_key.id)
    assert (await gateway.http.get(f"{gateway.url}/v1/balance", headers=headers)).status_code == 401


async def test_a_thousand_calls_a_minute_are_allowed_by_default(settings: Settings) -> None:
    assert LimitSettings().requests_per_minute == 1_000
    async with running(replace(settings, limits=LimitSettings(requests_per_minute=20))) as gateway:
        ada = await gateway.person(usd="1")
        answers = await asyncio.gather(*(gateway.chat(ROUTER, ada) for _ in range(25)))
        assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 5


async def test_a_session_calls_models_for_every_account_of_its_user(gateway: Running) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    session = await issue_session(gateway.office, LOCAL, user=ada.user)
    key = replace(ada.account_key, key=session.token)
    assert await admitted(gateway, TRUST, ada, key) == 200
    assert await admitted(gateway, TRUST, bob, key) == 403
    for base in (FORWARD, ROUTER):
        assert await admitted(gateway, base, ada, key) == 401


async def test_a_revoked_session_is_refused_at_the_very_next_call(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    token = (await issue_session(gateway.office, LOCAL, user=ada.user)).token
    key = replace(ada.account_key, key=token)
    assert await admitted(gateway, TRUST, ada, key) == 200
    await revoke_key(gateway.office, LOCAL, key=f"ses_{ada.user}")
    assert await admitted(gateway, TRUST, ada, key) == 401


async def test_a_forged_stale_or_misdirected_token_is_refused(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    now = gateway.office.clock.now_ms() // 1000
    good = {"iss": "penstock", "aud": "penstock", "sub": ada.user, "iat": now, "exp": now + 600}

    def signed(secret: bytes = AUTH_SECRET, alg: str = "HS256", **claims: Any) -> str:
        said = {name: value for name, value in (good | claims).items() if value is not None}
        return jwt.encode({"alg": alg}, said, OctKey.import_key(secret), algorithms=[alg])

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head, claims, signature = signed().split(".")
    forged = {
        "wrong secret": signed(b"another-secret-of-thirty-two-byte"),
        "HS512": signed(alg="HS512"),
        "alg none": f"{part({'alg': 'none'})}.{claims}.",
        "alg none, signed": f"{part({'alg': 'none'})}.{claims}.{signature}",
        "other claims": f"{head}.{part(good | {'sub': 'usr_root'})}.{signature}",
        "expired": signed(exp=now - 1),
        "without an end": signed(exp=None),
        "wrong audience": signed(aud="someone-else"),
        "without audience": signed(aud=None),
        "wrong issuer": signed(iss="someone-else"),
        "without a subject": signed(sub=None),
        "subject is no text": signed(sub=["usr"]),
        "unknown user": signed(sub="usr_nobody"),
        "garbage": "ey.ey.ey",
        "empty parts": "ey..",
    }
    assert await admitted(gateway, TRUST, ada, replace(ada.account_key, key=signed())) == 200
    for why, token in forged.items():
        assert await admitted(gateway, TRUST, ada, replace(ada.account_key, key=token)) == 401, why


async def test_another_gateways_tokens_and_keys_are_worth_nothing_here(settings: Settings) -> None:
    other = replace(
        settings,
        secrets=SecretSettings(b"another-pepper-of-at-least-32-bytes", b"another-secret-of-at-least-32-bytes"),
        jwt=JwtSettings(audience="elsewhere"),
    )
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        session = await issue_session(gateway.office, LOCAL, user=ada.user)
    with pytest.raises(ConfigError, match="accept-secrets"):
        async with running(other):
            pass
    tell(settings.store.url, "DELETE FROM fingerprints")
    async with running(other) as gateway:
        assert await admitted(gateway, ROUTER, ada) == 401
        assert await admitted(gateway, TRUST, ada, replace(ada.account_key, key=session.token)) == 401
