"""Corpora as the repository keeps them: an input a line, base 64, smallest first.

Kept are the inputs that take a step which no smaller one takes, and some of the rest.
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "corpus"
MOST, LONGEST = 150, 1_500  # inputs and bytes: enough to go everywhere, little enough to read and to replay
WATCHED = ("/penstock/", "/joserfc/")

Step = tuple[str, int, int]


def pack(name: str, corpus: Path, check: Callable[[bytes], object]) -> None:
    """Write down the inputs of a corpus that are worth keeping."""
    inputs = sorted((path.read_bytes() for path in corpus.iterdir()), key=lambda each: (len(each), each))
    needed: list[bytes] = []
    others: list[bytes] = []
    known: set[Step] = set()
    for said in inputs:
        if len(said) <= LONGEST:
            steps = reached(check, said)
            (others if steps <= known else needed).append(said)
            known |= steps
    more = max(MOST - len(needed), 1)
    chosen = sorted([*needed[:MOST], *others[:: max(len(others) // more, 1)][:more]], key=len)
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.txt").write_text("".join(f"{b64encode(each).decode()}\n" for each in chosen))


def reached(check: Callable[[bytes], object], said: bytes) -> set[Step]:
    """Each step from one line to the next that an input takes in the modules that are watched."""
    steps: set[Step] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not any(part in name for part in WATCHED):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    sys.settrace(enter)
    try:
        check(said)
    finally:
        sys.settrace(None)
    return steps


def kept(name: str) -> Iterator[bytes]:
    """The inputs that are kept for a target."""
    yield from map(b64decode, (KEPT / f"{name}.txt").read_text().split())
