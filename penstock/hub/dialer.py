"""The peer's end of the line: dials a gateway, announces what it offers, takes jobs, and dials again when it must.

What a job means is given to it as `work`: a coroutine that gets a `GivenJob`, reads its body, and answers with a head
and pieces. Returning ends the answer, `BusyError` gives the job back, any other error fails it, and it is cancelled
when nobody wants the answer any more or its time is over.

    dialer = Dialer(url, "/api/workers/v1/connect", key, offer, work, agent="penstock-worker/1.0")
    await dialer.run()        # until `drain` was called and all jobs are done; RefusedError when the key is no good
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from penstock.hub import messages
from penstock.hub.messages import LARGEST_MESSAGE, PIECE_BYTES, VERSION, NonsenseError, Offer, encode

OPEN_S = 10.0  # to connect, and then to be welcomed
FIRST_PAUSE_S = 0.25  # before the second attempt; doubled for each further one
LONGEST_PAUSE_S = 30.0
STEADY_S = 5.0  # a connection that lasted so long was no failed attempt
REFUSALS = frozenset({401, 403})  # of a gateway that has understood: trying again changes nothing

_logger = logging.getLogger("penstock.worker")

T = TypeVar("T")
Work = Callable[["GivenJob"], Awaitable[None]]


class RefusedError(Exception):
    """The gateway does not let this worker in; trying again does not help."""


class BusyError(Exception):
    """There is no room for the job here after all; nothing has been done of it."""


class JobError(Exception):
    """The job cannot be done. Its text is told to the gateway."""


class GivenJob:
    """One job to do."""

    def __init__(self, session: _Session, told: messages.Job, window: int) -> None:
        self.number = told.job
        self.path = told.path
        self.method = told.method
        self.headers = told.headers
        self.stream = told.stream
        self.size = told.size
        self.limit_s = told.limit_s
        self.began = False  # a head has been sent
        self._session = session
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._credit = window
        self._more = asyncio.Event()
        if not told.size:
            self._arrived.set()

    def __repr__(self) -> str:
        return f"GivenJob({self.number}, {self.path}, began={self.began})"

    async def body(self) -> bytes:
        """All of its body."""
        await self._arrived.wait()
        return bytes(self._received)

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer."""
        self.began = True
        await self._session.say(messages.Head(self.number, status, dict(headers)))

    async def piece(self, data: bytes) -> None:
        """Send a piece of the answer; waits while the caller takes nothing."""
        start = 0
        while start < len(data):
            while self._credit <= 0:
                self._more.clear()
                await self._more.wait()
            size = min(PIECE_BYTES, self._credit, len(data) - start)
            self._credit -= size
            await self._session.send(messages.piece(self.number, data[start : start + size]))
            start += size

    def received(self, data: bytes) -> None:
        """A piece of its body. NonsenseError when that is more than was announced."""
        self._received += data
        if len(self._received) > self.size:
            raise NonsenseError("a body is longer than announced")
        if len(self._received) == self.size:
            self._arrived.set()

    def may_send(self, bytes: int) -> None:
        """The caller has taken so much."""
        self._credit += bytes
        self._more.set()


