"""Figures made readable: a table for each part, and the list of bars with what was reached of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.measure import Figures
from bench.subjects import POSTGRES

NAME_WIDTH = 38
OURS = "penstock"
STALL_MS = 200  # ten times the pace of those streams

COLUMNS = (  # a table has those that one of its rows has
    ("rate_per_s", "per s", "10,.0f"),
    ("rate_per_cpu_s", "per CPU-s", "11,.0f"),
    ("cores", "cores", "7.2f"),
    ("events", "events", "10,.0f"),
    ("p50_ms", "p50 ms", "9.2f"),
    ("p99_ms", "p99 ms", "9.2f"),
    ("added_p50_ms", "added p50", "11.2f"),
    ("added_p99_ms", "added p99", "11.2f"),
    ("longest_gap_ms", "longest gap ms", "16.1f"),
    ("cpu_us_per_event", "CPU µs/event", "14.1f"),
    ("failures", "failures", "10,.0f"),
    ("of_nginx", "of nginx", "10.2f"),
    ("of_litellm", "of LiteLLM", "12.1f"),
    ("idle_mb", "idle MB", "9.1f"),
    ("loaded_mb", "after load MB", "15.1f"),
    ("mb_per_hour", "MB/hour", "10.1f"),
    ("grown_mb", "grown MB", "10.2f"),
    ("start_s", "start s", "9.2f"),
    ("help_s", "--help s", "10.2f"),
    ("import_s", "import s", "10.2f"),
)

Results = Mapping[str, Mapping[str, Figures]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure of one row, and what it has to be."""

    what: str
    part: str
    figure: str
    sign: Literal["≥", "≤"]
    gate: float
    row: str = OURS


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar that something was measured for."""

    what: str
    measured: float
    sign: Literal["≥", "≤"]
    gate: float
    reached: bool


BARS = (
    Bar("plain completions, a second and core", "plain", "rate_per_core", "≥", 10_000),
    Bar("plain completions, of nginx", "plain", "of_nginx", "≥", 0.20),
    Bar("plain completions on PostgreSQL, a second and core", "plain", "rate_per_core", "≥", 8_000, POSTGRES),
    Bar("plain completions, of LiteLLM", "plain", "of_litellm", "≥", 80),
    Bar("burst streams, a second and core", "burst", "rate_per_core", "≥", 6_000),
    Bar("added latency p50, ms", "open", "added_p50_ms", "≤", 0.5),
    Bar("added latency p99, ms", "open", "added_p99_ms", "≤", 2),
    Bar("100 paced streams: added delay p50, ms", "paced-100", "added_p50_ms", "≤", 0.1),
    Bar("100 paced streams: added delay p99, ms", "paced-100", "added_p99_ms", "≤", 2),
    Bar("100 paced streams: CPU an event, µs", "paced-100", "cpu_us_per_event", "≤", 30),
    Bar("512 paced streams: none stalls, longest gap, ms", "paced-512", "longest_gap_ms", "≤", STALL_MS),
    Bar("start to first answer, s", "process", "start_s", "≤", 0.8),
    Bar("penstock --help, s", "process", "help_s", "≤", 0.15),
    Bar("import of the serving process, s", "process", "import_s", "≤", 0.4),
    Bar("resident memory idle, MB", "process", "idle_mb", "≤", 80),
    Bar("resident memory after load, MB", "process", "loaded_mb", "≤", 130),
    Bar("memory grown in the second half of the soak, MB", "soak", "grown_mb", "≤", 1),
)


def table(title: str, rows: Mapping[str, Figures], note: str = "") -> str:
    """The rows below a title, each with the figures it has."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows.values())]
    lines = [f"{title:{NAME_WIDTH}}" + "".join(f"{head:>{_width(form)}}" for _, head, form in columns)]
    for name, row in rows.items():
        cells = [f"{row[figure]:{form}}" if figure in row else " " * _width(form) for figure, _, form in columns]
        lines.append(f"  {name:{NAME_WIDTH - 2}}" + "".join(cells).rstrip())
    if note:
        lines.append(f"  {note}")
    return "\n".join(lines) + "\n"


def judge(results: Results) -> list[Verdict]:
    """Every bar that was measured, and last whether any of our calls failed."""
    verdicts = []
    for bar in BARS:
        measured = results.get(bar.part, {}).get(bar.row, {}).get(bar.figure)
        if measured is not None:
            reached = measured >= bar.gate if bar.sign == "≥" else measured <= bar.gate
            verdicts.append(Verdict(bar.what, measured, bar.sign, bar.gate, reached))
    failed = sum(
        row.get("failures", 0) for rows in results.values() for name, row in rows.items() if name.startswith(OURS)
    )
    return [*verdicts, Verdict("calls that failed", failed, "≤", 0, failed == 0)]


def bars(verdicts: Sequence[Verdict]) -> str:
    """The list of bars."""
    lines = ["bars"]
    for each in verdicts:
        said = "reached" if each.reached else "NOT REACHED"
        lines.append(f"  {each.what:52}{_plain(each.measured):>10}   {each.sign} {_plain(each.gate):<8} {said}")
    return "\n".join(lines) + "\n"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 or number == int(number) else f"{number:.2f}"


def _width(form: str) -> int:
    return int(form.partition(".")[0].rstrip(","))
