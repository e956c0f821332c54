"""Four gateways on one store, called at once over HTTP: every limit holds exactly, as if there were one.

They are the workers of one `penstock serve`, or processes of their own at addresses of their own, as on several hosts.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from penstock.money.units import nano_usd
from penstock.operations.actor import LOCAL
from penstock.operations.key_views import MintedKey
from penstock.operations.keys import list_keys
from tests.stories.gateway import FORWARD, HELLO, ROUTER, Person, Running, plain_client, running
from tests.stories.process import Process, serving_process, settings_of, verified

pytestmark = pytest.mark.asyncio(loop_scope="module")

GATEWAYS = 4
RATE = 30
CONFIG = """
[server]
port = 0
workers = {workers}
[store]
url = "{store}"
[providers.demo]
kind = "demo"
[[models]]
id = "demo"
offers = [{{ provider = "demo" }}]
price = {{ input = 0.10, output = 0.40 }}
contract = "DEMO"
[[contracts]]
id = "DEMO"
name = "Demo tokens"
price = 0.20
minimum_tokens = 1
expires = 2100-01-01
"""
BODY = {"model": "demo", "messages": HELLO, "max_tokens": 8}
LEAST_NANO = len(json.dumps(BODY)) * 100 + 400  # what a call needs at most to be admitted: its bytes and one token
ONCE = {"idempotency-key": "the same everywhere"}


@dataclass(frozen=True)
class Gateways:
    """Addresses that lead to four processes, and one more process, in the test, to look with."""

    urls: Sequence[str]
    here: Running

    def all(self, count: int) -> list[str]:
        """So many addresses, each process's as often as any other's."""
        return [self.urls[number % len(self.urls)] for number in range(count)]

    async def calls(
        self, count: int, key: MintedKey, base: str = ROUTER, headers: dict[str, str] | None = None
    ) -> list[httpx2.Response]:
        """So many calls at once, each on a connection of its own."""
        sent = {"authorization": f"Bearer {key.key}", **(headers or {})}
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(plain_client(base_url=url)) for url in self.all(count)]
            return await asyncio.gather(
                *(client.post(f"{base}/chat/completions", json=BODY, headers=sent) for client in clients)
            )

    async def calls_until_refused(self, key: MintedKey, base: str = ROUTER) -> list[httpx2.Response]:
        """Calls, many at once, until one alone is refused: those that were answered."""
        answers = await self.calls(60, key, base)
        while (last := await self.calls(1, key, base))[0].status_code == 200:
            answers += last
        assert {answer.status_code for answer in (*answers, *last)} == {200, 402}
        return [answer for answer in answers if answer.status_code == 200]


@asynccontextmanager
async def in_order(config: Path) -> AsyncIterator[Process]:
    """A serving process that ends in order."""
    async with serving_process(config) as process:
        yield process
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


@pytest_asyncio.fixture(
    params=[("sqlite", GATEWAYS, 1), ("postgres", GATEWAYS, 1), ("postgres", 1, GATEWAYS)],
    ids=["workers on sqlite", "workers on postgres", "hosts on postgres"],
    scope="module",
    loop_scope="module",
)
async def gateways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateways]:
    engine, workers, processes = request.param
    folder = tmp_path_factory.mktemp("gateways")
    config = folder / "penstock.toml"
    async with AsyncExitStack() as stack:
        store = f"sqlite:///{folder}/penstock.db"
        if engine == "postgres":
            store = stack.enter_context(request.getfixturevalue("server").database())
        config.write_text(CONFIG.format(workers=workers, store=store))
        here = await stack.enter_async_context(running(settings_of(config)))
        started = [stack.enter_async_context(in_order(config)) for _ in range(processes)]
        yield Gateways([process.url for process in await asyncio.gather(*started)], here)
        assert await verified(config)


def cost(answers: Sequence[httpx2.Response]) -> int:
    """What these answers say they cost together, in nano-USD."""
    return sum(nano_usd(answer.headers["x-penstock-cost"]) for answer in answers)


async def test_a_balance_is_spent_to_the_last_call_and_not_one_nano_dollar_more(gateways: Gateways) -> None:
    ada = await gateways.here.person(usd="0.0001")
    answers = await gateways.calls_until_refused(ada.personal_key)
    records = await gateways.here.usage(ada)
    assert len(answers) == len(records)
    assert cost(answers) == sum(record.amount for record in records)
    assert 0 <= await gateways.here.nano(ada) == 100_000 - cost(answers) < LEAST_NANO
    assert not any(record.uncollected for record in records)


async def test_a_contract_is_used_to_the_last_token(gateways: Gateways) -> None:
    ada = await gateways.here.person(tokens=500, contract="DEMO")
    answers = await gateways.calls_until_refused(ada.inference_key, FORWARD)
    records = await gateways.here.usage(ada)
    assert len(answers) == len(records)
    assert sum(record.amount for record in records) == 500
    assert await gateways.here.tokens(ada) == 0
    used = sum(answer.json()["usage"]["total_tokens"] for answer in answers)
    assert used - 500 == sum(record.uncollected for record in records) <= 8


async def test_a_key_spends_no_more_than_its_limit(gateways: Gateways) -> None:
    ada = await gateways.here.person(usd="1")
    key = await gateways.here.key("personal", user=ada.user, limit="0.0001")
    answers = await gateways.calls_until_refused(key)
    assert 100_000 - LEAST_NANO < cost(answers) <= 100_000
    assert await gateways.here.nano(ada) == 10**9 - cost(answers)
    (shown,) = [each for each in await keys_of(gateways, ada) if each["id"] == key.id]
    assert shown["spent"]["nano"] == cost(answers)


async def test_of_a_burst_exactly_the_rate_passes(gateways: Gateways) -> None:
    ada = await gateways.here.person(usd="1")
    key = await gateways.here.key("personal", user=ada.user, requests_per_minute=RATE)
    begun_s = time.monotonic()
    answers = await gateways.calls(2 * RATE, key)
    refilled = (time.monotonic() - begun_s) * RATE / 60
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    assert RATE <= counts[200] <= RATE + refilled + 1
    assert len(await gateways.here.usage(ada)) == counts[200]


async def test_one_idempotency_key_sent_to_all_is_charged_once(gateways: Gateways) -> None:
    ada = await gateways.here.person(usd="1")
    answers = await gateways.calls(40, ada.personal_key, headers=ONCE)
    again = await gateways.calls(40, ada.personal_key, headers=ONCE)
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert {answer.status_code for answer in again} == {200}
    assert {answer.headers.get("idempotent-replayed") for answer in again} == {"true"}
    assert len({answer.content for answer in (*answers, *again) if answer.status_code == 200}) == 1
    (record,) = await gateways.here.usage(ada)
    assert await gateways.here.nano(ada) == 10**9 - record.amount


async def test_once_a_key_is_revoked_it_is_refused_by_all(gateways: Gateways) -> None:
    ada = await gateways.here.person(usd="1")
    manager = await gateways.here.key("management", account=ada.account, scopes=("operator",))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(plain_client(base_url=url)) for url in gateways.all(32)]

        async def statuses() -> set[int]:
            """Of a call on each connection, one after the other, so that none waits for what another has learnt."""
            sent = {"authorization": f"Bearer {ada.personal_key.key}"}
            return {
                (await client.post(f"{ROUTER}/chat/completions", json=BODY, headers=sent)).status_code
                for client in clients
            }

        assert await statuses() == {200}
        gone = await clients[0].delete(
            f"/api/v1/keys/{ada.personal_key.id}", headers={"authorization": f"Bearer {manager.key}"}
        )
        assert gone.status_code == 200
        assert await statuses() == {401}


async def keys_of(gateways: Gateways, person: Person) -> list[dict[str, Any]]:
    listed = await list_keys(gateways.here.office, LOCAL, account=person.account)
    return [asdict(each) for each in listed.data]