class Dialer:
    """Keeps a connection to a gateway. While a gateway hands over to another process there are two for a time.

    ValueError when `url` is no address of a gateway.
    """

    def __init__(self, url: str, path: str, key: str, offer: Offer, work: Work, *, agent: str) -> None:
        self._url = _socket_url(url, path)
        self._key = key
        self._offer = offer
        self._work = work
        self._agent = agent
        self._sessions: set[_Session] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self.connected = asyncio.Event()

    def __repr__(self) -> str:
        return f"Dialer({self._url}, {self.running} jobs, {len(self._sessions)} connections)"

    @property
    def running(self) -> int:
        """Jobs under way."""
        return sum(len(session.jobs) for session in self._sessions)

    @property
    def offer(self) -> Offer:
        """What is offered now."""
        return self._offer

    def has_room(self) -> bool:
        """Whether another job may be taken."""
        return not self._draining.is_set() and self.running < self._offer.slots

    async def announce(self, offer: Offer) -> None:
        """Offer something else from now on."""
        if offer != self._offer:
            self._offer = offer
            for session in list(self._sessions):
                with suppress(ConnectionClosed):
                    await session.say(offer)

    def drain(self) -> None:
        """Take no more jobs; `run` returns when those under way are done."""
        self._draining.set()

    async def run(self) -> None:
        """Be connected until told to drain. RefusedError."""
        pauses = _pauses()
        try:
            while not self._draining.is_set():
                session = await self._dial()
                if session is None:
                    await self._rest(next(pauses))
                    continue
                began_s = asyncio.get_running_loop().time()
                await self.until(session.leaves.wait())
                if asyncio.get_running_loop().time() - began_s > STEADY_S:
                    pauses = _pauses()
                if session.ended and not self._draining.is_set():
                    await self._rest(next(pauses))
            await self._finish()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _dial(self) -> _Session | None:
        """A connection that has been welcomed; None when there is none to be had now."""
        host = urlsplit(self._url).hostname or ""
        try:
            socket = await connect(
                self._url,
                additional_headers={"Authorization": f"Bearer {self._key}"},
                user_agent_header=self._agent,
                compression=None,
                ping_interval=None,  # heartbeats are messages
                open_timeout=OPEN_S,
                max_size=LARGEST_MESSAGE,
                max_queue=256,
                proxy=None if _is_loopback(host) else True,
            )
        except InvalidStatus as error:
            if error.response.status_code in REFUSALS:
                raise RefusedError(_refusal(error)) from None
            _logger.warning("the gateway does not take us now: %s", _refusal(error))
            return None
        except (OSError, WebSocketException, ValueError, EOFError) as error:  # also where a redirect leads
            _logger.warning("the gateway cannot be reached: %s", str(error) or type(error).__name__)
            return None
        session = _Session(self, socket, self._work)
        self.spawn(self._serve(session))
        return session

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this on the side; `run` ends with the last of it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, session: _Session) -> None:
        self._sessions.add(session)
        try:
            await session.serve(self._agent)
        finally:
            self._sessions.discard(session)
            if not self._sessions:
                self.connected.clear()

    async def _finish(self) -> None:
        for session in list(self._sessions):
            await session.drain()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _rest(self, most_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._draining.wait()

    async def until(self, waited: Awaitable[object]) -> None:
        """Wait for this, or to be told to drain."""
        waits = [asyncio.ensure_future(waited), asyncio.ensure_future(self._draining.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class _Session:
    """One connection, from its handshake to its end. `leaves` is set when another one is needed."""

    def __init__(self, dialer: Dialer, socket: ClientConnection, work: Work) -> None:
        self.jobs: dict[int, tuple[GivenJob, asyncio.Task[None]]] = {}
        self.leaves = asyncio.Event()
        self.ended = False
        self._dialer = dialer
        self._socket = socket
        self._work = work
        self._window = messages.WINDOW_BYTES
        self._heard_s = asyncio.get_running_loop().time()
        self._told_to_leave = False

    def __repr__(self) -> str:
        return f"_Session({len(self.jobs)} jobs, leaves={self.leaves.is_set()})"

    async def say(self, message: object) -> None:
        """Send a control message."""
        await self._socket.send(encode(message), text=True)

    async def send(self, frame: bytes) -> None:
        """Send a piece."""
        await self._socket.send(frame)

    async def serve(self, agent: str) -> None:
        """Say hello, then do what comes, to the end of the connection."""
        beating = None
        try:
            await self.say(messages.Hello(VERSION, self._dialer.offer, agent))
            async with asyncio.timeout(OPEN_S):
                welcome = messages.from_gateway(_text(await self._socket.recv()))
            if not isinstance(welcome, messages.Welcome):
                raise NonsenseError("a welcome comes first")
            self._window = welcome.window
            _logger.info("connected to the gateway as %s", welcome.id)
            self._dialer.connected.set()
            beating = asyncio.create_task(self._beat(welcome.heartbeat_s, welcome.dead_s))
            async for frame in self._socket:
                self._heard_s = asyncio.get_running_loop().time()
                await self._take(frame)
        except TimeoutError:
            _logger.warning("the gateway did not welcome us")
        except NonsenseError as nonsense:
            _logger.error("the gateway does not keep to the protocol: %s", nonsense)
            await self._socket.close(1002, "protocol error")
        except ConnectionClosed:
            pass
        finally:
            self.ended = True
            self.leaves.set()
            if beating is not None:
                beating.cancel()
            tasks = [task for _, task in self.jobs.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._socket.close()
            _logger.info("the connection has ended: %s %s", self._socket.close_code, self._socket.close_reason)

    async def drain(self) -> None:
        """Take no more jobs here; the connection ends after the last one."""
        self._told_to_leave = True
        with suppress(ConnectionClosed):
            await self.say(messages.Drain())
            if not self.jobs:
                await self._socket.close()

    async def _beat(self, every_s: float, dead_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            if asyncio.get_running_loop().time() - self._heard_s > dead_s:
                _logger.warning("the gateway has been silent for %.0f s", dead_s)
                self._socket.transport.abort()
            with suppress(ConnectionClosed, TimeoutError):  # a line that takes nothing is found out above
                async with asyncio.timeout(every_s):
                    await self.say(messages.Heartbeat())

    async def _take(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            number, data = messages.cut(frame)
            if number in self.jobs:
                self.jobs[number][0].received(data)
            return
        match messages.from_gateway(frame.encode()):
            case messages.Job() as job:
                await self._begin(job)
            case messages.More(number, size):
                if number in self.jobs:
                    self.jobs[number][0].may_send(size)
            case messages.Cancel(number):
                if number in self.jobs:
                    self.jobs[number][1].cancel()
            case messages.Drain():
                await self._leave()
            case messages.Welcome():
                raise NonsenseError("a welcome comes once")

    async def _leave(self) -> None:
        """Have another connection be made; this one ends when that one is there and no job is left here."""
        _logger.info("the gateway asks to connect anew")
        self._dialer.connected.clear()
        self.leaves.set()
        self._dialer.spawn(self._go())

    async def _go(self) -> None:
        await self._dialer.until(self._dialer.connected.wait())
        await self.drain()

    async def _begin(self, told: messages.Job) -> None:
        if not self._dialer.has_room():
            await self.say(messages.Overloaded(told.job))
            return
        job = GivenJob(self, told, self._window)
        task = asyncio.create_task(self._do(job))
        self.jobs[job.number] = job, task
        task.add_done_callback(partial(self._done, job.number))  # also when it is cancelled before its first step

    async def _do(self, job: GivenJob) -> None:
        """One job, to whichever end. An ending that cannot be told is the connection's end as well."""
        with suppress(ConnectionClosed):
            await self.say(messages.Accepted(job.number))
            await self.say(await self._outcome(job))

    def _done(self, number: int, _: asyncio.Task[None]) -> None:
        del self.jobs[number]
        if self._told_to_leave and not self.jobs:
            self._dialer.spawn(self._socket.close())

    async def _outcome(self, job: GivenJob) -> messages.End | messages.Overloaded | messages.Failure:
        try:
            async with asyncio.timeout(job.limit_s):
                await self._work(job)
        except BusyError:
            return messages.Failure(job.number, "It is busy.") if job.began else messages.Overloaded(job.number)
        except JobError as error:
            return messages.Failure(job.number, str(error)[:2_000])
        except TimeoutError:
            return messages.Failure(job.number, "The job took too long in all.")
        except ConnectionClosed:
            raise
        except Exception:
            _logger.exception("job %d failed", job.number)
            return messages.Failure(job.number, "The worker failed; its log says why.")
        return messages.End(job.number)


async def or_stop(waited: Awaitable[T], stopping: asyncio.Event) -> T | None:
    """Wait for this, or to be told to stop: then None, when this is cancelled and has ended. What it raises."""
    task = asyncio.ensure_future(waited)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        stop.cancel()
        task.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


def _text(frame: str | bytes) -> bytes:
    if isinstance(frame, bytes):
        raise NonsenseError("a welcome comes first")
    return frame.encode()


def _pauses() -> Iterator[float]:
    """How long to rest before each attempt: longer each time, and never all workers at once."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 -- to spread, not to hide
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _refusal(error: InvalidStatus) -> str:
    words = (error.response.body or b"")[:500].decode(errors="replace")
    return f"{error.response.status_code} {words}"


def _socket_url(url: str, path: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("a gateway's address is http://host or https://host")
    if scheme == "ws" and not _is_loopback(parts.hostname):
        _logger.warning("the key goes to %s unencrypted; use https", parts.hostname)
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{path}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
