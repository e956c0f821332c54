"""Server-sent events as bytes: cut a byte stream into blocks of whole events, these into events, and find the data of
one.

Events stay exactly as they came, terminator included, so that they can be passed on. What the data means is for the
dialects; reconnection, event ids and retry times are of no use to a gateway and are not interpreted.
"""

from __future__ import annotations

import re

from penstock.errors import UpstreamFailed

MOST_EVENT_BYTES = 8 * 1024 * 1024  # room for an inline image, and a peer that never ends an event fills no memory

# The ends of two lines in a row. LF CR LF covers CR LF CR LF. LF CR alone waits for the next byte, which may be an LF,
# so where the stream happens to be cut never changes what is found.
_TERMINATOR = re.compile(rb"\n(?:\n|\r(?:\n|(?=.)))|\r\r", re.DOTALL)
_LONGEST_TERMINATOR = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Splitter:
    """Turns the pieces a network delivers into blocks of whole raw events. One per stream."""

    __slots__ = ("_pending", "_searched")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0

    def __repr__(self) -> str:
        return f"Splitter({len(self._pending)} bytes pending)"

    def feed(self, piece: bytes) -> bytes:
        """The events that `piece` completes, in a row; `UpstreamFailed` when one grows beyond 8 MiB."""
        if piece[-2:] == b"\n\n" and piece[-3:-2] != b"\n" and not self._pending and b"\r" not in piece:
            return piece  # nearly always
        last = piece.rfind(b"\n\n")
        if self._pending or b"\r" in piece or (last > 0 and piece.endswith(b"\n", 0, last)):
            return self._search(piece)  # otherwise it is clear at a glance where the last one ends
        end = 0 if last < 0 else last + 2
        self._pending += piece[end:]
        self._check()
        return piece[:end]

    def rest(self) -> bytes:
        """What came after the last whole event, at the end of the stream; empty when the stream ended well."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._searched = 0
        return rest

    def _search(self, piece: bytes) -> bytes:
        self._pending += piece
        end = 0
        for match in _TERMINATOR.finditer(self._pending, self._searched):
            end = match.end()
        block = bytes(self._pending[:end])
        del self._pending[:end]
        self._check()
        return block

    def _check(self) -> None:
        self._searched = max(len(self._pending) - _LONGEST_TERMINATOR + 1, 0)
        if len(self._pending) > MOST_EVENT_BYTES:
            raise UpstreamFailed("The provider sent an event that is too long.", began=True)


def events(block: bytes) -> list[bytes]:
    """The events of a block, as they came."""
    found, start = [], 0
    while start < len(block):
        end = event_end(block, start)
        found.append(block[start:end])
        start = end
    return found


def event_end(block: bytes, start: int) -> int:
    """Where the event of a block that begins at `start` ends."""
    end = block.find(b"\n\n", start) + 2
    if end > 1 and block.find(b"\r", start, end) < 0:  # nearly always, and quicker
        return end
    terminator = _TERMINATOR.search(block, start)
    return terminator.end() if terminator else len(block)


def data(event: bytes) -> bytes | None:
    """The data of a raw event, its lines joined by LF; None when it carries none (a comment, a bare field)."""
    lines = [value for name, value in _lines(event) if name == b"data"]
    return b"\n".join(lines) if lines else None


def with_data(event: bytes, data: bytes) -> bytes:
    """The event with `data` (a single line) for its data lines, its other lines as they were."""
    others = [line for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines() if line and not _is_data(line)]
    return b"".join(line + b"\n" for line in others) + b"data: " + data + b"\n\n"


def _lines(event: bytes) -> list[tuple[bytes, bytes]]:
    pairs = []
    for line in event.removeprefix(_BYTE_ORDER_MARK).splitlines():
        name, _, value = line.partition(b":")
        pairs.append((name, value.removeprefix(b" ")))
    return pairs


def _is_data(line: bytes) -> bool:
    return line.partition(b":")[0] == b"data"
