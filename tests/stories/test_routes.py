"""What accounts and keys want of routing, why an offer has its place, and who is healthy: over HTTP and the command
line, and at the calls that follow.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import program
from penstock.operations.actor import LOCAL
from penstock.operations.child_keys import create_child_key
from penstock.operations.routes import clear_route, set_route
from penstock.routing.pulse import WorkerSeen
from tests.stories.gateway import TRUST
from tests.stories.three import ALL, Scene, scene
from tests.upstream import Hang, Refusal

LEAK = "sk-leaked-by-the-upstream-0123456789"


class Manager:
    """Somebody with a management key, at the HTTP door and at a command line that goes there."""

    def __init__(self, here: Scene, key: str) -> None:
        self._here = here
        self._key = key

    async def send(self, method: str, path: str, **rest: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        return await self._here.gateway.http.request(method, f"/api/v1{path}", headers=headers, **rest)

    async def run(self, *words: str) -> Result:
        environment = {"PENSTOCK_URL": self._here.gateway.url, "PENSTOCK_MANAGEMENT_KEY": self._key, "COLUMNS": "250"}
        return await asyncio.to_thread(CliRunner().invoke, program(), list(words), env=environment)


@pytest.fixture
async def here(store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> AsyncIterator[Scene]:
    monkeypatch.chdir(tmp_path)
    async with scene(store_url) as here:
        yield here


async def managing(here: Scene, *scopes: Any) -> Manager:
    key = await here.gateway.key("management", account=here.ada.account, scopes=scopes)
    return Manager(here, key.key)


async def served_by(here: Scene, model: str = "auto", **how: Any) -> str:
    """Who answers, or the refusal's code. Somebody who has just called is remembered: this one is looked up anew."""
    here.gateway.gateway.relay._access._known.clear()
    answer = await here.ask(model, **how)
    if answer.status_code != 200:
        return str(answer.json()["error"]["code"])
    return answer.headers["x-penstock-route"].partition(";")[0]


# What accounts and keys want.


@pytest.mark.parametrize(
    ("wanted", "auto", "everywhere"),
    [
        pytest.param({"order": ["cloud"]}, "cloud", "cloud", id="another class first"),
        pytest.param({"order": ["cli", "cloud"]}, "cli", "cli", id="two classes in an order"),
        pytest.param({"order": ["cloud-model"]}, "cloud", "gpu", id="a model first"),
        pytest.param({"deny": ["gpu"]}, "cli", "cli", id="not that provider"),
        pytest.param({"deny": ["gpu-*", "cli-*"]}, "cloud", "gpu", id="not those models"),
        pytest.param({"allow": ["cloud"]}, "cloud", "cloud", id="that provider alone"),
        pytest.param({"allow": ["every*"]}, "model_not_found", "gpu", id="that model alone"),
        pytest.param({"allow": ["c*"], "deny": ["cli"]}, "cloud", "cloud", id="some of those"),
        pytest.param({"deny": ["*"]}, "model_not_found", "model_not_found", id="nothing"),
    ],
)
async def test_an_account_has_its_calls_routed_as_it_wants(
    here: Scene, wanted: dict[str, Any], auto: str, everywhere: str
) -> None:
    assert await served_by(here) == "gpu"
    await set_route(here.gateway.office, LOCAL, account=here.ada.account, **wanted)
    assert (await served_by(here), await served_by(here, ALL)) == (auto, everywhere)
    assert await served_by(here, base=TRUST) == auto
    await clear_route(here.gateway.office, LOCAL, account=here.ada.account)
    assert await served_by(here) == "gpu"


async def test_a_keys_order_goes_before_its_accounts_and_all_lists_hold(here: Scene) -> None:
    office, ada = here.gateway.office, here.ada
    await set_route(office, LOCAL, account=ada.account, order=["cloud"])
    await set_route(office, LOCAL, key=ada.personal_key.id, order=["cli"])
    assert (await served_by(here), await served_by(here, base=TRUST)) == ("cli", "cloud")
    child = await create_child_key(office, LOCAL, key=ada.personal_key.id, name="child")
    assert await served_by(here, key=child) == "cli", "a child is routed as its parent"
    await set_route(office, LOCAL, key=child.id, order=["gpu"], allow=["gpu", "cloud"])
    assert await served_by(here, key=child) == "gpu"
    await set_route(office, LOCAL, key=ada.personal_key.id, deny=["gpu"])
    assert await served_by(here, key=child) == "cloud", "a child does not get past what its parent denies"
    await set_route(office, LOCAL, account=ada.account, deny=["cloud"])
    assert await served_by(here, key=child) == "model_not_found"


