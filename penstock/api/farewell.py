"""A connection after its last answer: it says that it is done, hears the caller out, and closes.

Who closes a socket in which bytes lie unread resets the connection, and a reset takes from the caller even what has
arrived there and was not read yet: the answer. So the answer is sent, then the end of what is sent, and whatever still
comes is thrown away until the caller closes too (RFC 9112, 9.6). A caller who goes on talking, or falls silent, is
waited for only so long; so is one who does not take the answer. No request is read here: `protocol.py` does that.
"""

from __future__ import annotations

import asyncio

from penstock.api.connections import Connections

LONGEST_SILENCE_S = 2.0  # of a caller who has the answer and neither speaks nor closes: more than a round trip
LONGEST_S = 20.0  # that a caller who has been answered may go on talking
MOST_BYTES = 64 * 1024 * 1024  # of what such a caller may say: a body three times as large as is taken, to its end


class Farewell(asyncio.Protocol):
    """What is left of a connection. It takes the transport over, and its place among the server's connections."""

    __slots__ = ("_connections", "_end_s", "_heard_s", "_left_bytes", "_longest_stall_s", "_unread", "transport")

    idle = False  # it ends by itself

    def __init__(self, transport: asyncio.Transport, connections: Connections, *, longest_stall_s: float) -> None:
        self.transport = transport
        self._connections = connections
        self._longest_stall_s = longest_stall_s
        self._heard_s = asyncio.get_running_loop().time()
        self._end_s: float | None = None  # known once the answer has been taken
        self._left_bytes = MOST_BYTES
        self._unread = transport.get_write_buffer_size()
        connections.open.add(self)
        transport.set_protocol(self)
        self._say_so()

    def __repr__(self) -> str:
        return f"Farewell({self._unread} bytes to be taken, {self._left_bytes} may come)"

    def _say_so(self) -> None:
        try:
            self.transport.write_eof()
        except OSError:  # it has gone
            self.transport.abort()
        else:
            self.transport.resume_reading()

    # What the server and its sweep call.

    def shutdown(self) -> None:
        """There is no request to wait for, and who talks is not heard out."""
        self._end_s = asyncio.get_running_loop().time() + LONGEST_SILENCE_S

    def retire(self) -> None:
        """There will be no other answer."""

    def check(self, now_s: float) -> None:
        """Close when enough has been waited for."""
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread:
            self._heard_s = now_s
        self._unread = unread
        if unread:
            if now_s - self._heard_s > self._longest_stall_s:
                self.transport.abort()
            return
        if self._end_s is None:
            self._end_s = now_s + LONGEST_S
        if now_s - self._heard_s > LONGEST_SILENCE_S or now_s > self._end_s:
            self.transport.close()

    # What the event loop calls. An end of what the caller sends closes the transport.

    def data_received(self, data: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.open.discard(self)
