"""A peer that is connected to this process: what it says, what it is told, and the jobs it has.

`Peer` is the gateway's end of one connection, without the socket (`api/websocket.py`), which is its `Line`. It reads
always: what a peer may send ahead is bounded for each job (`WINDOW_BYTES`), so one caller who takes nothing keeps
nobody else waiting. A peer that does not keep to the protocol is hung up on with a code and a reason; its jobs are
then lost, as when it dies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from penstock.clock import Clock
from penstock.errors import UpstreamFailed, UpstreamTimeout
from penstock.hub import messages
from penstock.hub.messages import (
    DEAD_S,
    HELLO_S,
    JOB_S,
    PIECE_BYTES,
    VERSION,
    WINDOW_BYTES,
    NonsenseError,
    Offer,
    encode,
)
from penstock.hub.seats import Lost, Overloaded, PeerKind, Request
from penstock.ports import Timeouts

ACCEPT_S = 5.0  # to say whether there is room for a job, which a peer knows already; and to read a piece of its body
BREATHER_S = 0.5  # before somebody who has refused a job is asked again

NORMAL, PROTOCOL_ERROR, POLICY, RESTART, TRY_LATER = 1000, 1002, 1008, 1012, 1013  # close codes, RFC 6455


class Line(Protocol):
    """The way to a peer. What is said on one that has closed is lost."""

    def text(self, data: bytes) -> None: ...
    def binary(self, data: bytes) -> None: ...

    async def drained(self) -> None:
        """Wait until the peer has read enough to take more, or has gone."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Say good-bye, and hang up when the peer has heard it or does not listen."""
        ...


class _Closed:
    """The line of a peer that has gone."""

    def text(self, data: bytes) -> None: ...
    def binary(self, data: bytes) -> None: ...
    async def drained(self) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


