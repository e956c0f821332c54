"""What peers and gateway say to each other, version 1. No I/O. The page for people is docs/workers.md.

Control messages are JSON in text frames, told apart by `type`. Bytes of bodies are binary frames: four bytes with the
job's number, then the piece. Unknown fields are ignored, so that either side may be newer; an unknown type is not.

    the peer says       hello       first of all: version, and what it offers
                        offer       that has changed
                        heartbeat   every HEARTBEAT_S
                        accepted    it does the job
                        overloaded  it has no room for it after all: give it to somebody else
                        head        status and headers of the answer; pieces follow
                        end         the answer is complete
                        error       there is no (more) answer
                        drain       it takes no more jobs, and leaves after the last one
    the gateway says    welcome     it may begin; what is expected of it
                        heartbeat   the answer to one
                        job         do this; `size` bytes of body follow
                        more        so many bytes more of the answer may be sent
                        cancel      nobody wants the answer any more
                        drain       connect anew; this connection takes no new jobs
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

VERSION = 1
HEARTBEAT_S = 10.0
DEAD_S = 45.0  # without a heartbeat: four may be lost
HELLO_S = 10.0  # from the connection to `hello`
JOB_S = 300.0  # the longest a job may take
DEEPEST = 64  # objects and lists within each other in a tool's schema; what is deeper some can read and others not
PIECE_BYTES = 64 * 1024  # of a body, in one frame: small beside what a line carries, so that jobs take turns
WINDOW_BYTES = 256 * 1024  # of an answer that nobody has taken yet, a job
LARGEST_MESSAGE = (
    WINDOW_BYTES + 4
)  # bytes: a window in one piece, or an offer of a few hundred tools with their schemas

Name = Annotated[str, Meta(min_length=1, max_length=200)]
JobNumber = Annotated[int, Meta(ge=1, lt=2**32)]
Word = Annotated[str, Meta(min_length=1, max_length=40)]


class ModelOffer(Struct, frozen=True, omit_defaults=True):
    """A model by the name it has there. `context` is tokens for one call; `capabilities` say what it can do beyond
    text (`tools`, `images`, `json_schema`, `embeddings`)."""

    id: Name
    context: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    capabilities: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()


class ToolOffer(Struct, frozen=True, omit_defaults=True):
    """A tool: what a model has to know to call it. `parameters` is a JSON schema."""

    name: Name
    description: Annotated[str, Meta(max_length=20_000)] = ""
    parameters: dict[str, Any] = {}


class Offer(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="offer", dict=True):
    """What a peer has: so many jobs at once, models, tools. Names are looked up for each job that waits."""

    slots: Annotated[int, Meta(ge=0, le=4096)] = 1
    models: Annotated[tuple[ModelOffer, ...], Meta(max_length=512)] = ()
    tools: Annotated[tuple[ToolOffer, ...], Meta(max_length=512)] = ()

    def serves(self, model: str) -> bool:
        """Whether it has the model."""
        return model in self._models

    def names(self) -> Offer:
        """The same without what is said of the tools: small, for whoever has left."""
        return Offer(0, self.models, tuple(ToolOffer(each.name) for each in self.tools))

    def tool(self, name: str) -> ToolOffer | None:
        """The tool of that name."""
        return self._tools.get(name)

    @cached_property
    def _models(self) -> frozenset[str]:
        return frozenset(each.id for each in self.models)

    @cached_property
    def _tools(self) -> dict[str, ToolOffer]:
        return {each.name: each for each in reversed(self.tools)}  # of two with one name the first


class Hello(Struct, frozen=True, tag_field="type", tag="hello"):
    """The first message of a peer. `agent` is its software."""

    version: int
    offer: Offer
    agent: Annotated[str, Meta(max_length=200)] = ""


class Heartbeat(Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """I am there."""


class Accepted(Struct, frozen=True, tag_field="type", tag="accepted"):
    """The job is under way."""

    job: JobNumber


class Overloaded(Struct, frozen=True, tag_field="type", tag="overloaded"):
    """No room for the job; nothing has been done of it."""

    job: JobNumber


class Head(Struct, frozen=True, tag_field="type", tag="head"):
    """How an answer begins."""

    job: JobNumber
    status: Annotated[int, Meta(ge=200, le=599)]
    headers: Annotated[dict[Annotated[str, Meta(max_length=200)], Annotated[str, Meta(max_length=8_192)]],
                       Meta(max_length=64)] = {}  # fmt: skip


class End(Struct, frozen=True, tag_field="type", tag="end"):
    """All of the answer has been sent."""

    job: JobNumber


class Failure(Struct, frozen=True, tag_field="type", tag="error"):
    """There will be no (more) answer."""

    job: JobNumber
    message: Annotated[str, Meta(max_length=2_000)] = ""


class Drain(Struct, frozen=True, tag_field="type", tag="drain"):
    """This connection takes no new jobs."""


class Welcome(Struct, frozen=True, tag_field="type", tag="welcome"):
    """The peer is known as `id`."""

    id: str
    version: int = VERSION
    heartbeat_s: float = HEARTBEAT_S
    dead_s: float = DEAD_S
    window: int = WINDOW_BYTES


class Job(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="job"):
    """Something to do. `path` is relative; `size` is the body's, which follows in pieces."""

    job: JobNumber
    path: Annotated[str, Meta(min_length=1, max_length=2_000)]
    size: Annotated[int, Meta(ge=0)] = 0
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    stream: bool = False
    limit_s: float = JOB_S


