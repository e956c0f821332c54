"""The sockets: what Penstock needs of the world, as Protocols. Adapters plug in from `providers/`.

A provider is one upstream. It is asked to open a call and hands back an answer: a status, a few headers and the
body in the pieces the network delivered. It never retries, never bills and never looks inside the body; that is
`relay/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from msgspec import Struct

from penstock.tools import Tool, ToolResult

OnCancel = Literal["stop", "drain", "full"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one upstream call, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 120.0
    total_s: float = 900.0


class Call(Struct, frozen=True, gc=False):
    """One request to a provider. `path` is relative to its base URL (`chat/completions`); `body` is JSON bytes. `model`
    is the provider's name for what is called, when anything is; `account` is whose call it is, for providers that are
    not there for everybody.

    `headers` are lower-case pairs the dialect wants forwarded; credentials are the provider's own business. `sent` is
    called by the provider when the request is on its way: from then on the upstream may bill it. `returned` is called
    when whoever had it has not served and the provider looks for somebody else: until `sent` again nobody may.
    """

    path: str
    body: bytes
    stream: bool
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: str = "POST"
    sent: Callable[[], None] | None = None
    returned: Callable[[], None] | None = None
    model: str = ""
    account: str = ""


class Answer(Protocol):
    """What came back: iterate it once for the body, and always close it.

    Iteration raises `UpstreamTimeout` or `UpstreamFailed(began=True)` when the body breaks off. Closing before the end
    aborts the call within 100 ms (the connection is not reused); closing after the end gives the connection back.
    """

    status: int
    headers: Mapping[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def read(self, limit: int) -> bytes:
        """The whole body; `UpstreamFailed` when it is longer than `limit` bytes."""
        ...

    def close(self) -> None:
        """Let go, at once and without waiting. Calling it twice is harmless."""
        ...


class Flowing(Protocol):
    """An answer that hands on its pieces in the moment they come, without waking whoever waits for them."""

    async def flow(self, take: Callable[[bytes], bool]) -> bool:
        """Give `take` each piece as it comes, until it says that it has to stop (False), or there are no more. Whether
        it had to stop. The same errors as iterating; cancelling loses nothing."""
        ...


class Toolshop(Protocol):
    """The tools that connected tools workers offer, account by account."""

    def tools(self, account: str) -> tuple[Tool, ...]:
        """What can be run for this account now; empty, and cheap to ask, when no worker of it is connected."""
        ...

    async def execute(self, account: str, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        """Run one. NotFound when no worker offers it, UpstreamUnavailable when its worker is gone, UpstreamFailed when
        that fails while it runs it, UpstreamTimeout when it took longer. Cancelling reaches the worker."""
        ...


class Provider(Protocol):
    """One upstream. Two implementations: `providers/openai_compatible.py` and `providers/demo.py`."""

    name: str
    on_cancel: OnCancel

    def ready(self, model: str, account: str) -> bool:
        """Whether a call for this model could begin now for this account, as far as is known without asking anybody."""
        ...

    async def open(self, call: Call) -> Answer:
        """Send the call; return when status and headers are here.

        Raises `UpstreamUnavailable` (not reached, nothing was sent or nothing came back) and `UpstreamTimeout`.
        Any HTTP status is an answer, not an error.
        """
        ...

    async def check(self) -> tuple[str, ...]:
        """Ask the upstream whether it serves; the models it lists, none when it keeps no list. UpstreamError."""
        ...

    async def close(self) -> None:
        """Close kept connections. The provider is not used afterwards."""
        ...
