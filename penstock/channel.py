"""The line between a supervisor and one of its workers: a socket pair, and a message a line on it, both ways.

    the worker says         serving    it takes calls, and lets them go on for so long when it is told to stop
                            figures    its metrics, since it was asked or is about to end
                            scrape     it wants everybody's
    the supervisor says     announce   say to the operator that calls are taken
                            reload     read the configuration again
                            retire     a successor serves: hand over
                            report     say your figures
                            sum        everybody's figures

When the supervisor closes its half the worker stops; so it does when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from penstock.figures import Figures

LONGEST_LINE = 16 * 2**20  # bytes: figures with thousands of series


@dataclass(frozen=True, slots=True)
class Message:
    """A word, and figures or a time where the word is about them."""

    word: str
    figures: Figures = ()
    grace_s: float | None = None


_decoder = msgspec.json.Decoder(Message)


class Channel:
    """One end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def __repr__(self) -> str:
        return f"Channel(closing={self._writer.is_closing()})"

    @classmethod
    async def on(cls, line: socket.socket) -> Channel:
        """The end that is this socket."""
        return cls(*await asyncio.open_unix_connection(sock=line, limit=LONGEST_LINE))

    def say(self, word: str, figures: Figures = (), *, grace_s: float | None = None) -> None:
        """Send a message; to nobody when the other side is gone."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(Message(word, figures, grace_s)) + b"\n")

    async def hear(self) -> Message | None:
        """The next message; None when the other side has closed."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError):  # reset; or a line that has no end
            return None
        return _decoder.decode(line) if line.endswith(b"\n") else None

    def let_go(self) -> None:
        """Close this half: the other side hears that nothing more will be said."""
        if not self._writer.is_closing():
            self._writer.write_eof()

    async def close(self) -> None:
        """Send what is still to be sent, then close."""
        self._writer.close()
        with suppress(OSError):  # the other side is gone
            await self._writer.wait_closed()
