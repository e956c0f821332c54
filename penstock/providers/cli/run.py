"""The answer of a command while it runs: what it prints, read as it comes and passed on within bounds.

An answer is good when the command says its end (if it ever does) and its exit code is 0. Anything else is a failure of
the upstream, before the first word one that another provider can make good.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed, UpstreamTimeout
from penstock.ports import Timeouts
from penstock.providers.cli.bounds import Bounds
from penstock.providers.cli.command import Command
from penstock.providers.cli.completion import Completion
from penstock.providers.cli.output import Said, reader, usage_in_words
from penstock.providers.cli.prompt import Asked
from penstock.providers.cli.templates import Output

MOST_OUTPUT_BYTES = 64 * 1024 * 1024  # as much as is taken of any provider's plain answer
LINGER_S = 5.0  # for a command that has said its last, to end; then it is ended


class Document:
    """An answer that is here as a whole."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {"content-type": "application/json"}
        self._pieces = deque([body])
        self._closed = False

    def __repr__(self) -> str:
        return f"Document({self.status})"

    def __aiter__(self) -> Document:
        return self

    async def __anext__(self) -> bytes:
        if self._closed:
            raise UpstreamFailed("The answer was closed before its end.", began=True)
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.popleft()

    async def read(self, limit: int) -> bytes:
        """The whole body; `UpstreamFailed` when it is longer than `limit` bytes."""
        body = b"".join([piece async for piece in self])
        if len(body) > limit:
            raise UpstreamFailed(f"The answer is longer than {limit} bytes.", began=True)
        return body

    def close(self) -> None:
        """Nothing runs any more."""
        self._closed = True


class Run:
    """A command on its way to an answer: an event stream when iterated, a document by `whole`."""

    def __init__(
        self,
        command: Command,
        asked: Asked,
        written: Completion,
        output: Output,
        timeouts: Timeouts,
        redact: Callable[[str], str],
        report: Callable[[int, Command], None],
    ) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {"content-type": "text/event-stream"}
        self._command = command
        self._written = written
        self._output = output
        self._reader = reader(output)
        self._bounds = Bounds(asked.output_limit, asked.stops)
        self._timeouts = timeouts
        self._redact = redact
        self._report = report
        self._deadline_s = asyncio.get_running_loop().time() + timeouts.total_s
        self._pieces: deque[bytes] = deque()
        self._taken = 0
        self._spoken = False
        self._end: str | None = None
        self._usage: TokenUsage | None = None
        self._remark: str | None = None
        self._over = False
        self._closed = False

    def __repr__(self) -> str:
        return f"Run({self._command!r}, over={self._over})"

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._closed:
                raise UpstreamFailed("The answer was closed before its end.", began=True)
            if self._over:
                raise StopAsyncIteration
            self._pieces.extend(await self._events())
        return self._pieces.popleft()

    async def whole(self) -> bytes:
        """The answer as one document, when the command has ended."""
        texts: list[str] = []
        while not self._over:
            texts += await self._texts()
        return self._written.whole("".join(texts), self._end or "stop", self._usage)

    async def read(self, limit: int) -> bytes:
        """The whole stream; `UpstreamFailed` when it is longer than `limit` bytes."""
        body = b""
        async for piece in self:
            body += piece
            if len(body) > limit:
                self.close()
                raise UpstreamFailed(f"The answer is longer than {limit} bytes.", began=True)
        return body

    def close(self) -> None:
        """Stop the command, if it still runs."""
        self._closed = True
        self._pieces.clear()
        self._command.stop()

    async def _events(self) -> list[bytes]:
        events = [self._written.chunk(text) for text in await self._texts()]
        if self._over:
            events.append(self._written.last(self._end or "stop", self._usage))
        return events

    async def _texts(self) -> list[str]:
        """What may be said next, by the piece; `_over` when nothing comes after it. Errors are the port's."""
        piece = await self._piece()
        self._taken += len(piece)
        if self._taken > MOST_OUTPUT_BYTES:
            raise self._failed("The command printed too much.")
        texts = [*self._understood(self._reader.feed(piece) if piece else self._reader.rest())]
        if self._bounds.reached is not None:
            self._end, self._usage, self._over = self._bounds.reached, None, True
            self._command.stop()
        elif not piece:
            texts += filter(None, [self._bounds.rest()])
            await self._finish()
        self._spoken = self._spoken or bool(texts)
        return texts

    def _understood(self, all_said: list[Said]) -> Iterator[str]:
        for said in all_said:
            if said.error is not None:
                raise self._failed(f"The command reported: {self._redact(said.error)}")
            self._end = self._end or said.end
            self._usage = said.usage or self._usage
            self._remark = said.remark or self._remark
            text = self._bounds.let_pass(said.text) if said.text and self._bounds.reached is None else ""
            if text:
                yield text

    async def _piece(self) -> bytes:
        """The next piece of output. Once the command has said its end, what may still come is not waited for long."""
        left_s = self._deadline_s - asyncio.get_running_loop().time()
        patience_s = LINGER_S if self._end else self._timeouts.idle_s if self._spoken else self._timeouts.first_byte_s
        try:
            async with asyncio.timeout(min(left_s, patience_s)):
                return await self._command.read()
        except TimeoutError:
            if self._end:
                self._command.stop()
                return b""
            raise UpstreamTimeout("The command took too long.", began=self._spoken) from None

    async def _finish(self) -> None:
        """The output has ended; an answer is only good if the command says so, too."""
        if self._closed:
            raise self._failed("The answer was closed before its end.")
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await asyncio.shield(self._command.ended)
        self._command.stop()
        code = await asyncio.shield(self._command.ended)
        if code != 0 and not (self._command.stopped and self._end):
            self._report(code, self._command)
            raise self._failed(f"The command ended with code {code}.")
        if self._end is None and self._output.says_its_end:
            raise self._failed("The command ended before its answer did.")
        self._usage = self._usage or usage_in_words(self._output, self._command.last_words())
        self._over = True

    def _failed(self, words: str) -> UpstreamFailed:
        if self._remark and self._remark not in words:
            words = f"{words} It said: {self._redact(self._remark)}"
        return UpstreamFailed(words, began=self._spoken)
