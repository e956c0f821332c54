"""One target in this process, under the fuzzer: `python -m fuzz.one TARGET CORPUS [flags of libFuzzer]`.

The modules named by the target are instrumented when they are imported, so nothing of Penstock may be imported before.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

INSTRUMENTED = {  # by target; not in `targets.py`, which imports what has to be instrumented first
    "chat_request": ("penstock.dialects",),
    "embeddings_request": ("penstock.dialects",),
    "plain_answer": ("penstock.dialects",),
    "stream": ("penstock.dialects",),
    "upstream": ("penstock.providers.http1", "penstock.providers.origin"),
    "wire": ("penstock.api",),
    "credential": ("penstock.access", "joserfc"),
    "configuration": ("penstock.config", "penstock.config_file", "penstock.config_tables", "penstock.config_value",
                      "penstock.config_checks", "penstock.toml_lines", "tomllib"),
}  # fmt: skip


def main() -> None:
    name, corpus, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=list(INSTRUMENTED[name])):
        target = importlib.import_module("fuzz.targets").TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)
    check = target.open()

    def one(said: bytes) -> None:
        check(said)

    atheris.Setup([sys.argv[0], corpus, *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
