"""A whole gateway inside the test's own event loop: real sockets, a real database, upstreams that follow a script.

    async with running(settings_for(store_url, upstream=upstream.base_url)) as gateway:
        ada = await gateway.person(usd="1", tokens=10_000)      # a user with money and a key for every surface
        upstream.script(Plain(tokens=3))
        answer = await gateway.chat(ROUTER, ada)                # an httpx2 response
        client = gateway.sdk(ROUTER, ada)                       # the official SDK, asynchronous
        assert (await gateway.balance(ada)).credits.held.nano == 0

Leaving the block ends the gateway in good order and fails when the books do not add up. Fixtures are in `conftest.py`.
Nothing here replaces a part of Penstock; other settings are made with `dataclasses.replace`.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from penstock.api.server import Serving, serving
from penstock.app import Gateway, open_gateway
from penstock.config import (
    AutoSettings,
    ContractSettings,
    HealthSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    SecretSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from penstock.db.journal import Difference, verify
from penstock.operations.actor import LOCAL
from penstock.operations.balances import BalanceView, GrantView, grant_balance, show_balance
from penstock.operations.key_views import MintedKey
from penstock.operations.keys import create_key
from penstock.operations.office import Office
from penstock.operations.usage import UsageView, list_usage
from penstock.operations.users import create_user

TRUST, FORWARD, ROUTER, ROUTER_V1 = "/v1", "/api/v1/gateway/v1", "/api/openai", "/api/openai/v1"
BASES = (TRUST, FORWARD, ROUTER, ROUTER_V1)
ANTHROPIC = "/api/anthropic"  # the router, for callers who speak Messages

LLAMA = "meta-llama/Meta-Llama-3.1-70B-Instruct"  # $0.59 and $0.79 a million; `auto` on the router; contract LLAMA
DEEPSEEK = "deepseek/deepseek-chat"  # $0.20 and $0.40 a million; contract DEEPSEEK; also offered by `spare`
PLANNED = "gpt-5"
UPSTREAM_KEY = "sk-upstream-4fd0c1a7e2b94d6bb1c3"
SPARE_KEY = "sk-spare-0a8e5b7719c04f3c92d1"
PEPPER = b"pepper-for-tests-0123456789abcdef"
AUTH_SECRET = b"auth-secret-for-tests-0123456789"
NOWHERE = "http://127.0.0.1:9/v1"  # the discard port: nobody listens there
HELLO: Any = [{"role": "user", "content": "Hello!"}]
FAR_AWAY_MS = 4_102_444_800_000  # 2100-01-01

MODELS = (
    ModelSettings(
        id=LLAMA,
        offers=(OfferSettings("main", "llama-upstream"),),
        price=PriceSettings(input=590_000_000, output=790_000_000),
        aliases=(("*", ("llama-70b",)), ("router", ("auto",))),
        owned_by="deepinfra",
        created=1_746_403_200,
        context_length=131_072,
        contract="LLAMA",
    ),
    ModelSettings(
        id=DEEPSEEK,
        offers=(OfferSettings("main", "deepseek-upstream"), OfferSettings("spare", "deepseek-spare")),
        price=PriceSettings(input=200_000_000, output=400_000_000),
        contract="DEEPSEEK",
    ),
    ModelSettings(id=PLANNED, owned_by="openai", planned=True),
)
CONTRACTS = (
    ContractSettings("LLAMA", "Llama tokens", 180_000_000, 500_000, FAR_AWAY_MS),
    ContractSettings("DEEPSEEK", "DeepSeek tokens", 140_000_000, 1_000_000, FAR_AWAY_MS),
)


def settings_for(store_url: str, *, upstream: str = NOWHERE, spare: str = NOWHERE) -> Settings:
    """Settings with the database at a URL and two providers, `main` and `spare`, at these base URLs. They are asked
    however often they have failed, and `auto` is an alias: stories of routing have the usual settings."""
    return Settings(
        secrets=SecretSettings(PEPPER, AUTH_SECRET),
        server=ServerSettings(port=0, environment="test", grace_s=1.0),
        store=StoreSettings(store_url, "NORMAL"),
        providers=(
            ProviderSettings("main", base_url=upstream, api_key=UPSTREAM_KEY),
            ProviderSettings("spare", base_url=spare, api_key=SPARE_KEY),
        ),
        models=MODELS,
        contracts=CONTRACTS,
        auto=AutoSettings(enabled=False),
        health=HealthSettings(failures=0),
    )


def with_provider(settings: Settings, name: str, **changes: Any) -> Settings:
    """The settings with some of a provider's changed: `with_provider(settings, "main", on_cancel="drain")`."""
    changed = (replace(each, **changes) if each.name == name else each for each in settings.providers)
    return replace(settings, providers=tuple(changed))


@dataclass(frozen=True)
class Person:
    """A user with an account, and a key of each kind that can call models there."""

    user: str
    account: str
    account_key: MintedKey
    personal_key: MintedKey
    inference_key: MintedKey

    def key(self, base: str) -> MintedKey:
        """The key for the surface at `base`."""
        return {TRUST: self.account_key, FORWARD: self.inference_key}.get(base, self.personal_key)

    def headers(self, base: str) -> dict[str, str]:
        """What the surface at `base` wants besides the key."""
        return {"x-trust": self.account} if base == TRUST else {}


