"""Figures that are counted on the hot path: plain integers here, Prometheus' own types only when somebody looks.

The client library takes a lock and checks its labels at every increment, ten times a call; that was a tenth of what a
call costs. Here a call adds to a few integers of its row, on the event loop alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

Families = Iterable[CounterMetricFamily | HistogramMetricFamily]


class Counters(Collector):
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

    def collect(self) -> Families:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        yield family


class Buckets(Collector):
    """A histogram of seconds. `bounds` are the upper ends of its buckets, rising."""

    __slots__ = ("_bounds", "_counts", "_help", "_name", "_sum_s")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def __repr__(self) -> str:
        return f"Buckets({self._name}, {sum(self._counts)} observed)"

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Families:
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(self._name, self._help)
        family.add_metric([], buckets, self._sum_s)
        yield family
