"""The wire endpoints: what is served on each surface, and the few addresses that belong to none.

POST <surface>/chat/completions, /completions, /embeddings inference, by the relay
POST <surface>/responses, /messages                        the same in other dialects
POST <surface>/messages/count_tokens                       how long a prompt is
*    <surface>/responses/{id}…                             responses that are kept: see responses.py
GET  <surface>/models, /api/anthropic/models/{id}          what this credential may use
GET  /v1/balance, /v1/usage                                what is left, what was used
GET  /health, /health/db, /api/v1/config, /metrics         for orchestrators; no credential
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, get_args
from urllib.parse import parse_qsl

import msgspec

from penstock import __version__
from penstock.access import Access, Caller
from penstock.api import anthropic_models
from penstock.api.door import Endpoint, Route, Takes
from penstock.api.errors import RENDER
from penstock.api.http import Exchange
from penstock.api.responses import PATH, KeptResponses, methods
from penstock.api.surfaces import ANTHROPIC, FORWARD, MESSAGES, PLACES, ROUTER, TRUST, Place
from penstock.catalogue import AUTO, Model
from penstock.db.journal import ping
from penstock.dialects import (
    Dialect,
    anthropic_messages,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
)
from penstock.errors import Forbidden, InvalidRequest, NotFound, NotImplementedHere, StoreUnavailable
from penstock.money.units import dollars
from penstock.operations.actor import Actor
from penstock.operations.balances import show_balance
from penstock.operations.choices import Lane, State
from penstock.operations.office import Office
from penstock.operations.usage import list_usage
from penstock.operations.values import require_printable
from penstock.relay.ask import Ask, Said
from penstock.relay.count import count
from penstock.relay.memory import Conversations, Memory
from penstock.relay.observe import Observer
from penstock.relay.relay import Relay
from penstock.relay.route import route

LONGEST_IDEMPOTENCY_KEY = 255
JSON = [(b"content-type", b"application/json")]
METRICS = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
USAGE_CHOICES: dict[str, tuple[str, ...]] = {"lane": get_args(Lane), "state": get_args(State)}
USAGE_FILTERS = frozenset({"key", "model", "lane", "since", "until", "state", "cursor", "limit"})


# What is served by path: the kind of model it asks for, the dialect, and the envelope of its errors.
INFERENCE: dict[str, tuple[str, Dialect, str]] = {
    "/chat/completions": ("chat", openai_chat, "openai"),
    "/completions": ("chat", openai_completions, "openai"),
    "/responses": ("chat", openai_responses, "openai"),
    "/embeddings": ("embeddings", openai_embeddings, "openai"),
    "/messages": ("chat", anthropic_messages, "anthropic"),
}
ID_HEADERS = {"anthropic": b"request-id"}  # where a dialect's clients look for the request's id


class Wire:
    """Answers the wire endpoints."""

    def __init__(self, *, relay: Relay, access: Access, office: Office, observer: Observer) -> None:
        self._relay = relay
        settings = office.settings
        self._conversations = Conversations(
            office.store, office.clock, settings.responses, most_body_bytes=settings.server.max_body_bytes
        )
        self._kept = KeptResponses(office.store, office.clock, self._caller)
        self._access = access
        self._office = office
        self._observer = observer

    def __repr__(self) -> str:
        return f"Wire({self._relay!r})"

    def routes(self) -> dict[str, Route]:
        """Every address, exactly."""
        found = {
            "/health": Route("health", {}, {"GET": self._health}),
            "/health/db": Route("health", {}, {"GET": self._health_of_store}),
            "/api/v1/config": Route("health", {}, {"GET": self._public_settings}),
            "/metrics": Route("health", {}, {"GET": self._metrics}),
        }
        for place in self._places():
            for prefix in place.prefixes:
                for path in place.paths:
                    found[prefix + path] = self._route(place, path)
        return found

    def below(self) -> dict[str, Route]:
        """Addresses whose ends name a thing: a response that is kept, a model of Anthropic's list."""
        found = {}
        for place in self._places():
            for prefix in place.prefixes:
                if PATH in place.paths:
                    found[f"{prefix}{PATH}/"] = self._routed(place, self._kept.endpoints(place), "openai", methods)
                if place is ANTHROPIC:
                    found[f"{prefix}/models/"] = self._routed(place, {"GET": self._model(place)}, place.envelope)
        return found

    def prefixes(self) -> dict[str, Route]:
        """Where an unknown path is refused in a surface's words; below its messages in theirs."""
        found = {}
        for place in self._places():
            for prefix in place.prefixes:
                found[f"{prefix}/"] = self._routed(place, {}, place.envelope)
                if MESSAGES[0] in place.paths:
                    found[f"{prefix}{MESSAGES[0]}/"] = self._routed(place, {}, "anthropic")
        return found

    def _places(self) -> list[Place]:
        enabled = dict(self._office.settings.surfaces)
        return [place for place in PLACES if place.surface.name not in enabled or enabled[place.surface.name].enabled]

    def _route(self, place: Place, path: str) -> Route:
        """What answers at a path of a place. The errors of an inference path are in its dialect's words."""
        if path in INFERENCE:
            kind, dialect, envelope = INFERENCE[path]
            return self._routed(place, {"POST": self._inference(place, kind, dialect)}, envelope)
        if path == "/messages/count_tokens":
            return self._routed(place, {"POST": self._count(place)}, "anthropic")
        answers = {
            "/models": self._models(place),
            "/balance": self._balance,
            "/usage": self._usage,
        }
        return self._routed(place, {"GET": answers[path]}, place.envelope)

    def _routed(self, place: Place, endpoints: dict[str, Endpoint], envelope: str, takes: Takes | None = None) -> Route:
        id_header = ID_HEADERS.get(envelope)
        return Route(place.surface.name, place.shapes, endpoints, RENDER[envelope], id_header, takes=takes)

    def _inference(self, place: Place, kind: str, dialect: Dialect) -> Endpoint:
        surface = place.surface
        remembers = dialect is openai_responses

        def serve(exchange: Exchange) -> Awaitable[None]:  # the relay's own coroutine: one within another costs again
            ask = _ask(exchange, place, kind, dialect, self._conversations.memory() if remembers else None)
            return self._relay.call(ask, exchange)

        async def serve_embeddings(exchange: Exchange) -> None:
            await self._access.admit(_credential(exchange), _trust(exchange), place.surface)
            if not any(model.kind == "embeddings" for model in self._relay.catalogue.listed(surface.name)):
                raise NotImplementedHere("No embedding model is configured.")
            await serve(exchange)

        return serve_embeddings if kind == "embeddings" else serve

    def _models(self, place: Place) -> Endpoint:
        async def answer(exchange: Exchange) -> None:
            caller = await self._caller(place, exchange)
            models, choice = self._listed(place, caller), self._choice(AUTO, place, caller)
            # Both companies have their SDKs ask at the same address; only one of them says a version.
            if place is ANTHROPIC or b"anthropic-version" in exchange.headers:
                entries = anthropic_models.entries(models, place.surface.name, choice)
                _answer(exchange, anthropic_models.page(entries, dict(parse_qsl(exchange.query))))
            else:
                listed = [_listing(model, place) for model in models]
                _answer(exchange, {"object": "list", "data": listed + ([_auto_listing(choice)] if choice else [])})

        return answer

    def _listed(self, place: Place, caller: Caller) -> list[Model]:
        return [
            model
            for model in self._relay.catalogue.listed(place.surface.name)
            if _may_have(caller, model) and (place is not FORWARD or model.contract)
        ]

    def _choice(self, name: str, place: Place, caller: Caller) -> list[Model]:
        """What `auto` chooses among for a caller, where it is listed: on the router. Nothing for any other name."""
        models = self._relay.catalogue.auto(name, place.surface.name) if place.surface is ROUTER.surface else ()
        return [model for model in models if _may_have(caller, model)]

    def _model(self, place: Place) -> Endpoint:
        async def answer(exchange: Exchange) -> None:
            caller = await self._caller(place, exchange)
            name = exchange.path.partition("/models/")[2]
            found = self._relay.catalogue.find(name, place.surface.name)
            if choice := self._choice(name, place, caller):
                _answer(exchange, anthropic_models.auto_entry(choice))
            elif found in self._listed(place, caller) and anthropic_models.is_shown(found):
                _answer(exchange, anthropic_models.entry(found, name))
            else:
                raise NotFound(f"There is no model '{name[:200]}'.")

        return answer

    def _count(self, place: Place) -> Endpoint:
        async def answer(exchange: Exchange) -> None:
            caller = await self._caller(place, exchange)
            if "inference" not in caller.scopes:
                raise Forbidden("This key has no scope for inference.")
            wish = anthropic_messages.peek_prompt(await exchange.body())
            ask = _ask(exchange, place, "chat", anthropic_messages, None)
            attempts = self._relay.attempts
            plan = route(wish, ask, caller, self._relay.catalogue, attempts.upstreams, most=attempts.most)
            tokens = await count(wish, plan, attempts.providers, ask.said.headers)
            exchange.whole(200, JSON, anthropic_messages.counted(tokens))

        return answer

    async def _balance(self, exchange: Exchange) -> None:
        caller = await self._caller(TRUST, exchange)
        _answer(exchange, await show_balance(self._office, _reader(caller), account=caller.account))

    async def _usage(self, exchange: Exchange) -> None:
        caller = await self._caller(TRUST, exchange)
        filters: dict[str, Any] = dict(parse_qsl(exchange.query, keep_blank_values=True))
        require_printable(filters)
        unknown = sorted(filters.keys() - USAGE_FILTERS)
        if unknown:
            raise InvalidRequest(f"Unknown filter '{unknown[0][:50]}'.", param=unknown[0][:50])
        for name, value in filters.items():
            if not value.isprintable():
                raise InvalidRequest(f"'{name}' has characters that cannot be printed.", param=name)
        for name, choices in USAGE_CHOICES.items():
            if filters.get(name, choices[0]) not in choices:
                raise InvalidRequest(f"'{name}' must be one of {', '.join(choices)}.", param=name)
        if "limit" in filters:
            filters["limit"] = _whole(filters["limit"], "limit")
        _answer(exchange, await list_usage(self._office, _reader(caller), account=caller.account, **filters))

    async def _health(self, exchange: Exchange) -> None:
        _answer(exchange, self._health_report("ok", "ok"))

    async def _health_of_store(self, exchange: Exchange) -> None:
        try:
            await self._office.store.read(ping())
        except StoreUnavailable:
            _answer(exchange, self._health_report("degraded", "unavailable"), status=503)
        else:
            _answer(exchange, self._health_report("ok", "ok"))

    def _health_report(self, status: str, database: str) -> dict[str, str]:
        environment = self._office.settings.server.environment
        return {
            "status": status,
            "service": "penstock",
            "environment": environment,
            "database": database,
            "version": __version__,
        }

    async def _public_settings(self, exchange: Exchange) -> None:
        server = self._office.settings.server
        base = FORWARD.prefixes[0]
        surfaces: dict[str, list[str]] = {}
        for place in self._places():
            surfaces.setdefault(place.surface.name, []).extend(place.prefixes)
        report = {
            "environment": server.environment,
            "publicUrl": server.public_url,
            "gatewayPath": base,
            "chatCompletionsPath": f"{base}/chat/completions",
            "surfaces": surfaces,
            "assets": ["USD", *self._relay.catalogue.contracts],
            "chain": None,
            "version": __version__,
        }
        _answer(exchange, report)

    async def _metrics(self, exchange: Exchange) -> None:
        exchange.whole(200, METRICS, await self._observer.render())

    async def _caller(self, place: Place, exchange: Exchange) -> Caller:
        return await self._access.enter(_credential(exchange), _trust(exchange), place.surface)


