"""Logs: one JSON line an event, nothing secret in any of them.

Two kinds of line. *Events* go through the standard `logging` (rare: start, reload, faults) and are redacted by value:
known secrets, and anything that looks like a key, are masked wherever they turn up. *Request lines* are one a request
and go through `RequestLog`, which writes many at once, because the usual way costs a third of the gateway's
throughput.

Both leave through an `Outlet`: whoever does not read a log must not hold up what is logged.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import IO, Any, Protocol

FLUSH_S = 0.25
SHORTEST_SECRET = 6  # characters; shorter ones stand in too many words
BUFFERED_MOST = 1_000  # lines; beyond that they are written at once
KEPT_MOST = 2_000  # pieces of at most `PIPE_BUF` bytes that nobody has read; what comes then is dropped
LINGER_S = 1.0  # for a slow reader, when the process ends


class Stream(Protocol):
    """Where lines go. `write` gets whole lines."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class Outlet:
    """A stream out of the process that never waits for its reader.

    What a reader does not take is kept and offered again with the next line and at every `flush`, up to `KEPT_MOST`
    pieces. What comes then is dropped, and how many lines that were is the first thing he gets afterwards. When there
    is no reader any more nothing is kept.
    """

    def __init__(self, file: int) -> None:
        self._file = _apart(file)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)
        self._kept: deque[bytes] = deque()
        self._dropped = 0  # lines
        atexit.register(self._linger)

    def __repr__(self) -> str:
        return f"Outlet({self._file}, {len(self._kept)} pieces kept, {self._dropped} lines dropped)"

    def write(self, text: str) -> int:
        """Whole lines, no more than a pipe takes in one piece, or they may be mixed up with another process's."""
        if self._kept:
            self.flush()
        piece = text.encode()
        rest = piece if self._kept else self._put(piece)
        if rest:
            self._keep(rest)
        return len(text)

    def flush(self) -> None:
        """Offer what has been kept."""
        self._offer(until_s=0)
        if self._dropped and not self._kept:
            self._kept.append(_gap(self._dropped))
            self._dropped = 0
            self._offer(until_s=0)

    def _keep(self, piece: bytes) -> None:
        if self._dropped or len(self._kept) >= KEPT_MOST:
            self._dropped += piece.count(b"\n")
        else:
            self._kept.append(piece)

    def _offer(self, until_s: float) -> None:
        while self._kept:
            rest = self._put(self._kept[0], max(0.0, until_s - time.monotonic()))
            if rest:
                self._kept[0] = rest
                return
            self._kept.popleft()

    def _put(self, piece: bytes, within_s: float = 0) -> bytes:
        """Write what is taken now, or begins to be in that time; the rest."""
        try:
            while piece and self._poll.poll(within_s * 1000):
                piece = piece[os.write(self._file, piece) :]
        except ConnectionError:  # there is no reader any more
            return b""
        except OSError:  # no room in it, or on its disk: there may be later
            pass
        return piece

    def _linger(self) -> None:
        """The last lines of the process."""
        self._offer(time.monotonic() + LINGER_S)


def outlet(stream: IO[str] | None) -> Outlet:
    """The way out where a stream of Python's own leads; nowhere when the process was started without it."""
    return Outlet(os.open(os.devnull, os.O_WRONLY) if stream is None else stream.fileno())


def _apart(file: int) -> int:
    """The same pipe, opened once more so that writing to it does not wait: several processes may look for room in it
    and find the same. For what is no pipe, or cannot be opened like this, looking has to do."""
    if stat.S_ISFIFO(os.fstat(file).st_mode):
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return file


def _gap(lines: int) -> bytes:
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "dropped", "lines": lines}
    return json.dumps(entry).encode() + b"\n"


class Redactor:
    """Masks secrets in text: the values it is given, and keys by their prefixes."""

    def __init__(self, secrets: Iterable[str] = (), prefixes: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._shapes = [re.escape(prefix) + r"[0-9A-Za-z]{16,}" for prefix in prefixes]
        # A token begins where a word does and no step is taken twice: whoever writes the text may be hostile.
        self._shapes += [r"(?<![\w-])eyJ[\w-]++\.[\w-]++\.[\w-]+", r"\bsk-[\w-]{16,}"]
        self.learn(secrets)

    def __repr__(self) -> str:
        return f"Redactor({len(self._secrets)} secrets)"

    def learn(self, secrets: Iterable[str]) -> None:
        """Mask these from now on, and those known before."""
        self._secrets.update(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
        written = self._secrets | {json.dumps(secret)[1:-1] for secret in self._secrets}  # as it stands in a log line
        exact = [re.escape(secret) for secret in sorted(written, key=len, reverse=True)]
        self._pattern = re.compile("|".join(exact + self._shapes))

    def __call__(self, text: str) -> str:
        return self._pattern.sub("[redacted]", text)


class JsonFormatter(logging.Formatter):
    """Renders a log record as one line of JSON; `extra={"fields": {...}}` adds fields."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return self._redact(json.dumps(entry, default=str))


def configure(stream: Stream, redact: Callable[[str], str], level: int = logging.INFO) -> None:
    """Send every event of Penstock, and warnings of its libraries, to `stream`."""
    handler: logging.Handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(redact))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("penstock").setLevel(level)


class RequestLog:
    """Writes request lines. `write` buffers; `flush` is called a few times a second and at the end.

    Lines are written as they are given: whoever writes one has seen to it that nothing in it is a caller's own text.
    """

    def __init__(self, stream: Stream, encode: Callable[[Any], bytes]) -> None:
        self._stream = stream
        self._encode = encode
        self._lines: list[bytes] = []

    def __repr__(self) -> str:
        return f"RequestLog({len(self._lines)} lines buffered)"

    def write(self, entry: Any) -> None:
        """One line: `entry` as JSON."""
        self._lines.append(self._encode(entry))
        if len(self._lines) >= BUFFERED_MOST:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered: whole lines, and never more at once than a pipe takes in one piece, for other
        processes may be writing to the same one."""
        lines, self._lines = self._lines, []
        piece = b""
        for line in lines:
            if piece and len(piece) + len(line) >= PIPE_BUF:
                self._stream.write(piece.decode())
                piece = b""
            piece += line + b"\n"
        if piece:
            self._stream.write(piece.decode())
        self._stream.flush()
