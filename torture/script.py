"""What one call is meant to do, and what the upstream kept of it. The caller puts the script into the prompt.

So the upstream needs to be told nothing beforehand: it finds in each request what to do with it, whichever gateway
sent it and however often. A token of text is always `WORD`, four bytes; a prompt is counted as the gateway estimates
it. What differs between a charge and the truth is then what was lost on the way, never how it was guessed.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

WORD = "tok "
CHUNKS = (1, 1, 5, 8)  # tokens an event: the gateway counts one of up to 16 bytes as one, and larger ones by size
PROMPT_MARKS = 16  # bytes that a message is longer than its text
INPUT_NANO, OUTPUT_NANO = 100, 2_000  # what the gateway charges, in nano-USD a token; a contract counts tokens

Then = Literal["work", "quiet", "comment", "mute", "reset", "slam", "close", "torn", "error"]


class Script(Struct, frozen=True, omit_defaults=True):
    """`marker` is `history/number`. After `stop_after` events `then` happens (-1: never):

    work     no more events; it is still computing, so it bills the prompt whatever comes
    quiet    no more events
    comment  nothing but comments, ten a second
    mute     not even the head of an answer
    reset    the connection is reset, when all that was written has arrived
    slam     it is reset at once, and what is under way is lost
    close    it is closed in good order, without a terminator
    torn     it is closed in mid-event
    error    an event reports an error

    `usage` is reported with the last event, on every one, or never. `extra` are prompt tokens beyond the estimate.
    `refuse` maps a provider to the status it answers with.
    """

    marker: str
    tokens: int
    chunk: int = 1
    burst: int = 1  # events a write
    gap_ms: int = 0  # between writes
    first_ms: int = 0  # before a plain answer, or the first event
    usage: Literal["last", "every", "never"] = "last"
    extra: int = 0
    stop_after: int = -1
    then: Then = "work"
    refuse: dict[str, int] = {}

    @property
    def history(self) -> str:
        return self.marker.partition("/")[0]

    @property
    def idle(self) -> bool:
        """Whether it comes to its `then` before it has produced anything, and bills nothing."""
        return self.stop_after == 0 and self.then != "work"


class Told(Struct):
    """One request as the upstream saw it: the truth. `prompt` and `tokens` are what it bills.

    `ended`: `finished` its script; `refused` by status; `broke` off by script; `left` by the gateway; empty while
    it is open. `reported` says that a usage was written, `limit` is the output limit that the gateway sent.
    """

    marker: str
    provider: str
    limit: int | None
    prompt: int = 0
    tokens: int = 0
    events: int = 0
    reported: bool = False
    ended: str = ""
    ended_s: float = 0.0


def prompt_of(script: Script) -> str:
    """The message that carries the script."""
    return msgspec.json.encode(script).decode()


def prompt_tokens(prompt: str) -> int:
    """What a prompt counts, before `extra`."""
    return -(-(PROMPT_MARKS + len(prompt)) // len(WORD))


def body_of(script: Script, *, model: str, stream: bool, limit: int | None) -> bytes:
    """The body of a chat completion with this script."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt_of(script)}],
        "stream": stream,
        **({} if limit is None else {"max_tokens": limit}),
    }
    return msgspec.json.encode(body)