def _ask(exchange: Exchange, place: Place, kind: str, dialect: Dialect, memory: Memory | None) -> Ask:
    """A request for inference, as the relay takes it. What it says besides its body is read once for each head."""
    head = exchange.head
    said = head.said
    if said is None:
        said = head.said = Said(
            authorization=_credential(exchange),
            trust=_trust(exchange),
            lane=exchange.header(b"x-payment-lane"),
            idempotency_key=_idempotency_key(exchange),
            headers=_forwarded(exchange, dialect.FORWARDED),
        )
    return Ask(exchange.id, place.surface, kind, dialect, said, exchange.body, memory)


def _answer(exchange: Exchange, value: Any, status: int = 200) -> None:
    exchange.whole(status, JSON, msgspec.json.encode(value))


def _may_have(caller: Caller, model: Model) -> bool:
    return (caller.models is None or model.id in caller.models) and model.is_for({caller.account})


def _listing(model: Model, place: Place) -> dict[str, Any]:
    """A model in OpenAI's list, with what a caller needs to choose. Prices are dollars, per million tokens, as text."""
    entry: dict[str, Any] = {
        "id": model.name_on(place.surface.name),
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "context_length": model.context_length,
        "tier": model.contract.id if model.contract and place is FORWARD else None,
        "pricing": _pricing(model, place),
    }
    return entry | ({"planned": True} if model.planned else {})


