"""What upstreams list is shown to the operator beside what is on offer, over HTTP and as a command; no key is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import program
from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from tests.stories.gateway import SPARE_KEY, Running, settings_for
from tests.upstream import Raw, Refusal, ScriptedUpstream
from tests.upstream_messages import UsualMessages

KEY = "sk-ant-api03-91c2d7e0"
BARE = Raw(b'[{"id":"beta"},{"id":"alpha"}]')


@pytest.fixture
async def claude() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(UsualMessages()) as upstream:
        yield upstream


@pytest.fixture
def settings(store_url: str, claude: ScriptedUpstream, spare: ScriptedUpstream) -> Settings:
    """Anthropic, with a model and a misspelt one; `spare`; and `main`, which is not there."""
    settings = settings_for(store_url, spare=spare.base_url)
    anthropic = ProviderSettings("claude", kind="anthropic", vendor="anthropic", base_url=claude.base_url, api_key=KEY)
    price = PriceSettings(free=True)
    models = (
        ModelSettings("one", offers=(OfferSettings("claude", "scripted"),), price=price),
        ModelSettings("two", offers=(OfferSettings("claude", "scripted"),), price=price),
        ModelSettings(
            "typo", offers=(OfferSettings("claude", "scirpted"), OfferSettings("spare", "alpha")), price=price
        ),
    )
    return replace(settings, providers=(*settings.providers, anthropic), models=models, contracts=())


class Operator:
    """Somebody with a management key, over HTTP and at a command line that goes there."""

    def __init__(self, gateway: Running, key: str) -> None:
        self._gateway = gateway
        self._key = key

    async def get(self, path: str = "/models/discovery") -> Any:
        return await self._gateway.http.get(f"/api/v1{path}", headers={"authorization": f"Bearer {self._key}"})

    async def run(self, *words: str) -> Result:
        environment = {"PENSTOCK_URL": self._gateway.url, "PENSTOCK_MANAGEMENT_KEY": self._key, "COLUMNS": "200"}
        return await asyncio.to_thread(CliRunner().invoke, program(), list(words), env=environment)


async def operator(gateway: Running, scope: Any = "operator") -> Operator:
    ada = await gateway.person()
    key = await gateway.key("management", account=ada.account, scopes=[scope])
    return Operator(gateway, key.key)


async def test_each_provider_shows_what_it_lists_and_what_of_it_is_on_offer(
    gateway: Running, spare: ScriptedUpstream
) -> None:
    spare.script(BARE)
    answer = await (await operator(gateway)).get()
    found = {each["provider"]: each for each in answer.json()["data"]}
    assert found["claude"] == {
        "provider": "claude",
        "vendor": "anthropic",
        "listed": [{"name": "scripted", "models": ["one", "two"]}],
        "missing": ["scirpted"],
        "error": None,
    }
    assert found["spare"]["listed"] == [{"name": "alpha", "models": ["typo"]}, {"name": "beta", "models": []}]
    assert (found["main"]["listed"], found["main"]["missing"]) == ([], [])
    assert found["main"]["error"]
    assert KEY not in answer.text
    assert SPARE_KEY not in answer.text


async def test_one_provider_may_be_asked_for_and_one_that_is_not_there_is_not_found(gateway: Running) -> None:
    ada = await operator(gateway)
    answer = await ada.get("/models/discovery?provider=claude")
    assert [each["provider"] for each in answer.json()["data"]] == ["claude"]
    assert (await ada.get("/models/discovery?provider=nobody")).status_code == 404


async def test_discovery_is_the_operators(gateway: Running) -> None:
    assert (await (await operator(gateway, "management")).get()).status_code == 403


async def test_a_provider_that_keeps_no_list_misses_nothing(gateway: Running, spare: ScriptedUpstream) -> None:
    spare.script(Refusal(404))
    answer = await (await operator(gateway)).get("/models/discovery?provider=spare")
    [found] = answer.json()["data"]
    assert (found["listed"], found["missing"], found["error"]) == ([], [], None)


async def test_a_key_that_is_no_good_is_named_without_the_key(gateway: Running, claude: ScriptedUpstream) -> None:
    claude.script(Refusal(401, f"bad key {KEY}"))
    answer = await (await operator(gateway)).get("/models/discovery?provider=claude")
    [found] = answer.json()["data"]
    assert "401" in found["error"]
    assert KEY not in answer.text


async def test_the_command_line_shows_it_as_a_table_and_as_json(gateway: Running, spare: ScriptedUpstream) -> None:
    spare.script(BARE)
    ada = await operator(gateway)
    shown = await ada.run("discover")
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["claude", "scripted", "one,", "two", "-"] in lines
    assert ["spare", "beta", "-", "-"] in lines
    assert "offered here, not listed there" in shown.stdout
    as_json = await ada.run("discover", "claude", "--json")
    assert [each["provider"] for each in json.loads(as_json.stdout)["data"]] == ["claude"]