async def test_what_is_wanted_is_set_shown_and_cleared_over_http_and_the_command_line(here: Scene) -> None:
    manager = await managing(here, "management")
    account, key = here.ada.account, here.ada.personal_key.id
    made = await manager.send("POST", "/routes", json={"account": account, "order": ["cloud"], "deny": ["x/*"]})
    assert made.status_code == 201
    assert made.json() | {"updated": ""} == {
        "subject": account, "order": ["cloud"], "allow": [], "deny": ["x/*"], "updated": "",
    }  # fmt: skip
    assert (await manager.send("GET", "/routes", params={"account": account})).json() == made.json()
    ran = await manager.run("route", "set", "--key-id", key, "--order", "cli", "--order", "gpu", "--json")
    assert json.loads(ran.stdout)["order"] == ["cli", "gpu"]
    assert "cli, gpu" in (await manager.run("route", "show", "--key-id", key)).stdout
    assert await served_by(here) == "cli"
    cleared = await manager.run("route", "clear", "--key-id", key)
    assert "nothing of its own" in cleared.stdout
    assert await served_by(here) == "cloud"
    assert (await manager.send("DELETE", "/routes", params={"account": account})).json()["updated"] is None
    assert await served_by(here) == "gpu"


@pytest.mark.parametrize(
    ("scope", "body", "status"),
    [
        ("read", {"account": "mine", "order": ["gpu"]}, 403),
        ("management", {"account": "theirs", "order": ["gpu"]}, 404),
        ("management", {"key": "theirs", "order": ["gpu"]}, 404),
        ("operator", {"account": "acc_nobody", "order": ["gpu"]}, 404),
        ("management", {"account": "mine", "key": "mine", "order": ["gpu"]}, 400),
        ("management", {"order": ["gpu"]}, 400),
        ("management", {"account": "mine"}, 400),
        ("management", {"account": "mine", "order": []}, 400),
        ("management", {"account": "mine", "deny": [""]}, 400),
        ("management", {"account": "mine", "deny": ["x" * 201]}, 400),
        ("management", {"account": "mine", "deny": [f"x{number}" for number in range(65)]}, 400),
        ("management", {"account": "mine", "deny": ["a\nb"]}, 400),
        ("management", {"account": "mine", "deny": "gpu"}, 400),
    ],
)
async def test_nobody_routes_for_others_and_nonsense_is_refused(
    here: Scene, scope: str, body: dict[str, Any], status: int
) -> None:
    bob = await here.gateway.person()
    known = {"account": {"mine": here.ada.account, "theirs": bob.account}}
    known["key"] = {"mine": here.ada.personal_key.id, "theirs": bob.personal_key.id}
    sent = {
        name: known.get(name, {}).get(value, value) if isinstance(value, str) else value for name, value in body.items()
    }
    manager = await managing(here, scope)
    refused = await manager.send("POST", "/routes", json=sent)
    assert refused.status_code == status, refused.text
    assert await served_by(here) == "gpu"


# Why an offer has its place.


async def test_the_order_is_explained_with_a_reason_for_each_place_and_for_who_is_left_out(here: Scene) -> None:
    here.upstreams["gpu"].script(*[Refusal(500)] * 3)
    for _ in range(3):
        await here.ask("gpu-model")
    await set_route(here.gateway.office, LOCAL, account=here.ada.account, deny=["cli-model"])
    manager = await managing(here, "read")
    found = (await manager.send("GET", "/routes/explain", params={"model": "auto", "account": here.ada.account})).json()
    assert [(each["place"], each["provider"], each["why"]) for each in found["order"]] == [(1, "cloud", "only")]
    assert {each["provider"]: each["why"] for each in found["left_out"]} == {"gpu": "open", "cli": "denied"}
    ran = await manager.run("route", "explain", ALL)
    assert ran.exit_code == 0, ran.output
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert [line[:3] for line in lines[1:3]] == [["1", "cli", "cli"], ["2", "cloud", "cloud"]]
    assert ["gpu", "gpu", ALL] in [line[:3] for line in lines[3:]]
    assert (await here.ask(ALL)).headers["x-penstock-route"].startswith("cli;attempts=1")


