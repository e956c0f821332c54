"""The way to peers that are connected to another process of the deployment: its private address (`api/peering.py`).

Implements `hub.elsewhere.Reach` with the client of the data path. It picks nobody and repeats nothing.
"""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from penstock.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from penstock.hub.messages import JOB_S
from penstock.hub.seats import Lost, Overloaded, Request, Unreachable
from penstock.ports import Answer, Timeouts
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin

CONNECT_S = 1.0  # it is near
LONGEST_S = JOB_S + 10.0  # each job has limits of its own, which the process that has the peer keeps
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
        told = _Told(request)
        try:
            client = await self._client(address)
            answer: Answer = await client.request(
                "POST", f"peer/v1/jobs/{peer}?{urlencode(query)}", (), request.body, sent=told
            )
        except UpstreamTimeout:
            raise
        except UpstreamUnavailable as error:
            raise Unreachable(error.message, begun=told.sent) from None
        except UpstreamError as error:
            raise Lost(error.message, begun=told.sent) from None
        what = answer.headers.get("x-penstock-job")
        if what == "answer":
            return answer
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


class _Told:
    """Called when a job is on its way to the other process. What becomes of it there is not known before the answer."""

    def __init__(self, request: Request) -> None:
        self.sent = False
        self._further = request.sent

    def __call__(self) -> None:
        self.sent = True
        if self._further is not None:
            self._further()
