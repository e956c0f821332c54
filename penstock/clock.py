"""The time, injected: wall-clock milliseconds for records, monotonic seconds for durations.

`PENSTOCK_NOW` (an ISO instant, tests only) starts the wall clock elsewhere; it then runs on at the usual speed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache

FIRST_MS, YEAR_10000_MS = -62_135_596_800_000, 253_402_300_800_000  # what `datetime` has room for


class Clock:
    """Reads the time. `offset_ms` shifts the wall clock; durations are never shifted."""

    __slots__ = ("offset_ms",)

    def __init__(self, offset_ms: int = 0) -> None:
        self.offset_ms = offset_ms

    def __repr__(self) -> str:
        return f"Clock(offset_ms={self.offset_ms})"

    @classmethod
    def starting_at(cls, instant: str) -> Clock:
        """A clock that reads `instant` (ISO 8601; UTC when it names no zone) now. ValueError when it is not one."""
        moment = datetime.fromisoformat(instant)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return cls(int(moment.timestamp() * 1000) - time.time_ns() // 1_000_000)

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000 + self.offset_ms

    def after(self, *, hours: int) -> str:
        """The instant so many hours from now, ISO 8601."""
        return iso(self.now_ms() + hours * 3_600_000)

    monotonic = staticmethod(time.perf_counter)  # seconds that never jump, for durations only


def iso(instant_ms: int) -> str:
    """`2026-07-31T00:00:00Z` for milliseconds since 1970."""
    second, ms = divmod(instant_ms, 1000)
    return f"{_second(second)}.{ms:03d}Z" if ms else f"{_second(second)}Z"


@lru_cache(maxsize=8)  # a log writes the same second again and again
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def from_iso(instant: str) -> int:
    """Milliseconds since 1970 for an ISO date or instant; a bare date is the start of that day, UTC. ValueError when it
    is none that `iso` could show: a zone can carry an instant out of the years from 1 to 9999."""
    moment = datetime.fromisoformat(instant)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    instant_ms = int(moment.timestamp() * 1000)
    if not FIRST_MS <= instant_ms < YEAR_10000_MS:
        raise ValueError("an instant must be in the years from 1 to 9999, UTC")
    return instant_ms
