"""A load generator: closed loop, open loop, bursts of streams and paced streams, against one HTTP/1.1 target.

Each function runs one load on the running event loop (use uvloop) and returns its figures; nothing is printed and
nothing is judged here. Bodies are looked at no more than it takes to know that an answer is whole and good: the
generator must stay cheaper than what it measures. Pin it to another core than the gateway, and compare with the same
load sent straight to `bench/mock.py`; only differences and ratios mean something.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_SENT_NS = re.compile(rb'sent_ns(?:=|":)(\d+)[",}]')
_TAIL_BYTES = 64  # holds `data: [DONE]` and the end of a chunked body, however they are framed


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send chat completions, for which model, and with which headers (the key, for one)."""

    host: str
    port: int
    path: str = "/v1/chat/completions"
    model: str = "mock"
    headers: tuple[tuple[str, str], ...] = ()
    prompt: str = "Say something about prepaid tokens."

    def request(self, *, stream: bool) -> bytes:
        """One whole HTTP request."""
        message = {"role": "user", "content": self.prompt}
        body = json.dumps({"model": self.model, "messages": [message], "stream": stream}, separators=(",", ":"))
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.host}:{self.port}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"content-length: {len(body.encode())}", "", body]
        return "\r\n".join(lines).encode()


@dataclass(frozen=True, slots=True)
class Throughput:
    """Good answers in the measured time. `cpu_s` is what the watched processes used meanwhile."""

    answers: int
    failures: int
    seconds: float
    cpu_s: float

    @property
    def rate_per_s(self) -> float:
        return self.answers / self.seconds

    @property
    def cores(self) -> float:
        """How busy the watched processes were; below 0.95 for one process, the generator was the limit."""
        return self.cpu_s / self.seconds

    @property
    def rate_per_cpu_s(self) -> float:
        """Answers per second of the watched processes' CPU time; 0 when none was watched."""
        return self.answers / self.cpu_s if self.cpu_s else 0.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from when a request was due, not from when it was sent: waiting for a free connection counts."""

    answers: int
    failures: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class EventDelay:
    """Milliseconds from when the mock wrote an event to when it arrived here. `longest_gap_ms` is between two arrivals
    of one stream, which shows a stall."""

    streams: int
    failures: int
    events: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    longest_gap_ms: float
    cpu_s: float

    @property
    def cpu_us_per_event(self) -> float:
        return 1e6 * self.cpu_s / self.events if self.events else 0.0


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time used so far by these processes, from /proc, in steps of 10 ms. FileNotFoundError if gone."""
    ticks = 0
    for pid in pids:
        # The name in brackets may hold anything, so the fields are counted from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def closed_loop(
    target: Target, *, connections: int, seconds: float, warm_up_s: float = 0.5, pids: Sequence[int] = ()
) -> Throughput:
    """Plain completions, each connection sending its next request when the last was answered."""
    return await _closed(target, stream=False, connections=connections, times=(warm_up_s, seconds), pids=pids)


async def burst_streams(
    target: Target, *, connections: int, seconds: float, warm_up_s: float = 0.5, pids: Sequence[int] = ()
) -> Throughput:
    """Whole streams, each connection asking for its next when the last has ended."""
    return await _closed(target, stream=True, connections=connections, times=(warm_up_s, seconds), pids=pids)


async def _closed(
    target: Target, *, stream: bool, connections: int, times: tuple[float, float], pids: Sequence[int]
) -> Throughput:
    request, counts = target.request(stream=stream), [0, 0]

    def ended(_: _Wire, good: bool) -> None:
        counts[good] += 1

    warm_up_s, seconds = times
    async with _Fleet(target, connections, ready=lambda wire: wire.send(request), ended=ended):
        await asyncio.sleep(warm_up_s)
        before = tuple(counts)
        began, cpu_s = time.perf_counter(), cpu_seconds(pids)
        await asyncio.sleep(seconds)
        return Throughput(
            answers=counts[True] - before[True],
            failures=counts[False] - before[False],
            seconds=time.perf_counter() - began,
            cpu_s=cpu_seconds(pids) - cpu_s,
        )


