"""What a job needs of the hub, and what the hub needs of whoever can do one: a few types, no behaviour.

A *seat* is somebody a job can be given to, connected to this process (`peer.py`) or to another (`elsewhere.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.hub.messages import Offer
from penstock.ports import Answer, Timeouts

PeerKind = Literal["worker", "tools_worker"]


@dataclass(frozen=True, slots=True)
class Request:
    """A job to be given. `path` is relative.

    `sent` is called when somebody has accepted it, or it is on its way to the process of somebody who may; `returned`
    when that one has lost it or has no room after all, and somebody else is looked for: then `sent` is called again.
    What may be done `once` only is given to nobody else after it was accepted.
    """

    path: str
    body: bytes
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    stream: bool = False
    sent: Callable[[], None] | None = None
    returned: Callable[[], None] | None = None
    once: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who may do a job: a peer of this kind that `account` may use and that offers the model, or the tool, of this
    name. Without a name any does."""

    kind: PeerKind
    account: str
    name: str = ""

    def may(self, seat: Seat | Left) -> bool:
        """Whether this seat could do it, if it had room."""
        return seat.kind == self.kind and (seat.shared or seat.account == self.account) and self.suits(seat.offer)

    def suits(self, offer: Offer) -> bool:
        """Whether it is offered."""
        if not self.name:
            return True
        return offer.serves(self.name) if self.kind == "worker" else offer.tool(self.name) is not None


@dataclass(frozen=True, slots=True)
class Left:
    """What is remembered of a seat that has left, for a moment."""

    kind: str
    account: str
    shared: bool
    offer: Offer
    until_s: float


class Seat(Protocol):
    """Somebody who does jobs. Only `account` may use it, unless it is `shared`."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def account(self) -> str: ...
    @property
    def shared(self) -> bool: ...
    @property
    def offer(self) -> Offer: ...
    @property
    def leaving(self) -> bool:
        """Whether it was told to connect anew."""
        ...

    @property
    def outstanding(self) -> int:
        """Jobs it has now."""
        ...

    @property
    def room(self) -> int:
        """Jobs it could take now; none while it is leaving, or has just said that it is overloaded."""
        ...

    async def open(self, request: Request, limits: Timeouts) -> Answer:
        """Give it a job; return when the first piece of the answer (or its end) is here.

        Overloaded, Lost: nothing came back and somebody else may be asked. UpstreamTimeout.
        """
        ...


class Overloaded(Exception):
    """It has no room for the job, and has done nothing of it."""


class Lost(Exception):
    """It, or its engine, has gone before a byte of the answer came. It may have `begun`: it had accepted the job, for
    all that is known."""

    def __init__(self, why: str, *, begun: bool = False) -> None:
        super().__init__(why)
        self.begun = begun


class Unreachable(Lost):
    """It is not where it was, or its process is not: to ask there again is of no use."""
