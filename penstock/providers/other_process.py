"""The way to peers that are connected to another process of the deployment: its private address (`api/peering.py`).

Implements `hub.elsewhere.Reach` with the client of the data path. It picks nobody and repeats nothing. The process that
has the peer keeps the limits of a job; they are kept here as well, a little later, should it stand still.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import msgspec

from penstock.errors import UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from penstock.hub.messages import JOB_S
from penstock.hub.seats import Lost, Overloaded, Request, Unreachable
from penstock.ports import Answer, Timeouts
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin

MARGIN_S = 5.0  # beyond a job's own limits, which are kept by the process that has the peer, unless it stands still
CONNECT_S = 1.0  # it is near
LONGEST_S = JOB_S + 10.0  # longer than those of any job
LARGEST_REASON = 10_000
MOST_CONNECTIONS = 4_096  # a job holds one; how many there may be is for the peers' slots to say
MOST_CLIENTS = 256  # addresses are new whenever a process is; those that are no longer used are let go


class OtherProcesses:
    """A client for each process that has been asked for a peer. Belongs to one event loop."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._clients: dict[str, Client] = {}

    def __repr__(self) -> str:
        return f"OtherProcesses({', '.join(self._clients)})"

    async def open(self, address: str, peer: str, request: Request, limits: Timeouts) -> Answer:
        """See `Reach.open`."""
        query = {"path": request.path, "method": request.method, "limits": msgspec.json.encode(limits).decode()}
        if request.headers:
            query["headers"] = msgspec.json.encode(request.headers).decode()
        if request.stream:
            query["stream"] = "1"
        told, end_s = _Told(request), asyncio.get_running_loop().time() + min(JOB_S, limits.total_s) + MARGIN_S
        try:
            async with asyncio.timeout(min(limits.first_byte_s, limits.total_s) + MARGIN_S):
                client = await self._client(address)
                answer: Answer = await client.request(
                    "POST", f"peer/v1/jobs/{peer}?{urlencode(query)}", (), request.body, sent=told
                )
        except TimeoutError:
            raise UpstreamTimeout("The process that has the worker did not answer in time.") from None
        except UpstreamTimeout:
            raise
        except UpstreamUnavailable as error:
            raise Unreachable(error.message, begun=told.sent) from None
        except UpstreamError as error:
            raise Lost(error.message, begun=told.sent) from None
        what = answer.headers.get("x-penstock-job")
        if what == "answer":
            return _Timely(answer, limits.idle_s + MARGIN_S, end_s)
        raise await _refusal(answer, what)

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()

    async def _client(self, address: str) -> Client:
        client = self._clients.get(address)
        if client is None:
            while len(self._clients) >= MOST_CLIENTS:
                idle = next((each for each, one in self._clients.items() if not one.open_connections), None)
                if idle is None:
                    raise UpstreamUnavailable("Too many processes are asked at once.")
                await self._clients.pop(idle).close()
            headers = ((b"authorization", b"Bearer " + self._secret.encode()),)
            limits = Timeouts(connect_s=CONNECT_S, first_byte_s=LONGEST_S, idle_s=LONGEST_S, total_s=LONGEST_S)
            origin = Origin(f"http://{address}", limits, max_connections=MOST_CONNECTIONS, headers=headers)
            client = self._clients[address] = Client(origin)
        return client


async def _refusal(answer: Answer, what: str | None) -> Exception:
    """What became of a job that has no answer."""
    try:
        reason = (await answer.read(LARGEST_REASON)).decode(errors="replace")
    except UpstreamError as error:
        reason = error.message
    finally:
        answer.close()
    if what == "overloaded":
        return Overloaded()
    if what == "late":
        return UpstreamTimeout(reason)
    return Unreachable(reason) if what in ("gone", "refused") else Lost(reason, begun=what != "lost")


class _Timely:
    """An answer whose pieces come within `idle_s` of one another, and before `end_s`, or that is over."""

    def __init__(self, answer: Answer, idle_s: float, end_s: float) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._pieces = aiter(answer)
        self._idle_s = idle_s
        self._end_s = end_s

    def __repr__(self) -> str:
        return f"_Timely({self._answer!r})"

    def __aiter__(self) -> _Timely:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + self._idle_s, self._end_s)):
                return await anext(self._pieces)
        except TimeoutError:
            self.close()
            raise UpstreamTimeout("The process that has the worker fell silent.", began=True) from None

    async def read(self, limit: int) -> bytes:
        """See `Answer.read`."""
        taken = bytearray()
        async for piece in self:
            taken += piece
            if len(taken) > limit:
                self.close()
                raise UpstreamFailed("The provider's answer is too long.", began=True)
        return bytes(taken)

    def close(self) -> None:
        """See `Answer.close`."""
        self._answer.close()


class _Told:
    """Called when a job is on its way to the other process. What becomes of it there is not known before the answer."""

    def __init__(self, request: Request) -> None:
        self.sent = False
        self._further = request.sent

    def __call__(self) -> None:
        self.sent = True
        if self._further is not None:
            self._further()
