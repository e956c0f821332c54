"""A connection that has become a WebSocket: frames in, messages out to the peer it belongs to (`hub/peer.py`).

It takes over from `protocol.py` after the peer was authenticated; the framing is the sans-I/O protocol of `websockets`.
No extensions, so no compression to blow up. A message is at most `LARGEST_MESSAGE`; who sends nonsense is told so with
a code and a reason and hung up on; who does not read, or not what it is told about closing, is cut off.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Callable

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, State
from websockets.protocol import Protocol as Framing
from websockets.utils import accept_key

from penstock.api.connections import Connections
from penstock.hub.messages import LARGEST_MESSAGE, NonsenseError
from penstock.hub.peer import Peer

MOST_UNREAD = 8 * 2**20  # bytes for a peer that does not read: many times what jobs put on the line at once
LONGEST_STALL_S = 45.0  # without a byte taken: as long as without a heartbeat
GOOD_BYE_S = 5.0  # for the other side to hang up after a close frame
LONGEST_REASON = 123  # bytes, RFC 6455


def accepts(headers: dict[bytes, bytes]) -> bytes | None:
    """The answer to a request's `Sec-WebSocket-Key`; None when it is no handshake of RFC 6455, version 13."""
    key = headers.get(b"sec-websocket-key", b"")
    try:
        sound = len(b64decode(key, validate=True)) == 16
    except NotBase64:
        return None
    if not sound or headers.get(b"sec-websocket-version") != b"13":
        return None
    return accept_key(key.decode("ascii")).encode()


class WebSocket(asyncio.Protocol):
    """One connection, from the answer to its handshake on. A `Line` for its peer; the server sees it as a connection.

    `join` makes the peer, once there is a line to it.
    """

    def __init__(self, connections: Connections, join: Callable[[WebSocket], Peer]) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._framing = Framing(SERVER, state=State.OPEN, max_size=LARGEST_MESSAGE)
        self._message = bytearray()  # what has come of one that comes in fragments
        self._kind = Opcode.TEXT
        self._writable = True
        self._drained: asyncio.Future[None] | None = None
        self._unread = 0
        self._unread_since_s = self._loop.time()
        self.transport: asyncio.Transport
        self._join = join
        self._peer: Peer

    def __repr__(self) -> str:
        return f"WebSocket({self._framing.state.name})"

    def begin(self, transport: asyncio.Transport, early: bytes) -> None:
        """Take over; `early` is what came behind the handshake."""
        self.transport = transport
        self._peer = self._join(self)
        self._connections.open.add(self)
        transport.set_protocol(self)
        if early:
            self.data_received(early)
        if not transport.is_closing():
            transport.resume_reading()

    # A line.

    def text(self, data: bytes) -> None:
        """Send a control message."""
        self._send(self._framing.send_text, data)

    def binary(self, data: bytes) -> None:
        """Send a piece of a body."""
        self._send(self._framing.send_binary, data)

    async def drained(self) -> None:
        """Wait until the peer has read enough, or has gone."""
        while not self._writable and not self.transport.is_closing():
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self, code: int, reason: str) -> None:
        """Say good-bye. The connection ends when the peer answers, or after `GOOD_BYE_S`."""
        if self._framing.state is State.OPEN:
            said = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
            self._framing.send_close(code, said)
            self._flush()
            self._loop.call_later(GOOD_BYE_S, self.transport.abort)

    # What the server and its sweep call, as of `protocol.Connection`.

    def shutdown(self) -> None:
        """The server ends: the peer connects elsewhere, and this ends with its last job."""
        self._peer.end()

    @property
    def idle(self) -> bool:
        """Whether no job is under way."""
        return self._peer.outstanding == 0

    def retire(self) -> None:
        """A successor serves: the peer connects to it, and ends this connection after its last job."""
        self._peer.leave()

    def check(self, now_s: float) -> None:
        """Cut off a peer that does not read."""
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread or not self._unread:
            self._unread_since_s = now_s
        elif now_s - self._unread_since_s > LONGEST_STALL_S:
            self.transport.abort()
        self._unread = unread

    # What the event loop calls.

    def data_received(self, data: bytes) -> None:
        framing = self._framing
        framing.receive_data(data)
        self._flush()
        try:
            for event in framing.events_received():
                if isinstance(event, Frame):
                    self._take(event)
        except NonsenseError as nonsense:
            self._peer.close(CloseCode.PROTOCOL_ERROR, str(nonsense))
        if framing.parser_exc is not None and framing.state is not State.OPEN:
            self._peer.lost("it broke the protocol")

    def eof_received(self) -> None:
        """Nothing more will come: the transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.open.discard(self)
        self._peer.lost()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._unread = 0
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            return  # answered by the framing
        if frame.opcode is not Opcode.CONT:
            if frame.fin:
                self._hand_on(frame.opcode, bytes(frame.data))
                return
            self._kind = frame.opcode
        self._message += frame.data
        if frame.fin:
            message, self._message = bytes(self._message), bytearray()
            self._hand_on(self._kind, message)

    def _hand_on(self, kind: Opcode, message: bytes) -> None:
        if kind is Opcode.TEXT:
            self._peer.said(message)
        else:
            self._peer.sent(message)

    def _send(self, send: Callable[[bytes], None], data: bytes) -> None:
        if self._framing.state is State.OPEN:
            send(data)
            self._flush()

    def _flush(self) -> None:
        """Write what the framing has to say; its last word is to hang up."""
        transport = self.transport
        for data in self._framing.data_to_send():
            if transport.is_closing():
                return
            if data:
                transport.write(data)
            else:
                transport.close()
        if transport.get_write_buffer_size() > MOST_UNREAD:
            transport.abort()