class More(Struct, frozen=True, tag_field="type", tag="more"):
    """`bytes` more of the answer may be sent."""

    job: JobNumber
    bytes: Annotated[int, Meta(ge=1)]


class Cancel(Struct, frozen=True, tag_field="type", tag="cancel"):
    """Stop the job."""

    job: JobNumber


FromPeer = Hello | Offer | Heartbeat | Accepted | Overloaded | Head | End | Failure | Drain
FromGateway = Welcome | Heartbeat | Job | More | Cancel | Drain

encode = msgspec.json.Encoder().encode
_from_peer: msgspec.json.Decoder[FromPeer] = msgspec.json.Decoder(FromPeer)
_from_gateway: msgspec.json.Decoder[FromGateway] = msgspec.json.Decoder(FromGateway)


class NonsenseError(ValueError):
    """A message that is none, or not now. Its text is the reason the connection is closed with."""


def from_peer(text: bytes) -> FromPeer:
    """A peer's message. NonsenseError."""
    try:
        message = _from_peer.decode(text)
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors; they repeat no content
        raise NonsenseError(f"not a message: {error}"[:120]) from None
    offer = message.offer if isinstance(message, Hello) else message
    if isinstance(offer, Offer) and any(is_deep(tool.parameters) for tool in offer.tools):
        raise NonsenseError(f"a schema is nested deeper than {DEEPEST}")
    return message


def from_gateway(text: bytes) -> FromGateway:
    """The gateway's message. NonsenseError."""
    try:
        return _from_gateway.decode(text)
    except (ValueError, RecursionError) as error:
        raise NonsenseError(f"not a message: {error}"[:120]) from None


def is_deep(value: object) -> bool:
    """Whether more than `DEEPEST` objects and lists are within each other in a JSON value."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for each in level if isinstance(each, dict | list) for inner in _within(each)]
    return any(isinstance(each, dict | list) for each in level)


def _within(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def piece(job: int, data: bytes) -> bytes:
    """A piece of a body, as the frame that carries it."""
    return job.to_bytes(4, "big") + data


def cut(frame: bytes) -> tuple[int, bytes]:
    """`(job, data)` of a piece. NonsenseError."""
    if len(frame) < 4:
        raise NonsenseError("a piece names its job")
    return int.from_bytes(frame[:4], "big"), frame[4:]