async def open_loop(
    target: Target,
    *,
    rate_per_s: float,
    seconds: float,
    connections: int = 64,
    warm_up_s: float = 0.5,
    pids: Sequence[int] = (),
) -> Latency:
    """Plain completions at a constant rate, whether or not earlier ones were answered. TimeoutError after 30 s more."""
    skipped = round(rate_per_s * warm_up_s)
    total = skipped + round(rate_per_s * seconds)
    queue = _Queue(target.request(stream=False), total)
    async with _Fleet(target, connections, ready=queue.ready, ended=queue.ended):
        cpu_s = cpu_seconds(pids)
        _beat(queue.arrive, rate_per_s=rate_per_s, beats=total)
        async with asyncio.timeout(warm_up_s + seconds + 30):
            await queue.finished.wait()
        cpu_s = cpu_seconds(pids) - cpu_s
    spans_s = queue.spans_s[skipped:]
    measured = sorted(span for span in spans_s if not math.isnan(span))
    p50, p99, most = percentiles(measured, 1e3)
    return Latency(len(measured), len(spans_s) - len(measured), p50, p99, most, cpu_s)


class _Queue:
    """Requests that are due meet wires that are free. `spans_s` is from due to answered, nan for a failure."""

    def __init__(self, request: bytes, total: int) -> None:
        self.spans_s: list[float] = []
        self.finished = asyncio.Event()
        self._request = request
        self._total = total
        self._idle: list[_Wire] = []
        self._overdue: deque[float] = deque()
        self._under_way: dict[_Wire, float] = {}

    def arrive(self, due: float) -> None:
        while self._idle and self._idle[-1].lost:
            self._idle.pop()
        if self._idle:
            self._send(self._idle.pop(), due)
        else:
            self._overdue.append(due)

    def ready(self, wire: _Wire) -> None:
        if self._overdue:
            self._send(wire, self._overdue.popleft())
        else:
            self._idle.append(wire)

    def ended(self, wire: _Wire, good: bool) -> None:
        due = self._under_way.pop(wire)
        self.spans_s.append(time.perf_counter() - due if good else math.nan)
        if len(self.spans_s) == self._total:
            self.finished.set()

    def _send(self, wire: _Wire, due: float) -> None:
        self._under_way[wire] = due
        wire.send(self._request)


async def paced_streams(
    target: Target,
    *,
    streams: int,
    seconds: float,
    stagger_s: float = 0.005,
    warm_up_s: float = 0.5,
    pids: Sequence[int] = (),
) -> EventDelay:
    """So many streams at once, each followed by the next, their starts spread over `stagger_s`.

    The target's model must lead to one that the mock paces, such as `mock-stream-paced-5ms`.
    """
    request = target.request(stream=True)
    loop = asyncio.get_running_loop()
    watch = _EventWatch()
    counts = [0, 0]
    order = iter(range(streams))

    def ended(wire: _Wire, good: bool) -> None:
        watch.forget(wire)
        counts[good] += 1

    def ready(wire: _Wire) -> None:
        loop.call_later(stagger_s * next(order, 0) / streams, wire.send, request)

    async with _Fleet(target, streams, ready=ready, ended=ended, seen=watch.seen):
        await asyncio.sleep(stagger_s + warm_up_s)
        before = tuple(counts)
        watch.start()
        cpu_s = cpu_seconds(pids)
        await asyncio.sleep(seconds)
        cpu_s = cpu_seconds(pids) - cpu_s
        return watch.figures(streams=counts[True] - before[True], failures=counts[False] - before[False], cpu_s=cpu_s)