class Peer:
    """One connection. A `Seat` from when it is admitted until it leaves."""

    def __init__(
        self,
        line: Line,
        clock: Clock,
        *,
        id: str,
        kind: PeerKind,
        key: str,
        account: str,
        shared: bool,
        changed: Callable[[Peer], None],
    ) -> None:
        self.id = id
        self.kind: PeerKind = kind
        self.key = key
        self.account = account
        self.shared = shared
        self.offer = Offer(slots=0)
        self.offered = 0  # bytes of that, as it came
        self.introduced = False  # it has said hello
        self.welcome = False  # and was told that it may have jobs
        self.draining = False  # it has said that it takes no more
        self.leaving = False  # it was told to connect anew: jobs of this process only
        self.gone = False
        self._ending = False  # the process ends when it can
        self._line = line
        self._clock = clock
        self._changed = changed
        self._heard_s = self._since_s = clock.monotonic()
        self._refused_s = float("-inf")
        self._jobs: dict[int, JobAnswer] = {}
        self._last = 0

    def __repr__(self) -> str:
        return f"Peer({self.id}, {self.kind}, {len(self._jobs)} of {self.offer.slots} jobs, gone={self.gone})"

    # A seat.

    @property
    def outstanding(self) -> int:
        """Jobs it has now."""
        return len(self._jobs)

    @property
    def room(self) -> int:
        """Jobs it could take now."""
        resting = self._clock.monotonic() - self._refused_s < BREATHER_S
        if self.gone or self.draining or resting:
            return 0
        return max(0, self.offer.slots - len(self._jobs))

    async def open(self, request: Request, limits: Timeouts) -> JobAnswer:
        """See `Seat.open`."""
        if self.gone:
            raise Lost("The worker has gone.")
        self._last += 1
        answer = JobAnswer(self, self._last, limits, request.sent)
        self._jobs[answer.number] = answer
        try:
            await self._send(answer, request)
            await answer.begun()
        except BaseException as error:
            answer.close()
            if isinstance(error, Overloaded | Lost):
                self._refused_s = self._clock.monotonic()
            raise
        return answer

    async def _send(self, answer: JobAnswer, request: Request) -> None:
        number, body = answer.number, request.body
        limit_s = min(JOB_S, answer.limits.total_s)
        job = messages.Job(
            number,
            request.path,
            len(body),
            method=request.method,
            headers=request.headers,
            stream=request.stream,
            limit_s=limit_s,
        )
        self._line.text(encode(job))
        for start in range(0, len(body), PIECE_BYTES):
            await answer.within(ACCEPT_S, self._line.drained())
            if answer.over:
                return
            self._line.binary(messages.piece(number, body[start : start + PIECE_BYTES]))

    # What the hub tells it.

    def admit(self) -> None:
        """It may have jobs from now on. Who moves here from another process leaves that one when it hears this, so
        others must know of it by then."""
        if not self.welcome and not self.gone:
            self.welcome = True
            self._line.text(encode(messages.Welcome(self.id)))
            self._changed(self)

    def leave(self) -> None:
        """Have it connect anew, elsewhere; it ends this connection when its jobs here are done."""
        if not self.welcome:
            self.close(RESTART, "the gateway ends")
        elif not self.leaving and not self.gone:
            self.leaving = True
            self._line.text(encode(messages.Drain()))
            self._changed(self)

    def end(self) -> None:
        """The same, and hang up after the last job here: this process ends."""
        self.leave()
        self._ending = True
        if not self._jobs:
            self.close(RESTART, "the gateway ends")

    def close(self, code: int, reason: str) -> None:
        """Hang up."""
        self._line.close(code, reason)
        self.lost(reason)

    def look(self, now_s: float) -> None:
        """Hang up on a peer that has been silent for too long."""
        if self.gone:
            return
        if not self.introduced and now_s - self._since_s > HELLO_S:
            self.close(POLICY, f"no hello within {HELLO_S:.0f} s")
        elif now_s - self._heard_s > DEAD_S:
            self.close(POLICY, f"no heartbeat for {DEAD_S:.0f} s")

    # What the line tells it.

    def said(self, text: bytes) -> None:
        """A control message came. NonsenseError when it is none, or not now."""
        if self.gone:  # what came behind the reason to hang up
            return
        message = messages.from_peer(text)
        self._heard_s = self._clock.monotonic()
        if isinstance(message, messages.Hello | messages.Offer):
            self.offered = len(text)
        if isinstance(message, messages.Hello):
            self._greet(message)
            return
        if not self.introduced:
            raise NonsenseError("hello comes first")
        match message:
            case messages.Heartbeat():
                self._line.text(encode(messages.Heartbeat()))
            case messages.Offer():
                self.offer = message
                self._changed(self)
            case messages.Drain():
                self.draining = True
                self._changed(self)
            case _:
                self._about_job(message)

    def sent(self, frame: bytes) -> None:
        """A piece of an answer came. NonsenseError."""
        if self.gone:
            return
        self._heard_s = self._clock.monotonic()
        number, data = messages.cut(frame)
        answer = self._job(number)
        if answer is not None:
            answer.received(data)

    def lost(self, reason: str = "the connection was lost") -> None:
        """The connection has ended; so have its jobs."""
        if self.gone:
            return
        self.gone = True
        for answer in list(self._jobs.values()):
            answer.fail(f"The worker has gone: {reason}.")
        self._jobs.clear()
        self._changed(self)
        self._line = _Closed()  # the two know each other, and would be kept until somebody looks for cycles

    def _greet(self, hello: messages.Hello) -> None:
        if self.introduced:
            raise NonsenseError("hello comes once")
        if hello.version != VERSION:
            raise NonsenseError(f"version {VERSION} is spoken here")
        self.offer = hello.offer
        self.introduced = True
        self._changed(self)

    def _about_job(
        self, message: messages.Accepted | messages.Overloaded | messages.Head | messages.End | messages.Failure
    ) -> None:
        answer = self._job(message.job)
        if answer is None:
            return
        match message:
            case messages.Accepted():
                answer.accept()
            case messages.Overloaded():
                answer.refused()
            case messages.Head():
                answer.head(message.status, message.headers)
            case messages.End():
                answer.end()
            case messages.Failure():
                answer.fail(message.message or "The worker could not do it.")

    def _job(self, number: int) -> JobAnswer | None:
        """The job of that number; None when it has just been cancelled."""
        if number > self._last:
            raise NonsenseError("there is no such job")
        return self._jobs.get(number)

    # What its answers call.

    def done(self, number: int) -> None:
        """The job is over as far as the peer is concerned."""
        if self._jobs.pop(number, None) is not None:
            self._changed(self)
            if self._ending:
                self.end()

    def cancel(self, number: int) -> None:
        """Nobody wants the answer any more."""
        if not self.gone:
            self._line.text(encode(messages.Cancel(number)))
        self.done(number)

    def take_more(self, number: int, bytes: int) -> None:
        """Let it send so much more of the answer."""
        if not self.gone:
            self._line.text(encode(messages.More(number, bytes)))


