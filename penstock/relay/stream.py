"""A stream passes through: event by event, each paid for before it is sent.

Events go on as they came, with the model's name swapped, as soon as they are here; the ones that arrive together
leave together. When the money ends, the stream ends with an event that is valid in the caller's dialect and says why.
When the upstream breaks, the caller gets an error event. The terminator is not sent here: see `relay.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.clock import Clock
from penstock.dialects import Step, Stream
from penstock.errors import PenstockError, ShuttingDown, UpstreamError, UpstreamFailed
from penstock.relay.attempt import Served
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
        self._sending = False
        self._sent_s = clock.monotonic()

    def __repr__(self) -> str:
        return f"LiveStream({self._hold!r})"

    async def relay(self, served: Served) -> bytes:
        """Pass the answer on; the last bytes."""
        try:
            await self._pass(served)
        except PenstockError as error:  # the upstream broke, or the ledger could not be asked for more money
            return self._broken(error, *ending_of(error, caller_gone=False))
        except asyncio.CancelledError:
            if self._hold.caller_gone:
                raise
            return self._broken(ShuttingDown(), Ending.SHUTDOWN, ShuttingDown.status)
        return self._stream.terminator()

    async def keep_alive(self, quiet_s: float) -> None:
        """Send a comment when nothing has been sent for so long. Never waits for a caller who does not read."""
        if self._reply.ready and not self._sending and self._clock.monotonic() - self._sent_s >= quiet_s:
            await self._send(KEEP_ALIVE)

    async def _pass(self, served: Served) -> None:
        async for events in served.events:
            out: list[bytes] = []
            for event in events:
                step = self._stream.feed(event)
                if step.error is not None:
                    await self._send(b"".join(out))
                    raise UpstreamFailed(step.error, began=True)
                if step.done:
                    await self._end(out)
                    return
                if step.produced:
                    output = self._output_after(step)
                    if output > self._hold.covered_output:
                        await self._send(b"".join(out))  # it is paid, and need not wait for the store nor fail with it
                        out = []
                        if not await self._hold.cover(output):
                            await self._end_of_money(out, served)
                            return
                self._count(step)
                out.append(step.out)
            if out:
                await self._send(b"".join(out))
            self._hold.extend_ahead()
        if not self._finished:
            raise UpstreamFailed("The provider broke off the stream.", began=True)
        await self._end([])

    def _output_after(self, step: Step) -> int:
        """Output tokens with this event, by the upstream's running count or by estimate."""
        return self._hold.meter.output + step.produced if step.usage is None else step.usage.output

    def _count(self, step: Step) -> None:
        self._hold.meter.feed(step.produced, step.usage)
        if step.finish_reason is not None:
            self._finished = True
        if step.usage is not None and step.out and not step.produced:
            self._usage_sent = True

    async def _end_of_money(self, out: list[bytes], served: Served) -> None:
        served.answer.close()
        self._hold.ending = Ending.MONEY
        out.append(self._stream.final_chunk(finish_reason="length", reason="insufficient_balance"))
        await self._end(out)

    async def _end(self, out: list[bytes]) -> None:
        if self._include_usage and not self._usage_sent:
            out.append(self._stream.usage_chunk(self._hold.meter.tokens()))
        if out:
            await self._send(b"".join(out))

    def _broken(self, error: PenstockError, ending: Ending, status: int) -> bytes:
        self._hold.ending, self._hold.status = ending, status
        event = self._stream.error_event(
            type="upstream_error" if isinstance(error, UpstreamError) else "internal_error",
            code=error.kind,
            message=self._redact(error.message),
            param=None,
        )
        return event + self._stream.terminator()

    async def _send(self, data: bytes) -> None:
        if data:
            self._sending = True
            self._hold.first_byte()
            if self._reply.ready:
                await self._reply.send(data)
            else:
                await self._send_slowly(data)
            self._sending = False
            self._sent_s = self._clock.monotonic()

    async def _send_slowly(self, data: bytes) -> None:
        """Wait for a caller that is slow to read; not for ever."""
        try:
            async with asyncio.timeout(LONGEST_STALL_S):
                await self._reply.send(data)
        except TimeoutError:
            raise CallerStalled from None
