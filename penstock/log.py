"""Logs: one JSON line an event, nothing secret in any of them.

Two kinds of line. *Events* go through the standard `logging` (rare: start, reload, faults) and are redacted by value:
known secrets, and anything that looks like a key, are masked wherever they turn up. *Request lines* are one a request
and go through `RequestLog`, which writes many at once, because the usual way costs a third of the gateway's
throughput.

Both leave through an outlet (`outlet.py`): whoever does not read a log must not hold up what is logged.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any, Protocol

FLUSH_S = 0.25
SHORTEST_SECRET = 6  # characters; shorter ones stand in too many words
BUFFERED_MOST = 1_000  # lines; beyond that they are written at once


class Stream(Protocol):
    """Where lines go. `write` gets whole lines."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


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
