"""Figures that are counted on the hot path: plain integers, which become metrics only when somebody looks.

The client library of Prometheus takes a lock and checks its labels at every increment, ten times a call; that was a
tenth of what a call costs. Here a call adds to a few integers of its row, on the event loop alone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from penstock.figures import Family, Figures, Sample


class Counters:
    """A counter by labels."""

    __slots__ = ("_help", "_labels", "_name", "counts")

    def __init__(self, name: str, help: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self.counts: dict[tuple[str, ...], int] = {}

    def __repr__(self) -> str:
        return f"Counters({self._name}, {len(self.counts)} rows)"

    def add(self, labels: tuple[str, ...], amount: int = 1) -> None:
        """Count `amount` more; `labels` in the order they were named."""
        self.counts[labels] = self.counts.get(labels, 0) + amount

    def collect(self) -> Figures:
        """What has been counted."""
        samples = (
            Sample(f"{self._name}_total", tuple(zip(self._labels, labels, strict=True)), count)
            for labels, count in self.counts.items()
        )
        return (Family(self._name, "counter", self._help, tuple(samples)),)


class Gauges:
    """Figures by labels that somebody else keeps, read when metrics are."""

    __slots__ = ("_help", "_labels", "_name", "_read")

    def __init__(
        self, name: str, help: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self._read = read

    def __repr__(self) -> str:
        return f"Gauges({self._name})"

    def collect(self) -> Figures:
        """What the figures are now."""
        samples = (
            Sample(self._name, tuple(zip(self._labels, labels, strict=True)), value)
            for labels, value in self._read().items()
        )
        return (Family(self._name, "gauge", self._help, tuple(samples)),)


class Calls:
    """Calls that held money, and what they used: one row of integers for those that have all their labels in common."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str, str, str], list[int]] = {}

    def __repr__(self) -> str:
        return f"Calls({len(self.rows)} rows)"

    def add(self, labels: tuple[str, str, str, str, str], input_tokens: int, output_tokens: int, nano: int) -> None:
        """One call more. The labels are surface, model, provider, lane and ending."""
        row = self.rows.get(labels)
        if row is None:
            row = self.rows[labels] = [0, 0, 0, 0]
        row[0] += 1
        row[1] += input_tokens
        row[2] += output_tokens
        row[3] += nano

    def collect(self) -> Figures:
        """What has been counted, and added up."""
        requests = Counters(
            "penstock_requests",
            "Calls that held money, by how they ended.",
            ("surface", "model", "provider", "ended"),
        )
        tokens = Counters("penstock_tokens", "Tokens used.", ("model", "provider", "direction"))
        cost = Counters("penstock_cost_nano_usd", "What calls cost, in nano-USD.", ("model", "lane"))
        for (surface, model, provider, lane, ended), (calls, input_tokens, output_tokens, nano) in self.rows.items():
            requests.add((surface, model, provider, ended), calls)
            tokens.add((model, provider, "input"), input_tokens)
            tokens.add((model, provider, "output"), output_tokens)
            cost.add((model, lane), nano)
        return (*requests.collect(), *tokens.collect(), *cost.collect())


class Buckets:
    """A histogram of seconds. `bounds` are the upper ends of its buckets, rising.

    `observe(seconds)` only notes them, and `sort` puts all that was noted into the buckets at once.
    """

    __slots__ = ("_bounds", "_counts", "_help", "_name", "_noted", "_sum_s", "observe")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0
        self._noted: list[float] = []
        self.observe = self._noted.append

    def __repr__(self) -> str:
        return f"Buckets({self._name}, {sum(self._counts) + len(self._noted)} observed)"

    def sort(self) -> None:
        """Put what has been observed into the buckets."""
        noted, below = self._noted, 0
        noted.sort()
        self._sum_s += sum(noted)
        for place, bound in enumerate((*self._bounds, math.inf)):
            within = bisect_right(noted, bound)
            self._counts[place] += within - below
            below = within
        noted.clear()

    def collect(self) -> Figures:
        """How many took at most as long as each bound, all of them, and their sum."""
        self.sort()
        samples, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            samples.append(Sample(f"{self._name}_bucket", (("le", bound),), total))
        samples += [Sample(f"{self._name}_count", (), total), Sample(f"{self._name}_sum", (), self._sum_s)]
        return (Family(self._name, "histogram", self._help, tuple(samples)),)


class Gauge:
    """A figure that is read when somebody looks."""

    __slots__ = ("_help", "_labels", "_name", "_read")

    def __init__(self, name: str, help: str, read: Callable[[], float], labels: Mapping[str, str]) -> None:
        self._name = name
        self._help = help
        self._read = read
        self._labels = tuple(labels.items())

    def __repr__(self) -> str:
        return f"Gauge({self._name})"

    def collect(self) -> Figures:
        """What it is now."""
        return (Family(self._name, "gauge", self._help, (Sample(self._name, self._labels, self._read()),)),)
