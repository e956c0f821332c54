"""The composition root: the only file that names concrete adapters. It builds the parts and hands them to each other.

open_office    what operations need: the store, the catalogue, keys      (command line, management API, gateway)
open_gateway   an office that also serves: the data path, the door, upkeep
serve          a gateway on a socket, until it is told to stop; alone, or as one worker of a supervisor
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from penstock.access import Access, Keyring, Sessions
from penstock.api.connect import Connect
from penstock.api.door import Door
from penstock.api.lazy import Lazy
from penstock.api.peering import Peering, peer_secret
from penstock.api.server import Serving, serving
from penstock.api.tools import ToolDoor
from penstock.api.wire import Wire
from penstock.catalogue import Catalogue
from penstock.channel import Channel
from penstock.clock import Clock
from penstock.config import ProviderSettings, Settings, StoreSettings
from penstock.config_secrets import SECRET_VARIABLES, SECRETS_FILE, fingerprints, sqlite_file
from penstock.db import migrate
from penstock.db.fingerprints import (
    known_fingerprints,
    note_fingerprints,
    note_first_fingerprints,
    replace_fingerprints,
)
from penstock.db.mutexes import drop_mutexes
from penstock.db.prices import note_prices
from penstock.db.slips import Slips
from penstock.db.sqlite import SqliteStore
from penstock.db.store import Store
from penstock.errors import ConfigError, StoreUnavailable
from penstock.hub.hub import Hub
from penstock.ids import IdMaker
from penstock.log import Redactor, RequestLog, Stream, configure
from penstock.operations.office import Office
from penstock.outlet import fill_standard_streams, outlet
from penstock.ports import Provider
from penstock.providers.anthropic import Anthropic
from penstock.providers.connected_tools import ConnectedTools
from penstock.providers.openai_compatible import OpenAICompatible
from penstock.providers.other_process import OtherProcesses
from penstock.providers.worker import WorkerProvider
from penstock.relay.attempt import Attempts
from penstock.relay.hold import Holds
from penstock.relay.observe import Observer
from penstock.relay.relay import Relay
from penstock.relay.tools import Tools
from penstock.routing.health import STATES, Health
from penstock.routing.pulse import Pulse, WorkerSeen
from penstock.routing.upstreams import Upstreams
from penstock.supervised import Post, Supervised
from penstock.upkeep import Upkeep

RETIRED_S = 900.0  # how long a provider that a reload has dropped may finish its calls
_OTHER_SECRET = (
    f"is not the one that this database was used with. Set it, or restore {SECRETS_FILE}, as it was; "
    "or go on with this one by `penstock accept-secrets`, at the price of all keys (pepper) or sessions (auth secret)"
)

_logger = logging.getLogger("penstock")


@asynccontextmanager
async def open_office(settings: Settings, redact: Redactor | None = None) -> AsyncIterator[Office]:
    """An office on the settings' store, which is migrated if need be, and closed in the end. ConfigError when the store
    is used with other secrets.

    Its upstreams are there when somebody looks at them: a command that does not has no connections to make and close.
    """
    clock = Clock.starting_at(settings.now) if settings.now else Clock()
    ids = IdMaker()
    owner = ids.new("own")
    store = await _opened_store(settings, clock, owner)
    secret = peer_secret(settings.secrets.auth_secret)
    hub = Hub(store=store, clock=clock, ids=ids, owner=owner, reach=OtherProcesses(secret))
    upstreams = Upstreams({}, Health(settings.health, clock, redact or _redactor(settings)))
    pulse = Pulse(upstreams, partial(_providers, settings, hub), partial(_workers, hub))
    try:
        yield Office(
            store=store,
            settings=settings,
            catalogue=Catalogue(settings),
            keyring=Keyring(settings.prefixes, settings.secrets.key_pepper),
            sessions=Sessions(settings.jwt, settings.secrets.auth_secret, clock),
            clock=clock,
            ids=ids,
            upstreams=upstreams,
            pulse=pulse,
            hub=hub,
        )
    finally:
        pulse.close()
        await hub.close()
        for provider in upstreams.providers.values():
            await provider.close()
        await store.close()


async def accept_secrets(settings: Settings) -> list[str]:
    """Have the settings' secrets be those of their store from now on; the names of those that were others.

    StoreUnavailable when there is no store: a new one takes the secrets it is made with anyway.
    """
    migrate.require(settings.store.url)
    migrate.upgrade(settings.store.url)
    store = _store(settings.store, Clock(), IdMaker().new("own"))
    try:
        return await store.write(replace_fingerprints(fingerprints(settings.secrets)))
    finally:
        await store.close()


@dataclass(slots=True)
class Gateway:
    """An office that serves. `door` is the ASGI application."""

    office: Office
    door: Door
    relay: Relay
    observer: Observer
    upkeep: Upkeep
    redact: Redactor
    retiring: set[asyncio.Task[None]] = field(default_factory=set)

    async def reload(self, settings: Settings) -> None:
        """Swap catalogue and providers; calls under way end as they began. Address, surfaces, store, secrets stay."""
        office = self.office
        before = office.settings
        kept = replace(settings, secrets=before.secrets, server=before.server, surfaces=before.surfaces)
        if settings.surfaces != before.surfaces:
            _logger.warning("which surfaces are enabled stays as it was until the gateway is started anew")
        self.redact.learn(_secrets(kept))
        catalogue = Catalogue(kept)
        await office.store.write(note_prices(catalogue.price_versions(), office.clock.now_ms()))
        providers, dropped = _exchange(
            self.relay.attempts.providers, office.settings.providers, kept.providers, office.hub
        )
        office.settings, office.catalogue = kept, catalogue
        for name in providers.keys() | office.upstreams.providers.keys():
            if providers.get(name) is not office.upstreams.providers.get(name):
                office.upstreams.health.forget(name)
        office.upstreams.providers = providers
        office.upstreams.health.settings = kept.health
        offered = (offer for model in catalogue.models for offer in model.offers)
        office.upstreams.health.keep({(offer.provider, offer.model) for offer in offered})
        self.relay.set_limits(kept.limits)
        self.relay.catalogue = catalogue
        self.relay.tools.settings = kept.tools
        for provider in dropped:
            self.retiring.add(asyncio.create_task(_retire(provider)))


@asynccontextmanager
async def open_gateway(
    settings: Settings, log_stream: Stream, redact: Redactor | None = None
) -> AsyncIterator[Gateway]:
    """A gateway, ready to serve; when it closes, everything posted is settled."""
    redact = redact or _redactor(settings)
    async with open_office(settings, redact) as office:
        log = RequestLog(log_stream, msgspec.json.encode)
        observer = Observer(log, office.clock, redact)
        owner, hub = office.hub.owner, office.hub
        holds = Holds(office.store, office.clock, settings.limits, owner=owner, observe=observer)
        secret = peer_secret(settings.secrets.auth_secret)
        peering = Peering(hub, host=settings.server.peer_host, secret=secret, most_bytes=settings.server.max_body_bytes)
        office.upstreams.providers = _providers(settings, hub)
        attempts = Attempts(office.upstreams, settings.limits.attempts, redact)
        access = Access(
            office.store, office.keyring, office.sessions, office.clock, settings.limits.requests_per_minute
        )
        tools = Tools(ConnectedTools(hub), office.store, office.clock, settings.tools)
        hub.watch()  # also where tools are off: an account may have them on, or a reload turn them on
        relay = Relay(
            access=access,
            holds=holds,
            attempts=attempts,
            catalogue=office.catalogue,
            tools=tools,
            clock=office.clock,
            limits=settings.limits,
        )
        upkeep = Upkeep(
            store=office.store,
            clock=office.clock,
            owner=owner,
            holds=holds,
            relay=relay,
            observer=observer,
            hub=hub,
            quiet_s=settings.server.keepalive_comment_s,
            check_providers=partial(_check_providers, office),
            response_bytes=settings.responses.account_bytes,
        )
        door = _door(office, access, relay, tools, peering, observer)
        _show_gauges(observer, relay, holds, attempts, office.store, hub)
        _refuse_other_secrets(settings, await office.store.write(note_fingerprints(fingerprints(settings.secrets))))
        await office.store.write(note_prices(office.catalogue.price_versions(), office.clock.now_ms()))
        await upkeep.start()
        gateway = Gateway(office, door, relay, observer, upkeep, redact)
        try:
            yield gateway
        finally:
            await hub.close()
            await peering.close()
            await upkeep.stop()
            for task in gateway.retiring:
                task.cancel()
            await asyncio.gather(*gateway.retiring, return_exceptions=True)


def _door(office: Office, access: Access, relay: Relay, tools: Tools, peering: Peering, observer: Observer) -> Door:
    """Every address that is answered here, and the management API behind."""
    wire = Wire(relay=relay, access=access, office=office, observer=observer)
    return Door(
        wire.routes()
        | Connect(access, office.hub, peering.start).routes()
        | ToolDoor(access, tools, office.store, office.clock).routes(),
        wire.below(),
        wire.prefixes(),
        Lazy(office, access),
        observer=observer,
    )


Announce = Callable[[Gateway, str], Awaitable[None]]


def serve(settings: Settings, *, reload: Callable[[], Settings], announce: Announce, post: Post | None = None) -> int:
    """Serve until SIGINT or SIGTERM; reload on SIGHUP. `announce` is told the base URL once calls are taken.

    With a `post`, do what its supervisor says as well.
    """
    fill_standard_streams()
    redact = _redactor(settings)
    configure(outlet(sys.stderr), redact)
    _spare_the_collector()
    _allow_connections()
    drop_mutexes()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if post is None:
            runner.run(_serve_alone(settings, redact, reload, announce))
        else:
            runner.run(_serve_supervised(settings, redact, reload, announce, post))
    return 0


def _allow_connections() -> None:
    """Take as many open files as there may be: with the usual 1,024, a thousand idle callers lock all others out."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve_alone(
    settings: Settings, redact: Redactor, reload: Callable[[], Settings], announce: Announce
) -> None:
    for warning in settings.warnings:
        _logger.warning("%s", warning)
    async with (
        open_gateway(settings, outlet(sys.stdout), redact) as gateway,
        serving(gateway.door, settings.server, deaf_afterwards=True) as server,
    ):
        _listen_to_signals(gateway, reload)
        _show_connections(gateway.observer, server, "1")
        _logger.info("serving at %s on %s and httptools", server.url, type(asyncio.get_running_loop()).__module__)
        await announce(gateway, server.url)
        await server.ended()