async def test_a_call_with_needs_and_a_key_is_explained_as_that_call(store_url: str) -> None:
    async with scene(store_url, gpu={"capabilities": ()}, cli={"context_length": 50}) as here:
        key = await here.gateway.key("personal", user=here.ada.user, models=["gpu-model", "cli-model"])
        operator = await managing(here, "operator")
        ran = await operator.run(
            "route", "explain", "auto", "--key-id", key.id, "--needs", "tools,images", "--tokens", "51", "--json"
        )
        found = json.loads(ran.stdout)
        assert (found["account"], found["order"]) == (here.ada.account, [])
        assert {each["provider"]: each["why"] for each in found["left_out"]} == {
            "gpu": "capability", "cli": "context", "cloud": "key",
        }  # fmt: skip
        several = [("model", "auto"), ("needs", "tools"), ("needs", "images")]
        found = (await operator.send("GET", "/routes/explain", params=several)).json()
        assert [each["provider"] for each in found["order"]] == ["cli", "cloud"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"model": "nothing"}, 400),
        ({}, 400),
        ({"model": "auto", "needs": "wings"}, 400),
        ({"model": "auto", "tokens": "0"}, 400),
        ({"model": "auto", "account": "acc_theirs"}, 404),
        ({"model": "auto", "key": "key_theirs"}, 404),
        ({"model": "auto", "surface": "moon"}, 400),
    ],
)
async def test_what_cannot_be_explained_is_refused(here: Scene, query: dict[str, str], status: int) -> None:
    refused = await (await managing(here, "read")).send("GET", "/routes/explain", params=query)
    assert refused.status_code == status, refused.text


async def test_a_model_that_serves_other_accounts_alone_is_as_unknown_as_one_that_is_not_there(here: Scene) -> None:
    settings = here.gateway.office.settings
    providers = [replace(each, accounts=("acc_theirs",)) if each.name == "gpu" else each for each in settings.providers]
    await here.gateway.gateway.reload(replace(settings, providers=tuple(providers)))
    manager, operator = await managing(here, "management"), await managing(here, "operator")
    key = {"kind": "inference", "name": "k", "account": here.ada.account}
    said = []
    for model in ("gpu-model", "no-model"):
        explained = await manager.send("GET", "/routes/explain", params={"model": model})
        made = await manager.send("POST", "/keys", json=key | {"models": [model]})
        said.append([(each.status_code, each.text.replace(model, "…")) for each in (explained, made)])
    assert said[0] == said[1]
    assert [status for status, _ in said[0]] == [400, 400]
    assert (await manager.send("POST", "/keys", json=key | {"models": ["cli-model"]})).status_code == 201
    assert (await operator.send("GET", "/routes/explain", params={"model": "gpu-model"})).status_code == 200


# Who is healthy.


async def test_the_pulse_shows_who_is_healthy_with_models_breaker_and_last_failures(here: Scene) -> None:
    await here.ask()
    here.upstreams["cli"].script(*[Refusal(500)] * 3, Refusal(503, LEAK))
    for _ in range(3):
        await here.ask("cli-model")
    operator = await managing(here, "operator")
    found = (await operator.send("GET", "/pulse")).json()
    gpu, cli, cloud = found["providers"]
    assert (found["healthy"], found["workers"]) == (2, [])
    assert (gpu["healthy"], gpu["state"], gpu["models"], gpu["listed"]) == (True, "closed", ["gpu-model", ALL], 1)
    assert gpu["last_success"] is not None
    assert gpu["latency_ms"] >= 0
    assert (cli["healthy"], cli["state"], len(cli["errors"])) == (False, "open", 3)
    assert cli["retry_in_s"] > 500
    assert cli["check_error"]["message"] == "The provider answered with status 503."
    assert (cloud["provider_class"], cloud["errors"], cloud["last_success"]) == ("cloud", [], None)
    assert LEAK not in json.dumps(found)
    assert "sk-" not in json.dumps(found)