class _EventWatch:
    """Reads the mock's stamps as pieces of streams arrive."""

    def __init__(self) -> None:
        self._counting = False
        self._delays_ns: list[int] = []
        self._longest_gap_ns = 0
        self._rests: dict[_Wire, bytes] = {}
        self._last_ns: dict[_Wire, int] = {}

    def start(self) -> None:
        self._counting = True

    def forget(self, wire: _Wire) -> None:
        """The wire is between two streams."""
        self._rests.pop(wire, None)
        self._last_ns.pop(wire, None)

    def seen(self, wire: _Wire, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._rests.get(wire, b"") + data
        end = 0
        for stamp in _SENT_NS.finditer(data):
            end = stamp.end()
            if self._counting:
                self._delays_ns.append(now - int(stamp[1]))
                self._longest_gap_ns = max(self._longest_gap_ns, now - self._last_ns.get(wire, now))
            self._last_ns[wire] = now
        self._rests[wire] = data[end:][-_TAIL_BYTES:]

    def figures(self, *, streams: int, failures: int, cpu_s: float) -> EventDelay:
        p50, p99, most = percentiles(sorted(self._delays_ns), 1e-6)
        gap_ms = self._longest_gap_ns / 1e6
        return EventDelay(streams, failures, len(self._delays_ns), p50, p99, most, gap_ms, cpu_s)


class _Wire(asyncio.Protocol):
    """One connection with one request under way at most. `lost` once it is closed."""

    def __init__(self, fleet: _Fleet) -> None:
        self.lost = False
        self._fleet = fleet
        self._busy = False
        self._head: bytes | None = b""
        self._missing: int | None = None
        self._tail = b""
        self._good = self._closing = False

    def send(self, request: bytes) -> None:
        self._busy = True
        self._head, self._missing, self._tail = b"", None, b""
        self._transport.write(request)

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._busy:
            self._fleet.ended(self, False)
        self._fleet.gone(self)

    def data_received(self, data: bytes) -> None:
        if self._fleet.seen is not None:
            self._fleet.seen(self, data)
        if self._head is not None:
            data = self._head + data
            body = data.find(b"\r\n\r\n") + 4
            if body < 4:
                self._head = data
                return
            self._read_head(data[:body].lower())
            data = data[body:]
        if self._body_ends(data):
            self._busy = False
            self._fleet.ended(self, self._good)
            if not self._closing:
                self._fleet.ready(self)

    def _read_head(self, head: bytes) -> None:
        self._head = None
        length = _LENGTH.search(head)
        self._missing = int(length[1]) if length else None
        self._good = head.startswith(b"http/1.1 200")
        self._closing = b"\r\nconnection: close" in head

    def _body_ends(self, data: bytes) -> bool:
        if self._missing is not None:
            self._missing -= len(data)
            return self._missing <= 0
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        if not self._tail.endswith(b"\r\n0\r\n\r\n"):
            return False
        self._good = self._good and b"[DONE]" in self._tail
        return True


class _Fleet:
    """The connections of one load. A connection that closes is replaced; ConnectionError when that fails.

    `ready(wire)` is called whenever a wire can send, `ended(wire, good)` for each answer, `seen(wire, data)` for
    whatever arrives.
    """

    def __init__(
        self,
        target: Target,
        size: int,
        *,
        ready: Callable[[_Wire], None],
        ended: Callable[[_Wire, bool], None],
        seen: Callable[[_Wire, bytes], None] | None = None,
    ) -> None:
        self.ready = ready
        self.ended = ended
        self.seen = seen
        self._target = target
        self._size = size
        self._wires: set[_Wire] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> None:
        for _ in range(self._size):
            await self._connect()

    async def __aexit__(self, *problem: object) -> None:
        self._closed = True
        for wire in self._wires:
            wire.abort()
        await asyncio.gather(*self._replacing)

    def gone(self, wire: _Wire) -> None:
        self._wires.discard(wire)
        if not self._closed:
            self._replacing.add(asyncio.create_task(self._connect()))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: _Wire(self), self._target.host, self._target.port)
        self._wires.add(wire)
        if self._closed:
            wire.abort()
        else:
            self.ready(wire)


def _beat(arrive: Callable[[float], None], *, rate_per_s: float, beats: int) -> None:
    """Call `arrive(due)` on this loop at a constant rate, from a thread: timers of the loop are too coarse (1 ms)."""
    loop = asyncio.get_running_loop()

    def run() -> None:
        began = time.perf_counter()
        for number in range(beats):
            due = began + number / rate_per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                loop.call_soon_threadsafe(arrive, due)
            except RuntimeError:  # the loop was closed: the load was given up
                return

    threading.Thread(target=run, name="metronome", daemon=True).start()


def percentiles(ordered: Sequence[float], scale: float) -> tuple[float, float, float]:
    """The 50th and 99th percentile and the maximum of ordered values, times `scale`; nan of nothing."""
    if not ordered:
        return math.nan, math.nan, math.nan
    last = len(ordered) - 1
    return scale * ordered[last // 2], scale * ordered[round(last * 0.99)], scale * ordered[last]
