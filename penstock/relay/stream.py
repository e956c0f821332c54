"""A stream passes through: event by event, each paid for before it is sent.

Events go on as they came, with the model's name swapped, as soon as they are here; the ones that arrive together
leave together. When the money ends, the stream ends with an event that is valid in the caller's dialect and says why.
When the upstream breaks, the caller gets an error event. The terminator is not sent here: see `relay.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import cast

from penstock.clock import Clock
from penstock.dialects import Step, Stream, sse
from penstock.errors import PenstockError, ShuttingDown, UpstreamError, UpstreamFailed
from penstock.ports import Answer, Flowing
from penstock.relay.attempt import Begun
from penstock.relay.ending import Ending, ending_of
from penstock.relay.hold import Hold
from penstock.relay.reply import Reply

KEEP_ALIVE = b": keep-alive\n\n"
LONGEST_STALL_S = 60.0  # a caller that reads nothing for so long holds money and an upstream for nothing


class LiveStream:
    """One stream on its way. `relay` runs it to its end and returns the last bytes, to be sent when all is settled."""

    __slots__ = (
        "_block",
        "_clock",
        "_failure",
        "_finished",
        "_first",
        "_hold",
        "_include_usage",
        "_out",
        "_redact",
        "_reply",
        "_sent",
        "_sent_s",
        "_split",
        "_start",
        "_step",
        "_stream",
        "_usage_sent",
    )

    def __init__(
        self,
        stream: Stream,
        hold: Hold,
        reply: Reply,
        clock: Clock,
        redact: Callable[[str], str],
        *,
        include_usage: bool,
    ) -> None:
        self._stream = stream
        self._hold = hold
        self._reply = reply
        self._clock = clock
        self._redact = redact
        self._include_usage = include_usage
        self._first = True
        self._finished = False  # every choice has ended: the upstream may close without its terminator
        self._usage_sent = False
        self._sent = True  # something, since the last look
        self._sent_s = 0.0  # when that look was
        self._split: Callable[[bytes], bytes] = bytes
        self._block, self._start = b"", 0  # the events that came last, and how far they have been passed on
        self._out: list[bytes] = []  # paid, and not sent yet
        self._step: Step | None = None  # an event that cannot just be passed on
        self._failure: UpstreamFailed | None = None  # what came is no stream of events

    def __repr__(self) -> str:
        return f"LiveStream({self._hold!r})"

    async def relay(self, begun: Begun, answer: Answer) -> bytes:
        """Pass the answer on; the last bytes."""
        try:
            await self._pass(begun, answer)
        except PenstockError as error:  # the upstream broke, or the ledger could not be asked for more money
            return self._broken(error, *ending_of(error, caller_gone=False))
        except asyncio.CancelledError:
            if self._hold.caller_gone:
                raise
            if self._step is not None and self._step.done:  # its end had come, and was about to be seen to
                self._count(self._step)
                self._end()
                return self._last()
            return self._broken(ShuttingDown(), Ending.SHUTDOWN, ShuttingDown.status)
        return self._last()

    def keep_alive(self, quiet_s: float) -> None:
        """Look whether something has been sent. Send a comment when nothing has for so long, to a caller who reads."""
        now_s = self._clock.monotonic()
        if self._sent:
            self._sent, self._sent_s = False, now_s
        elif self._reply.ready and now_s - self._sent_s >= quiet_s:
            self._send(KEEP_ALIVE)

    async def _pass(self, begun: Begun, answer: Answer) -> None:
        """Pass on what comes, in the moment it comes (`_take`), and wait in between for what has to be waited for."""
        self._block, self._split = begun.block, begun.splitter.feed
        flow = cast(Flowing, answer).flow if hasattr(answer, "flow") else partial(_flow, begun.pieces)
        while not await self._attend(answer):
            if not await flow(self._take):
                if not self._finished:
                    raise UpstreamFailed("The provider broke off the stream.", began=True)
                self._end()
                return

    def _take(self, piece: bytes) -> bool:
        """Send on the events that a piece completes; False when that is not all that is to be done."""
        try:
            self._block, self._start = self._split(piece), 0
        except UpstreamFailed as error:
            self._failure = error
            return False
        return self._advance()

    def _advance(self) -> bool:
        """Send on events as far as they are paid and say nothing but what the model says, if the caller is reading.
        False when something has to be waited for (`_attend`): for the event `_step`, or for the caller."""
        stream, hold, out, in_bulk = self._stream, self._hold, self._out, True
        block, start, meter = self._block, self._start, hold.meter
        while start < len(block):
            if in_bulk:
                text, produced, end = stream.run(block, start)
                in_bulk = meter.output + produced <= hold.covered_output
                if in_bulk and end > start:
                    meter.feed(produced, None)
                    out.append(text)
                    start = end
                    continue
            end = sse.event_end(block, start)
            step = stream.feed(block[start:end])
            start = end
            if step.done or step.error is not None or (step.produced and self._costs_more(step)):
                self._step, self._start = step, start
                return False
            self._count(step)
            out.append(step.out)
        self._start = start
        self._flush()
        if meter.output > hold.runs_low_at:
            hold.extend_ahead()
        return self._reply.ready

    async def _attend(self, answer: Answer) -> bool:
        """See to whatever keeps the stream from going on. Whether that was its end."""
        while self._step is not None or not self._advance():
            step, self._step = self._step, None
            if step is None:
                await self._slow_reader()
            elif step.error is not None:
                self._count(step)
                self._flush()
                raise UpstreamFailed(step.error, began=True)
            elif step.done:  # the event that ends a stream may also say what it has used
                self._count(step)
                self._end()
                return True
            else:
                self._flush()  # it is paid, and need not wait for the store nor fail with it
                if not await self._hold.cover(self._output_after(step)):
                    self._end_of_money(answer)
                    return True
                self._count(step)
                self._out.append(step.out)
        if self._failure is not None:
            raise self._failure
        return False

    def _costs_more(self, step: Step) -> bool:
        """Whether this event costs more than is covered."""
        return self._output_after(step) > self._hold.covered_output

    def _output_after(self, step: Step) -> int:
        """Output tokens with this event, by the upstream's count or by estimate."""
        if step.usage is not None and step.finish_reason is not None:
            return step.usage.output
        return self._hold.meter.after(step.produced, step.usage)

    def _count(self, step: Step) -> None:
        if step.finish_reason is not None:
            self._finished = True
        elif step.produced:
            self._finished = False
        if step.usage is None or self._finished:
            self._hold.meter.feed(step.produced, step.usage)
        else:
            self._hold.meter.follow(step.produced, step.usage)
        if step.usage is not None and step.out and not step.produced:
            self._usage_sent = True

    def _end_of_money(self, answer: Answer) -> None:
        answer.close()
        self._hold.ending = Ending.MONEY
        self._usage_sent = False  # what was told before is no longer all
        self._out.append(self._stream.final_chunk(finish_reason="length", reason="insufficient_balance"))
        self._tell_usage()

    def _end(self) -> None:
        self._hold.meter.end()
        self._tell_usage()

    def _tell_usage(self) -> None:
        if self._include_usage and not self._usage_sent:
            self._out.append(self._stream.usage_chunk(self._hold.meter.tokens()))

    def _last(self) -> bytes:
        """What came together with the end leaves together with it."""
        self._out.append(self._stream.terminator())
        if self._first:
            self._leaves()
        return b"".join(self._out)

    def _flush(self) -> None:
        """Send what is paid."""
        out = self._out
        if out:
            self._send(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def _broken(self, error: PenstockError, ending: Ending, status: int) -> bytes:
        self._hold.ending, self._hold.status = ending, status
        self._flush()  # what is counted is sent, whatever comes between
        event = self._stream.error_event(
            type="upstream_error" if isinstance(error, UpstreamError) else "internal_error",
            code=error.kind,
            message=self._redact(error.message),
            param=None,
        )
        return event + self._stream.terminator()

    def _send(self, data: bytes) -> None:
        if data:
            if self._first:
                self._leaves()
            self._reply.send(data)
            self._sent = True

    def _leaves(self) -> None:
        self._first = False
        self._hold.first_byte()

    async def _slow_reader(self) -> None:
        """Wait for a caller that is slow to read; not for ever. What it has not taken yet holds back the upstream."""
        try:
            async with asyncio.timeout(LONGEST_STALL_S):
                await self._reply.drained()
                self._sent = True
        except TimeoutError:
            await self._reply.give_up()  # as if he had hung up: whoever stalls pays no less than who does


async def _flow(pieces: AsyncIterator[bytes], take: Callable[[bytes], bool]) -> bool:
    """`Flowing.flow`, of any answer."""
    async for piece in pieces:
        if not take(piece):
            return True
    return False