async def test_others_than_the_operator_see_what_is_theirs_and_no_words_of_upstreams(here: Scene) -> None:
    here.gateway.office.pulse.workers = lambda: [
        WorkerSeen("wrk_1", here.ada.account, shared=False, models=("m",), slots=2, outstanding=1),
        WorkerSeen("wrk_2", "acc_theirs", shared=False, models=("m",), slots=2, outstanding=0),
        WorkerSeen("wrk_3", "acc_theirs", shared=True, models=("n",), slots=1, outstanding=0),
    ]
    settings = here.gateway.office.settings
    providers = [replace(each, accounts=("acc_theirs",)) if each.name == "gpu" else each for each in settings.providers]
    await here.gateway.gateway.reload(replace(settings, providers=tuple(providers)))
    here.upstreams["cli"].script(Refusal(500))
    await here.ask("cli-model")
    found = (await (await managing(here, "read")).send("GET", "/pulse")).json()
    assert [each["provider"] for each in found["providers"]] == ["cli", "cloud"]
    (trouble,) = found["providers"][0]["errors"]
    assert (trouble["kind"], trouble["message"]) == ("upstream_failed", None)
    assert [(each["worker"], each["account"]) for each in found["workers"]] == [
        ("wrk_1", here.ada.account),
        ("wrk_3", None),
    ]
    everything = (await (await managing(here, "operator")).send("GET", "/pulse")).json()
    assert [each["account"] for each in everything["workers"]] == [here.ada.account, "acc_theirs", "acc_theirs"]


async def test_the_pulse_of_the_command_line_ends_with_6_when_nobody_is_healthy(here: Scene) -> None:
    operator = await managing(here, "operator")
    ran = await operator.run("pulse")
    assert ran.exit_code == 0, ran.output
    assert [line.split()[:3] for line in ran.stdout.splitlines()[1:]] == [
        ["gpu", "gpu", "yes"], ["cli", "cli", "yes"], ["cloud", "cloud", "yes"],
    ]  # fmt: skip
    settings = here.gateway.office.settings
    gone = tuple(replace(each, base_url="http://127.0.0.1:9/v1") for each in settings.providers)
    await here.gateway.gateway.reload(replace(settings, providers=gone))
    ran = await operator.run("pulse", "--json")
    assert (ran.exit_code, json.loads(ran.stdout)["healthy"]) == (6, 0)


async def test_many_who_ask_at_once_share_one_look_and_one_that_hangs_holds_up_no_other(here: Scene) -> None:
    here.gateway.office.pulse.look_s = 0.3
    here.upstreams["gpu"].usual = Hang()
    operator = await managing(here, "operator")
    answers = await asyncio.gather(*(operator.send("GET", "/pulse") for _ in range(5)))
    for answer in answers:
        gpu, *others = answer.json()["providers"]
        assert (gpu["healthy"], gpu["check_error"]["kind"]) == (False, "upstream_timeout")
        assert all(each["healthy"] and each["check_ms"] < 300 for each in others)
    assert here.asked() == {"gpu": 1, "cli": 1, "cloud": 1}


async def test_an_empty_gateway_has_a_pulse_too(here: Scene) -> None:
    settings = here.gateway.office.settings
    await here.gateway.gateway.reload(replace(settings, providers=(), models=()))
    operator = await managing(here, "operator")
    assert (await operator.send("GET", "/pulse")).json()["providers"] == []
    assert (await operator.run("pulse")).exit_code == 6


async def test_a_provider_that_came_with_a_reload_starts_well(here: Scene) -> None:
    here.upstreams["gpu"].script(Refusal(401))
    assert await served_by(here) == "cli"
    assert await served_by(here, "gpu-model") == "no_healthy_provider"
    settings = here.gateway.office.settings
    mended = [
        replace(each, api_key="sk-mended-0123456789") if each.name == "gpu" else each for each in settings.providers
    ]
    await here.gateway.gateway.reload(replace(settings, providers=tuple(mended)))
    assert await served_by(here, "gpu-model") == "gpu"
