"""What a part comes to: one row each, a table at the end, and the first violations as they are found."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

MOST_SHOWN = 10  # violations of a row; the rest are counted
COLUMNS = ("part", "engine", "size", "what was asserted", "seen", "violations", "seconds", "seed")


@dataclass(slots=True)
class Row:
    """A row group's line. `seed` is the first history's; `seen` are figures that are no violation."""

    part: str
    engine: str
    asserted: str
    seed: int
    histories: int = 0
    calls: int = 0
    shape: str = ""  # options that a history's size depends on
    seen: dict[str, int | str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def found(self, violations: Iterable[str], *, seed: int) -> None:
        """Note violations, and say how to see them again."""
        for words in violations:
            self.violations.append(words)
            if len(self.violations) <= MOST_SHOWN:
                part = self.part.split()[0]
                again = f"python -m torture {part} --engine {self.engine} --seed {seed} --histories 1{self.shape}"
                print(f"VIOLATION in {self.part} on {self.engine}, seed {seed}: {words}\n  {again}", file=sys.stderr)

    @contextmanager
    def history(self, seed: int) -> Iterator[None]:
        """A history that breaks down is a violation, and the others go on."""
        try:
            yield
        except Exception as error:
            self.found([f"the history came to no end: {''.join(traceback.format_exception(error))}"], seed=seed)

    def add(self, name: str, count: int = 1) -> None:
        """Count something that was seen."""
        self.seen[name] = int(self.seen.get(name, 0)) + count

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def cells(self) -> tuple[str, ...]:
        size = f"{self.histories:,} histories, {self.calls:,} calls"
        seen = ", ".join(f"{name} {value}" for name, value in self.seen.items())
        seeds = f"{self.seed}" if self.histories < 2 else f"{self.seed} to {self.seed + self.histories - 1}"
        counts = (f"{len(self.violations)}", f"{self.seconds:.0f}", seeds)
        return (self.part, self.engine, size, self.asserted, seen, *counts)


def exit_code(rows: Sequence[Row]) -> int:
    """1 when a law was broken in any row."""
    return 1 if any(row.violations for row in rows) else 0


def rendered(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS, tuple("--:" if name in ("violations", "seconds", "seed") else "---" for name in COLUMNS)]
    lines += [row.cells() for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
