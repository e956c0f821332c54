"""Metrics as plain values, and what those of several processes come to together.

Counters and histograms are sums for ever: what a process has counted stays true when it has ended. A gauge is of now,
so it goes with its process. Collecting and rendering is `relay/observe.py`; this is arithmetic on values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure; labels as pairs."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: int | float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric and its samples. `kind` is Prometheus' type."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


Figures = tuple[Family, ...]


def add_up(parts: Iterable[Figures]) -> Figures:
    """The sum over processes, sample by sample, in the order in which they first appear."""
    found: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], int | float]] = {}
    for part in parts:
        for family in part:
            found.setdefault(family.name, family)
            rows = sums.setdefault(family.name, {})
            for sample in family.samples:
                row = sample.name, sample.labels
                rows[row] = rows.get(row, 0) + sample.value
    return tuple(
        replace(family, samples=tuple(Sample(*row, value) for row, value in sums[family.name].items()))
        for family in found.values()
    )


def lasting(figures: Figures) -> Figures:
    """What stays true of a process that has ended: all but gauges."""
    return tuple(family for family in figures if family.kind != "gauge")
