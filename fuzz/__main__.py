"""Coverage-guided fuzzing, bounded in time: `python -m fuzz [--seconds N] [TARGET …]`, or `make fuzz`.

Each target runs in a process of its own for so many seconds and keeps what it learned in `.fuzz/TARGET`, where the next
run begins. What breaks a property is written to `.fuzz/found`, its name and traceback are printed, and the exit code is
1. `--pack` writes the corpora, reduced, to `tests/corpus`, which the tests replay.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fuzz.corpus import pack
from fuzz.targets import ROOT, TARGETS

HOME = ROOT / ".fuzz"
FOUND = HOME / "found"
WORDS = Path(__file__).with_name("words.dict")
MEMORY_MB = 2_048
INPUT_BYTES = 4_096
START_S = 60  # for a process to import and to read its corpus


@dataclass(frozen=True)
class Run:
    """What a run came to: executions, edges of the program that were seen, inputs kept, and inputs that broke it."""

    executions: int
    edges: int
    kept: int
    broke: tuple[str, ...]


def main() -> int:
    options = _options()
    print(f"{'target':20}{'executions':>12}{'a second':>10}{'edges':>8}{'corpus':>8}{'findings':>10}")
    found = 0
    for name in options.target or TARGETS:
        run = fuzz(name, options.seconds, options.seed)
        rate = run.executions // options.seconds
        print(f"{name:20}{run.executions:>12,}{rate:>10,}{run.edges:>8,}{run.kept:>8,}{len(run.broke):>10}", flush=True)
        found += len(run.broke)
        if options.pack:
            pack(name, HOME / name, TARGETS[name].open())
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="default: all of them")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer's own dice")
    parser.add_argument("--pack", action="store_true", help="write the corpora to tests/corpus")
    return parser.parse_args()


def fuzz(name: str, seconds: int, seed: int) -> Run:
    """Fuzz one target in a process of its own."""
    corpus = HOME / name
    corpus.mkdir(parents=True, exist_ok=True)
    FOUND.mkdir(exist_ok=True)
    before = set(FOUND.iterdir())
    flags = [
        f"-max_total_time={seconds}", f"-seed={seed}", f"-artifact_prefix={FOUND}/{name}-", "-print_final_stats=1",
        f"-rss_limit_mb={MEMORY_MB}", f"-max_len={INPUT_BYTES}", "-timeout=20", f"-dict={WORDS}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "fuzz.one", name, str(corpus), *flags]
    done = subprocess.run(
        command, cwd=ROOT, timeout=seconds + START_S * 5, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    said = done.stdout.decode(errors="replace")
    broke = tuple(sorted(path.name for path in set(FOUND.iterdir()) - before))
    if done.returncode or broke:
        print(said[-4_000:])
        broke = broke or ("it ended badly",)
    return Run(
        _last(said, r"stat::number_of_executed_units: +(\d+)"), _last(said, r"cov: (\d+)"), _count(corpus), broke
    )


def _last(said: str, pattern: str) -> int:
    return int((re.findall(pattern, said) or ["0"])[-1])


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