async def _serve_supervised(
    settings: Settings, redact: Redactor, reload: Callable[[], Settings], announce: Announce, post: Post
) -> None:
    migrate.require(settings.store.url)  # the supervisor has seen to it; since then others may be waiting for it
    async with (
        open_gateway(settings, outlet(sys.stdout), redact) as gateway,
        serving(gateway.door, settings.server, post.listener, deaf_afterwards=True) as server,
    ):
        _listen_to_signals(gateway, reload)
        _show_connections(gateway.observer, server, str(post.number))
        orders: dict[str, Callable[[], Awaitable[None]]] = {
            "announce": partial(announce, gateway, server.url),
            "reload": partial(_reload, gateway, reload),
            "retire": partial(server.retire, settings.server.grace_s),
            "stop": server.stop,
        }
        supervised = Supervised(await Channel.on(post.line), figures=gateway.observer.figures, orders=orders)
        gateway.observer.total = supervised.total
        supervised.serves(settings.server.grace_s)
        await server.ended()
    await supervised.leave()


def _listen_to_signals(gateway: Gateway, reload: Callable[[], Settings]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload(gateway, reload)))
    no_restart = "SIGUSR2 restarts the workers of a supervisor, which this process is not; it goes on"
    loop.add_signal_handler(signal.SIGUSR2, _logger.warning, no_restart)


