"""One completion in several rounds, because the model calls tools that the gateway runs: what that means on the wire.

A module for each dialect that upstreams speak (`chat`, `messages`); each has a class `Rounds` that follows one
completion. It adds definitions to the request, tells calls of ours from the caller's own in what comes back, keeps ours
out of what goes on to the caller, and writes the request of the next round. Whoever reads the outcome sees one answer,
or one stream, with the usage of all rounds added up. Who runs the tools, and whether the next round is paid, is decided
in `penstock/relay/toolloop.py`.

The caller's own calls end the completion: it has to answer them. In a round with both, ours are run first; the turns
that the caller does not see are kept (`Kept`) and put back into its next request by `restored`, or else its
conversation would have no trace of what our tools found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed
from penstock.tools import Tool, ToolResult

SEPARATOR = "\n\n"  # between what a model said before it called a tool and what it said after
BROKEN_ARGUMENTS = ToolResult("The arguments were not a JSON object.", failed=True)

_encode = msgspec.json.Encoder().encode


class ToolCall(Struct, frozen=True, gc=False):
    """A call of a tool of ours. `arguments` is None when what the model wrote is no JSON object."""

    id: str
    name: str
    arguments: dict[str, Any] | None


class Round(Struct, frozen=True, gc=False):
    """What a round came to: calls of ours, whether there are calls of the caller's, what its upstream counted, and
    about how many tokens it produced. `finished` is False when the upstream broke off."""

    calls: tuple[ToolCall, ...]
    theirs: bool
    usage: TokenUsage | None
    produced: int
    finished: bool = True


class Kept(Struct, frozen=True):
    """Turns that the caller has not seen, in the words of `dialect`: they stand for the assistant's message that it has
    seen. `pending` goes before its answer to the last of them."""

    dialect: str
    turns: list[Raw]
    pending: list[Raw] = []


class Rounds(Protocol):
    """One completion. Made of the body of its request as it would be sent without tools of ours.

    `names` are the tools of ours that the model is told of; none when the request leaves no room for them: the caller
    decides itself how tools are called, has tools of these names, or asks for several choices.

    Whatever an upstream sends comes to values of the right types, or to UpstreamFailed.
    """

    names: frozenset[str]

    @property
    def done(self) -> bool:
        """Whether the upstream has said that the round's stream is complete."""
        ...

    @property
    def so_far(self) -> TokenUsage:
        """What the rounds before this one used."""
        ...

    def request(self, *, output_limit: int | None, last: bool) -> bytes:
        """The body of the round's request; with an `output_limit` that limit. In the `last` round nothing of ours is
        offered."""
        ...

    def read(self, body: bytes) -> Round:
        """A round's answer in one piece. UpstreamFailed when it is none."""
        ...

    def whole(self) -> bytes:
        """The answer that all rounds come to."""
        ...

    def feed(self, event: bytes) -> tuple[bytes, int]:
        """One event of a round's stream: what goes on to the caller, and about how many tokens of it do not."""
        ...

    def ended(self) -> Round:
        """The round's stream has ended."""
        ...

    def closing(self) -> bytes:
        """The last events, which were held back."""
        ...

    def cut(self, reason: str) -> None:
        """There is no further round though the model wants one: the answer ends as one that was too long, and says why
        to machines."""
        ...

    def answered(self, results: Mapping[str, ToolResult]) -> None:
        """What the round's calls came to, by their ids. Unless the caller has calls of its own to answer, another round
        begins."""
        ...

    def kept(self, account: str) -> tuple[str, Kept] | None:
        """The digest and the turns, when the caller has calls of its own to answer and has not seen all before them."""
        ...


class Module(Protocol):
    """What a module for a dialect has. `PATH` is where upstreams that speak it are called."""

    PATH: str

    def open_rounds(self, body: bytes, tools: Sequence[Tool]) -> Rounds:
        """Begin a completion."""
        ...

    def digests(self, body: bytes, account: str) -> tuple[str, ...]:
        """The digests of the messages in a request that something may be kept for."""
        ...

    def restored(self, body: bytes, account: str, kept: Mapping[str, Kept]) -> bytes:
        """The request with what was kept in its place."""
        ...


def digest(account: str, before: str, calls: Sequence[tuple[str, str, str]]) -> str:
    """The name of an assistant's message that calls tools: whose it is, what it answers, and its calls `(id, name,
    arguments)`. Ids alone do not do, for some servers count them from zero in each answer."""
    canonical = [[id, name, _canonical(arguments)] for id, name, arguments in calls]
    return hashlib.sha256(msgspec.json.encode([account, before, canonical])).hexdigest()


def newest(calling: Iterable[tuple[int, str]]) -> dict[int, str]:
    """The digests by the places of their messages in a request, each at its last place: what is kept is the latest of
    its name, and a request that repeats a message must not repeat what is kept for it."""
    last = {digest: place for place, digest in calling}
    return {place: digest for digest, place in last.items()}


def _canonical(arguments: str) -> Any:
    """Arguments as a value: a translation may write them with other blanks."""
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="sorted").decode()
    except (ValueError, RecursionError):
        return arguments


def encoded(value: Any) -> bytes:
    """What an upstream said, or a part of it, as JSON again. UpstreamFailed when it could just be read, and with what
    goes around it is nested too deep to be written."""
    try:
        return _encode(value)
    except RecursionError:
        raise UpstreamFailed("The provider's answer is nested too deep.", began=True) from None


def object_of(arguments: str) -> dict[str, Any] | None:
    """The arguments of a call; nothing at all stands for none."""
    try:
        value = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def appended(array: Raw | bytes, items: Sequence[bytes]) -> Raw:
    """A JSON array with more items at its end, its own bytes as they were."""
    if not items:
        return Raw(bytes(array))
    start = bytes(array).rstrip()[:-1].rstrip()
    joint = b"" if start.endswith(b"[") else b","
    return Raw(start + joint + b",".join(items) + b"]")


def summed(counts: Sequence[TokenUsage]) -> TokenUsage:
    """The usage of several rounds."""
    return TokenUsage(
        input=sum(each.input for each in counts),
        output=sum(each.output for each in counts),
        cached_input=sum(each.cached_input for each in counts),
        reasoning=sum(each.reasoning for each in counts),
        total=sum(each.total for each in counts),
        cache_write=sum(each.cache_write for each in counts),
        cache_write_1h=sum(each.cache_write_1h for each in counts),
    )
