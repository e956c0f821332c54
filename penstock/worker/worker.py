"""A GPU worker: an engine, and a line to a gateway by which the engine's work comes.

Bytes pass: a job's body goes to the engine as it came, and the engine's answer back as it is produced. It forwards to a
handful of inference paths and to nothing else the engine may have. It keeps nothing and bills nothing.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from penstock import __version__
from penstock.errors import ConfigError, UpstreamError, UpstreamUnavailable
from penstock.hub.dialer import BusyError, Dialer, GivenJob, JobError, or_stop
from penstock.hub.messages import Offer
from penstock.ports import Call
from penstock.worker.engine import Engine, engine_of, first_look

CONNECT = "/api/workers/v1/connect"
PATHS = frozenset(
    ["chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens", "models"]
)
FORWARDED = frozenset(["anthropic-version", "anthropic-beta"])  # of a job; all others are between callers and gateway
RETURNED = frozenset(["content-type", "content-encoding", "retry-after"])
BUSY = frozenset([429, 503])  # an engine's way to say that it has no room: somebody else may have
LOOK_S = 5.0  # between looks whether the engine serves, and what
START_LOOK_S = 0.5

_logger = logging.getLogger("penstock.worker")


@dataclass(frozen=True, slots=True)
class Options:
    """What `penstock worker` is told. `grace_s` is for jobs under way after SIGTERM."""

    gateway: str
    key: str = field(repr=False)
    engine: str
    engine_key: str | None = field(default=None, repr=False)
    slots: int | None = None
    context: int | None = None
    grace_s: float = 30.0


async def work(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way. ConfigError, RefusedError, UpstreamUnavailable."""
    engine = engine_of(options.engine, key=options.engine_key, slots=options.slots, context=options.context)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        offer = await or_stop(_begin(engine), stopping)
        if offer is not None:
            await _serve(options, engine, offer, stopping)
    finally:
        await engine.close()


async def _begin(engine: Engine) -> Offer:
    """Start it, and wait until it serves. ConfigError, UpstreamUnavailable."""
    await engine.start()
    return await first_look(engine, START_LOOK_S)


async def _serve(options: Options, engine: Engine, offer: Offer, stopping: asyncio.Event) -> None:
    agent = f"penstock-worker/{__version__}"
    try:
        dialer = Dialer(options.gateway, CONNECT, options.key, offer, Forward(engine), agent=agent)
    except ValueError as error:
        raise ConfigError([f"gateway: {error}"]) from None
    _logger.info("the engine serves %s, %d at once", ", ".join(model.id for model in offer.models), offer.slots)
    running = asyncio.create_task(dialer.run())
    watching = asyncio.create_task(watch(engine, dialer))
    try:
        await or_stop(asyncio.shield(running), stopping)
        if not running.done():
            _logger.info("ends when %d jobs are done", dialer.running)
            dialer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), options.grace_s)
        if running.done():
            running.result()
    finally:
        watching.cancel()
        running.cancel()
        await asyncio.gather(watching, running, return_exceptions=True)


async def watch(engine: Engine, dialer: Dialer) -> None:
    """Announce what the engine serves whenever that has changed; nothing while it does not serve."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            offer = await engine.look()
        except UpstreamError as error:
            offer = Offer(slots=0)
            if dialer.offer != offer:
                _logger.error("the engine does not serve: %s", error.message)
        except Exception:  # what it will say next may be understood
            _logger.exception("what the engine serves is not understood")
            continue
        await dialer.announce(offer)


class Forward:
    """Does jobs by having the engine answer them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        return f"Forward({self._engine!r})"

    async def __call__(self, job: GivenJob) -> None:
        """Send the engine's answer. BusyError when it has no room, JobError when it breaks."""
        body = await job.body()
        if job.path not in PATHS or job.method not in ("GET", "POST"):
            await job.head(404, {"content-type": "application/json"})
            await job.piece(_NOTHING_THERE)
            return
        headers = tuple(
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in job.headers if name in FORWARDED
        )
        try:
            answer = await self._engine.open(Call(job.path, body, job.stream, headers, job.method))
            try:
                if answer.status in BUSY:
                    raise BusyError
                await job.head(answer.status, {name: text for name, text in answer.headers.items() if name in RETURNED})
                async for piece in answer:
                    await job.piece(piece)
            finally:
                answer.close()
        except UpstreamUnavailable as error:
            raise JobError(f"The engine is not there: {error.message}") from None
        except UpstreamError as error:
            raise JobError(error.message) from None


_NOTHING_THERE = msgspec.json.encode(
    {"error": {"message": "A worker forwards inference only.", "type": "not_found", "code": "not_found", "param": None}}
)