def _auto_listing(choice: Sequence[Model]) -> dict[str, Any]:
    """It has the longest context of what it chooses among, and no price before it has chosen."""
    known = [model.context_length for model in choice if model.context_length is not None]
    return {
        "id": AUTO,
        "object": "model",
        "created": 0,
        "owned_by": "penstock",
        "context_length": max(known, default=None),
        "tier": None,
        "pricing": None,
    }


def _pricing(model: Model, place: Place) -> dict[str, str] | None:
    if place is FORWARD and model.contract:
        locked = dollars(model.contract.price_nano_per_mtok)
        return {"input": locked, "output": locked}
    if not model.offers or not model.priced:
        return None
    price = model.offers[0].price
    return {
        "input": dollars(price.input),
        "output": dollars(price.output),
        "cached_input": dollars(price.cached_input),
        "reasoning": dollars(price.reasoning),
        "cache_write": dollars(price.cache_write),
        "cache_write_1h": dollars(price.cache_write_1h),
        "per_request": dollars(price.per_request),
    }


def _reader(caller: Caller) -> Actor:
    """An inference credential may look at the account it spends from, and at nothing else."""
    return Actor(frozenset({"read"}), sees=frozenset({caller.account}), manages=frozenset(), user=caller.user)


def _credential(exchange: Exchange) -> str | None:
    """The `Authorization` header, or what it would say of the key in `x-api-key`, as Anthropic's clients send it."""
    authorization = exchange.header(b"authorization")
    if authorization is None and b"x-api-key" in exchange.headers:
        return f"Bearer {exchange.header(b'x-api-key')}"
    return authorization


def _forwarded(exchange: Exchange, names: tuple[bytes, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that an upstream should see, as far as the caller sent them."""
    return tuple((name, value.encode("latin-1")) for name in names if (value := exchange.header(name)) is not None)


def _trust(exchange: Exchange) -> str | None:
    headers = exchange.headers
    if b"x-trust" in headers or b"x-entity" in headers:
        return exchange.header(b"x-trust") or exchange.header(b"x-entity")
    return None


def _idempotency_key(exchange: Exchange) -> str | None:
    key = exchange.header(b"idempotency-key")
    if key is not None and not 0 < len(key) <= LONGEST_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"An Idempotency-Key has 1 to {LONGEST_IDEMPOTENCY_KEY} characters.", param="Idempotency-Key"
        )
    return key


def _whole(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequest(f"'{name}' must be a whole number.", param=name)
    return int(text)