class JobAnswer:
    """The answer to a job, as `ports.Answer`. At most `WINDOW_BYTES` of it wait here to be taken."""

    def __init__(self, peer: Peer, number: int, limits: Timeouts, sent: Callable[[], None] | None) -> None:
        self.number = number
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.limits = limits
        self.accepted = False
        self._peer = peer
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._until_s = self._loop.time() + min(JOB_S, limits.total_s)
        self._pieces: deque[bytes] = deque()
        self._unread = 0  # bytes here
        self._owed = 0  # bytes taken that the peer has not been told of
        self._began = False
        self._ended = False
        self._overloaded = False
        self._failure: str | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._failure is None else "failed"
        return f"JobAnswer({self.number}, {self.status}, {state}, {self._unread} bytes unread)"

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._ended or self._overloaded or self._failure is not None or self._closed

    # Its reader.

    async def begun(self) -> None:
        """Wait for the first piece or the end. Overloaded, Lost, UpstreamTimeout."""
        accept_s = self._loop.time() + ACCEPT_S
        first_s = self._loop.time() + self.limits.first_byte_s
        while not (self.status and (self._pieces or self._ended)):
            if self._overloaded:
                raise Overloaded
            if self._failure is not None:
                raise Lost(self._failure, begun=self.accepted)
            if not self.accepted and not await self._event(accept_s):
                raise Lost("The worker did not say whether it does the job.")
            if self.accepted and not self.over and not self._pieces and not await self._event(first_s):
                raise UpstreamTimeout("The worker did not begin to answer in time.")

    async def within(self, most_s: float, taken: Awaitable[None]) -> None:
        """Wait for the peer to take a piece of the job. Lost, UpstreamTimeout."""
        try:
            async with asyncio.timeout_at(min(self._loop.time() + most_s, self._until_s)):
                await taken
        except TimeoutError:
            if self._loop.time() >= self._until_s:
                raise UpstreamTimeout("The job took too long in all.") from None
            raise Lost("The worker does not read its job.") from None

    def __aiter__(self) -> JobAnswer:
        return self

    async def __anext__(self) -> bytes:
        """What has come since the last piece, as one."""
        while not self._pieces:
            if self._closed:
                raise UpstreamFailed("The answer was closed before its end.", began=True)
            if self._ended:
                raise StopAsyncIteration
            if self._failure is not None:
                raise UpstreamFailed(self._failure, began=True)
            if not await self._event(self._loop.time() + self.limits.idle_s):
                self.close()
                raise UpstreamTimeout("The worker fell silent in its answer.", began=True)
        return self._take()

    async def read(self, limit: int) -> bytes:
        """The whole body. UpstreamFailed when it is longer than `limit` bytes."""
        taken: list[bytes] = []
        size = 0
        async for data in self:
            taken.append(data)
            size += len(data)
            if size > limit:
                self.close()
                raise UpstreamFailed("The provider's answer is too long.", began=True)
        return b"".join(taken)

    def close(self) -> None:
        """Let go. Before the end this cancels the job."""
        if not self.over:
            self._peer.cancel(self.number)
        else:
            self._peer.done(self.number)
        if not (self._ended and not self._unread):
            self._closed = True
        self._pieces.clear()
        self._unread = 0

    def _take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._unread = 0
        self._owed += len(data)
        if self._owed >= WINDOW_BYTES // 4 and not self.over:
            self._peer.take_more(self.number, self._owed)
            self._owed = 0
        return data

    async def _event(self, until_s: float) -> bool:
        """Wait for something to come; False when nothing does in time. UpstreamTimeout when the job's own is over."""
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout_at(min(until_s, self._until_s)):
                await self._waiter
        except TimeoutError:
            if self._loop.time() >= self._until_s:
                self.close()
                raise UpstreamTimeout("The job took too long in all.", began=self._began) from None
            return False
        finally:
            self._waiter = None
        return True

    # What the peer has said.

    def accept(self) -> None:
        """It does the job: from now on it may have worked for it."""
        if not self.accepted:
            self.accepted = True
            if self._sent is not None:
                self._sent()
            self.wake()

    def refused(self) -> None:
        """It has no room for the job."""
        if self.status:
            raise NonsenseError("a job that is being answered is not refused")
        self._overloaded = True
        self._over()

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """How the answer begins."""
        if self.status:
            raise NonsenseError("an answer begins once")
        self.accept()
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.wake()

    def received(self, data: bytes) -> None:
        """A piece of it."""
        if not self.status:
            raise NonsenseError("a head comes before pieces")
        self._unread += len(data)
        if self._unread + self._owed > WINDOW_BYTES:
            raise NonsenseError("more was sent than asked for")
        if data:
            self._began = True
            self._pieces.append(data)
            self.wake()

    def end(self) -> None:
        """That was all."""
        if not self.status:
            raise NonsenseError("a head comes before the end")
        self._ended = True
        self._over()

    def fail(self, message: str) -> None:
        """There is no more to come, though it is not complete."""
        if not self.over:
            self._failure = message
            self._over()

    def _over(self) -> None:
        self._peer.done(self.number)
        self.wake()

    def wake(self) -> None:
        """Something has changed that the reader may wait for."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
