"""A stream that is told to stop between two of its steps: what is counted is sent, and an end that had come is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock.clock import Clock
from penstock.dialects import sse
from penstock.dialects.openai_chat import DONE, ChatStream
from penstock.money.prices import TokenTariff
from penstock.relay.attempt import Begun
from penstock.relay.ending import Ending
from penstock.relay.hold import Hold
from penstock.relay.meter import Meter
from penstock.relay.stream import LiveStream


def event(word: str) -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


class Reply:
    """Takes what is sent."""

    ready = True

    def __init__(self) -> None:
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data


class Stopped:
    """An answer whose piece arrives in the moment in which the call is told to stop."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece

    async def flow(self, take: Callable[[bytes], bool]) -> bool:
        take(self.piece)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return True


async def none() -> AsyncIterator[bytes]:
    for piece in list[bytes]():
        yield piece


def hold_of(covered: int) -> Any:
    return SimpleNamespace(
        meter=Meter(TokenTariff("TOK", 1), 1),
        covered_output=covered,
        runs_low_at=covered,
        caller_gone=False,
        ending=Ending.ANSWER,
        status=200,
        first_byte=lambda: None,
        extend_ahead=lambda: None,
    )


@pytest.mark.parametrize(
    ("after", "covered", "ending", "words"),
    [
        (DONE, 100, Ending.ANSWER, 3),
        (event("three"), 2, Ending.SHUTDOWN, 2),  # what is not paid for is not sent
        (b"", 100, Ending.SHUTDOWN, 3),
    ],
)
async def test_what_is_counted_when_it_is_told_to_stop_has_been_sent(
    after: bytes, covered: int, ending: Ending, words: int
) -> None:
    hold, reply = hold_of(covered), Reply()
    stream = ChatStream(model=None, id_prefix=None, include_usage=False)
    live = LiveStream(stream, cast(Hold, hold), cast(Any, reply), Clock(), str, include_usage=False)
    more = event("two") + (event("three") if words == 3 else b"") + after
    begun = Begun(stream, event("one"), none(), sse.Splitter())
    last = await live.relay(begun, cast(Any, Stopped(more)))
    assert (reply.sent + last).count(b'"content"') == hold.meter.output == words
    assert hold.ending is ending
    assert last.endswith(DONE)
    assert (b"shutting_down" in last) is (ending is Ending.SHUTDOWN)
