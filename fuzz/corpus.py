"""Corpora as the repository keeps them: an input a line, base 64, the smallest that reach all that is reached."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "corpus"
MOST, LONGEST = 250, 1_500  # inputs and bytes: enough to go everywhere, little enough to read and to replay


def pack(name: str, corpus: Path) -> None:
    """Reduce a corpus to what reaches something the others do not, and write it down."""
    with tempfile.TemporaryDirectory() as reduced:
        merge = [sys.executable, "-m", "fuzz.one", name, reduced, str(corpus), "-merge=1"]
        subprocess.run(merge, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        inputs = sorted((path.read_bytes() for path in Path(reduced).iterdir()), key=lambda each: (len(each), each))
    KEPT.mkdir(exist_ok=True)
    lines = [b64encode(each).decode() for each in inputs if len(each) <= LONGEST][:MOST]
    (KEPT / f"{name}.txt").write_text("\n".join(lines) + "\n")


def kept(name: str) -> Iterator[bytes]:
    """The inputs that are kept for a target."""
    path = KEPT / f"{name}.txt"
    if path.exists():
        yield from map(b64decode, path.read_text().split())