@dataclass(frozen=True, repr=False)
class Running:
    """A gateway that takes calls at `url`. `log` is its request log, `http` a client with no credentials."""

    gateway: Gateway
    server: Serving
    log: io.StringIO
    http: httpx2.AsyncClient

    def __repr__(self) -> str:
        return f"Running({self.url})"

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def office(self) -> Office:
        return self.gateway.office

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    # People, keys and money, made by operations as the operator would.

    async def person(self, *, usd: str | None = None, tokens: int | None = None, contract: str = "LLAMA") -> Person:
        """Somebody new, with so many dollars and so many tokens of `contract` when they are given."""
        user = await create_user(self.office, LOCAL, name="Ada")
        person = Person(
            user=user.id,
            account=user.account,
            account_key=await self.key("account", user=user.id),
            personal_key=await self.key("personal", user=user.id),
            inference_key=await self.key("inference", account=user.account),
        )
        if usd is not None:
            await self.grant(person, usd=usd)
        if tokens is not None:
            await self.grant(person, contract=contract, tokens=tokens)
        return person

    async def key(self, kind: Any, **wish: Any) -> MintedKey:
        """A new key; `wish` as in `create_key`."""
        return await create_key(self.office, LOCAL, kind=kind, name=kind, **wish)

    async def grant(self, person: Person, **money: Any) -> GrantView:
        """Money for somebody: `usd`, or `contract` and `tokens`."""
        return await grant_balance(self.office, LOCAL, account=person.account, **money)

    async def balance(self, person: Person) -> BalanceView:
        """What somebody has once everything that ended is settled."""
        return await show_balance(self.office, LOCAL, account=person.account)

    async def nano(self, person: Person) -> int:
        """Nano-USD that somebody has; fails when any of it is still held."""
        credits = (await self.balance(person)).credits
        assert credits.held.nano == 0
        return credits.total.nano

    async def tokens(self, person: Person) -> int:
        """Tokens that somebody has in live lots of all contracts; fails when any of them are still held."""
        lots = (await self.balance(person)).contracts
        assert not any(lot.held for lot in lots)
        return sum(lot.available for lot in lots)

    async def usage(self, person: Person, **filters: Any) -> tuple[UsageView, ...]:
        """Somebody's usage records, newest first."""
        return (await list_usage(self.office, LOCAL, account=person.account, limit=1000, **filters)).data

    async def differences(self) -> list[Difference]:
        """Where the books do not add up, once everything that ended is settled."""
        await self.office.store.settled()
        return await self.office.store.read(verify())

    # Calls.

    def sdk(self, base: str, person: Person, *, key: MintedKey | None = None, **options: Any) -> AsyncOpenAI:
        """The official SDK: nothing but base URL, key and X-Trust depends on the surface. It never retries."""
        return AsyncOpenAI(
            base_url=self.url + base,
            api_key=(key or person.key(base)).key,
            default_headers=person.headers(base),
            max_retries=0,
            http_client=plain_client(),
            **options,
        )

    def anthropic(self, person: Person, *, base: str = ANTHROPIC, **options: Any) -> AsyncAnthropic:
        """Anthropic's official SDK, with somebody's key. It adds `/v1` to its base URL, and never retries."""
        return AsyncAnthropic(
            base_url=(self.url + base).removesuffix("/v1"),
            max_retries=0,
            http_client=plain_client(),
            **({"api_key": person.key(base).key, "default_headers": person.headers(base)} | options),
        )

    async def chat(
        self,
        base: str,
        person: Person,
        *,
        key: MintedKey | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx2.Response:
        """A chat completion as plain HTTP; `fields` are the body's, beside a model and a message."""
        body = {"model": LLAMA, "messages": HELLO, **fields}
        return await self.post(f"{base}/chat/completions", person, key=key, headers=headers, body=body)

    async def post(
        self,
        path: str,
        person: Person,
        *,
        key: MintedKey | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> httpx2.Response:
        """POST `body` (bytes go as they are) to a path below one of the bases, with somebody's key for it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = self._credentials(path, person, key) | {"content-type": "application/json"} | dict(headers or {})
        return await self.http.post(path, content=content, headers=sent)

    async def get(
        self,
        path: str,
        person: Person,
        *,
        key: MintedKey | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """GET a path below one of the bases, with somebody's key for it."""
        sent = self._credentials(path, person, key) | dict(headers or {})
        return await self.http.get(path, params=query, headers=sent)

    def _credentials(self, path: str, person: Person, key: MintedKey | None) -> dict[str, str]:
        base = max((base for base in (*BASES, ANTHROPIC) if path.startswith(f"{base}/")), key=len)
        return {"authorization": f"Bearer {(key or person.key(base)).key}"} | person.headers(base)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """A gateway with these settings, on a port of its own. Afterwards its books must add up."""
    log = io.StringIO()
    async with open_gateway(settings, log) as gateway, serving(gateway.door, settings.server) as server:
        async with plain_client(base_url=server.url) as http:
            running = Running(gateway, server, log, http)
            yield running
        assert await running.differences() == []


def plain_client(**options: Any) -> httpx2.AsyncClient:
    """A client for loopback: no proxy, and no certificates, which take longer to load than a test takes."""
    return httpx2.AsyncClient(trust_env=False, verify=False, timeout=30, **options)


def events(body: str | bytes) -> list[Any]:
    """The data of a stream's events, in order: JSON as values, `[DONE]` as text. Comments are left out."""
    text = body.decode() if isinstance(body, bytes) else body
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]
