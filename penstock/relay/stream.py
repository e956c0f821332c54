"""A stream passes through: event by event, each paid for before it is sent.

Events go on as they came, with the model's name swapped, as soon as they are here; the ones that arrive together
leave together. When the money ends, the stream ends with an event that is valid in the caller's dialect and says why.
When the upstream breaks, the caller gets an error event. The terminator is not sent here: see `relay.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from penstock.clock import Clock
from penstock.dialects import Step, Stream, sse
from penstock.errors import PenstockError, ShuttingDown, UpstreamError, UpstreamFailed
from penstock.ports import Answer, Flowing
from penstock.relay.attempt import Begun
from penstock.relay.ending import CallerStalled, Ending, ending_of
from penstock.relay.hold import Hold
from penstock.relay.reply import Reply

KEEP_ALIVE = b": keep-alive\n\n"
LONGEST_STALL_S = 60.0  # a caller that reads nothing for so long holds money and an upstream for nothing


class LiveStream:
    """One stream on its way. `relay` runs it to its end and returns the last bytes, to be sent when all is settled."""

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
        self._finished = False  # a choice has ended: the upstream may close without its terminator
        self._usage_sent = False
        self._sent_s = clock.monotonic()

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
            return self._broken(ShuttingDown(), Ending.SHUTDOWN, ShuttingDown.status)
        return self._stream.terminator()

    def keep_alive(self, quiet_s: float) -> None:
        """Send a comment when nothing has been sent for so long, to a caller who reads."""
        if self._reply.ready and self._clock.monotonic() - self._sent_s >= quiet_s:
            self._send(KEEP_ALIVE)

    async def _pass(self, begun: Begun, answer: Answer) -> None:
        """Pass on what comes. What is not taken as it comes (`_take`) is looked at here, piece by piece."""
        block, pieces, feed = begun.block, begun.pieces, begun.splitter.feed
        take = partial(self._take, begun.splitter)
        flow = answer.flow if isinstance(answer, Flowing) else None
        while not await self._relayed(block, answer):
            piece = await (anext(pieces, None) if flow is None else flow(take))
            if piece is None:
                if not self._finished:
                    raise UpstreamFailed("The provider broke off the stream.", began=True)
                self._end([])
                return
            block = feed(piece)

    def _take(self, splitter: sse.Splitter, piece: bytes) -> bool:
        """Send on a piece in the moment it comes, if it is text and nothing else, is paid, and the caller reads."""
        if not (splitter.is_whole(piece) and self._reply.ready):
            return False
        hold = self._hold
        text, produced, end = self._stream.run(piece, 0)
        if end < len(piece) or hold.meter.output + produced > hold.covered_output:
            return False
        hold.meter.feed(produced, None)
        self._send(text)
        hold.extend_ahead()
        return True

    async def _relayed(self, block: bytes, answer: Answer) -> bool:
        """Send on the events of a block, as far as they are paid. Whether the stream has ended."""
        hold, out, start = self._hold, [], 0
        in_bulk = True
        while start < len(block):
            if in_bulk:
                text, produced, end = self._stream.run(block, start)
                in_bulk = hold.meter.output + produced <= hold.covered_output
                if in_bulk and end > start:
                    hold.meter.feed(produced, None)
                    out.append(text)
                    start = end
                    continue
            end = sse.event_end(block, start)
            step = self._stream.feed(block[start:end])
            start = end
            if step.error is not None:
                self._count(step)
                self._send(b"".join(out))
                raise UpstreamFailed(step.error, began=True)
            if step.done:  # the event that ends a stream may also say what it has used
                self._count(step)
                self._end(out)
                return True
            if step.produced:
                output = self._output_after(step)
                if output > hold.covered_output:
                    self._send(b"".join(out))  # it is paid, and need not wait for the store nor fail with it
                    out.clear()
                    if not await hold.cover(output):
                        self._end_of_money(out, answer)
                        return True
            self._count(step)
            out.append(step.out)
        self._send(b"".join(out))
        if not self._reply.ready:
            await self._slow_reader()
        hold.extend_ahead()
        return False

    def _output_after(self, step: Step) -> int:
        """Output tokens with this event, by the upstream's running count or by estimate."""
        return self._hold.meter.output + step.produced if step.usage is None else step.usage.output

    def _count(self, step: Step) -> None:
        self._hold.meter.feed(step.produced, step.usage)
        if step.finish_reason is not None:
            self._finished = True
        if step.usage is not None and step.out and not step.produced:
            self._usage_sent = True

    def _end_of_money(self, out: list[bytes], answer: Answer) -> None:
        answer.close()
        self._hold.ending = Ending.MONEY
        self._usage_sent = False  # what was told before is no longer all
        out.append(self._stream.final_chunk(finish_reason="length", reason="insufficient_balance"))
        self._end(out)

    def _end(self, out: list[bytes]) -> None:
        if self._include_usage and not self._usage_sent:
            out.append(self._stream.usage_chunk(self._hold.meter.tokens()))
        self._send(b"".join(out))

    def _broken(self, error: PenstockError, ending: Ending, status: int) -> bytes:
        self._hold.ending, self._hold.status = ending, status
        event = self._stream.error_event(
            type="upstream_error" if isinstance(error, UpstreamError) else "internal_error",
            code=error.kind,
            message=self._redact(error.message),
            param=None,
        )
        return event + self._stream.terminator()

    def _send(self, data: bytes) -> None:
        if data:
            self._hold.first_byte()
            self._reply.send(data)
            self._sent_s = self._clock.monotonic()

    async def _slow_reader(self) -> None:
        """Wait for a caller that is slow to read; not for ever. What it has not taken yet holds back the upstream."""
        try:
            async with asyncio.timeout(LONGEST_STALL_S):
                await self._reply.drained()
                self._sent_s = self._clock.monotonic()
        except TimeoutError:
            raise CallerStalled from None