def _spare_the_collector() -> None:
    """Look for cycles less often: what a call makes is nearly always freed without, and looking costs it some 3 %."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _reload(gateway: Gateway, reload: Callable[[], Settings]) -> None:
    try:
        await gateway.reload(reload())
    except (ConfigError, StoreUnavailable) as error:
        _logger.error("the configuration stays as it was: %s", error.message)
    else:
        _logger.info("the configuration has been read again")


async def _opened_store(settings: Settings, clock: Clock, owner: str) -> Store:
    """The store, migrated if need be. ConfigError when it is used with other secrets.

    One without a key takes the secrets of the first to come. Where there are keys and no fingerprint yet, an older
    version has made them: only a gateway is known to have the right secrets then, see `open_gateway`.
    """
    migrate.upgrade(settings.store.url)
    store = _store(settings.store, clock, owner)
    try:
        known = await store.read(known_fingerprints())
        if not known:
            known = await store.write(note_first_fingerprints(fingerprints(settings.secrets)))
        _refuse_other_secrets(settings, known)
    except BaseException:
        await store.close()
        raise
    return store


def _refuse_other_secrets(settings: Settings, known: Mapping[str, str]) -> None:
    mine = fingerprints(settings.secrets)
    other = [variable for name, variable in SECRET_VARIABLES.items() if known.get(name, mine[name]) != mine[name]]
    if other:
        raise ConfigError([f"{variable}: {_OTHER_SECRET}" for variable in other])


def _store(settings: StoreSettings, clock: Clock, owner: str) -> Store:
    if migrate.is_postgres(settings.url):
        from penstock.db.postgres import PostgresStore  # noqa: PLC0415 -- its driver comes with an extra

        return PostgresStore(settings.url, clock=clock)
    path = sqlite_file(settings.url)
    if path is None:
        return SqliteStore(None, clock=clock)
    slips = None if settings.synchronous == "EXTRA" else Slips(f"{path}-slips", owner)
    return SqliteStore(str(path), clock=clock, synchronous=settings.synchronous, slips=slips)


def _provider(settings: ProviderSettings, hub: Hub) -> Provider:
    """The adapter for a provider. What is seldom used is imported when it is: a start takes long enough."""
    if settings.kind == "worker":
        return WorkerProvider(settings, hub)
    if settings.kind == "demo":
        from penstock.providers.demo import DemoProvider  # noqa: PLC0415

        return DemoProvider(settings.name)
    if settings.kind == "cli":
        from penstock.providers.cli.provider import CliProvider  # noqa: PLC0415

        return CliProvider(settings)
    if settings.kind == "llamacpp" and settings.model_path:
        from penstock.providers.llamacpp import LlamaCppEngine  # noqa: PLC0415

        return LlamaCppEngine(
            Path(settings.model_path),
            settings.name,
            context_tokens=settings.context_tokens,
            slots=settings.slots,
            threads=settings.threads,
            embeddings=settings.embeddings,
        )
    return Anthropic(settings) if settings.kind == "anthropic" else OpenAICompatible(settings)


def _providers(settings: Settings, hub: Hub) -> dict[str, Provider]:
    return {each.name: _provider(each, hub) for each in settings.providers}


def _workers(hub: Hub) -> list[WorkerSeen]:
    """The GPU workers that have dialled in, to whichever process."""
    return [
        WorkerSeen(
            each.id,
            each.account,
            each.shared,
            tuple(model.id for model in each.offer.models),
            each.offer.slots,
            each.outstanding,
        )
        for each in hub.all("worker")
    ]


async def _check_providers(office: Office) -> None:
    await office.pulse.look_at_due(office.settings.providers)


async def _retire(provider: Provider) -> None:
    """Close a provider when its last calls have had their time, or at once when the gateway ends."""
    try:
        await asyncio.sleep(RETIRED_S)
    finally:
        await provider.close()


def _exchange(
    running: Mapping[str, Provider],
    before: tuple[ProviderSettings, ...],
    after: tuple[ProviderSettings, ...],
    hub: Hub,
) -> tuple[dict[str, Provider], list[Provider]]:
    """`(providers for `after`, those no longer needed)`. Unchanged ones go on; calls under way keep theirs anyway."""
    known = {each.name: each for each in before}
    kept = {each.name: running[each.name] for each in after if known.get(each.name) == each}
    providers = {each.name: kept.get(each.name) or _provider(each, hub) for each in after}
    return providers, [provider for name, provider in running.items() if name not in kept]


def _redactor(settings: Settings) -> Redactor:
    prefixes = [getattr(settings.prefixes, name) for name in settings.prefixes.__slots__]
    return Redactor(_secrets(settings), prefixes)


def _secrets(settings: Settings) -> list[str]:
    return [each.api_key for each in settings.providers if each.api_key]


def _show_gauges(observer: Observer, relay: Relay, holds: Holds, attempts: Attempts, store: Store, hub: Hub) -> None:
    observer.gauge("penstock_gpu_workers", "GPU workers connected.", partial(hub.connected, "worker"))
    observer.gauge("penstock_tools_workers", "Tools workers connected.", partial(hub.connected, "tools_worker"))
    observer.gauge("penstock_holds_open", "Calls that hold money now.", lambda: len(holds))
    observer.gauge("penstock_streams_open", "Streams under way.", lambda: len(relay.streams))
    observer.gauge("penstock_drains", "Calls read to their end after the caller left.", lambda: relay.drains.now)
    observer.gauges(
        "penstock_provider_state",
        "Processes in which a provider's breaker is in this state.",
        ("provider", "state"),
        partial(_states, attempts.upstreams),
    )
    observer.gauges(
        "penstock_provider_outstanding",
        "Calls under way, by provider.",
        ("provider",),
        lambda: {(name,): found.outstanding for name, found in attempts.upstreams.health.conditions.items()},
    )
    observer.gauge("penstock_store_backlog", "Jobs that wait for the store's writer.", lambda: store.backlog)
    for figure in ("open_connections", "idle_connections", "waiting"):
        observer.gauge(
            f"penstock_upstream_{figure}",
            f"Upstream pool: {figure.replace('_', ' ')}.",
            partial(_total, attempts, figure),
        )


def _states(upstreams: Upstreams) -> dict[tuple[str, ...], float]:
    now_s = upstreams.health.clock.monotonic()
    states = {name: upstreams.health.of(name).breaker.state(now_s) for name in upstreams.providers}
    return {(name, state): float(states[name] == state) for name in states for state in STATES}


def _show_connections(observer: Observer, server: Serving, worker: str) -> None:
    observer.gauge("penstock_workers_reporting", "Serving processes that these figures are the sum of.", lambda: 1)
    observer.gauge(
        "penstock_connections_open",
        "Connections of callers, by worker.",
        lambda: server.connections,
        labels={"worker": worker},
    )


def _total(attempts: Attempts, figure: str) -> float:
    return sum(getattr(provider, figure, 0) for provider in attempts.providers.values())
