"""How long the product itself takes to start: `penstock serve` to its first answer, `penstock --help`, the import.

The gateway starts as an operator's does: from a configuration file, on a database that is up to date.
"""

from __future__ import annotations

import compileall
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import penstock
from bench.load import Target
from bench.processes import OWN_CORE, START_S, free_port, patience, pinned, stopped_in_the_end

PENSTOCK = (sys.executable, "-m", "penstock")
IMPORT = "import time; t = time.perf_counter(); import penstock.app; print(time.perf_counter() - t)"
ROUNDS = 5  # the first of them reads files that no cache has yet
_SAMPLE = re.compile(r"/api/openai +key (\S+)")


def startup(upstream: str) -> dict[str, float]:
    """Seconds: the start once, the others in the median of a few. What is measured is an installed package: its modules
    are compiled first, as pip does."""
    compileall.compile_dir(Path(penstock.__file__).parent, quiet=2)
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder, "penstock.toml"), free_port()
        config.write_text(_config(upstream, port))
        key = _first_start(config)
        start_s = _first_answer(config, Target("127.0.0.1", port, "/api/openai/chat/completions"), key)
    return {"start_s": start_s, "help_s": _median(_help), "import_s": _median(_import)}


def _median(once: Callable[[], float]) -> float:
    return statistics.median(once() for _ in range(ROUNDS))


def _config(upstream: str, port: int) -> str:
    return (
        f"[server]\nport = {port}\n[providers.mock]\nbase_url = '{upstream}'\n"
        "[[models]]\nid = 'mock'\noffers = [{ provider = 'mock' }]\nprice = { input = 0.055, output = 0.055 }\n"
    )


def _serve(config: Path, *options: str) -> subprocess.Popen[str]:
    command = pinned([*PENSTOCK, "serve", "--config", str(config), *options], OWN_CORE)
    return subprocess.Popen(command, cwd=config.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _first_start(config: Path) -> str:
    """Let a gateway make its database, its secrets and an account: a key of that."""
    process = _serve(config, "--sample")
    assert process.stderr is not None
    said = []
    with stopped_in_the_end(process), patience(process):
        for line in process.stderr:
            said.append(line)
            if found := _SAMPLE.search(line):
                return found[1]
    raise SystemExit("penstock serve --sample did not start:\n" + "".join(said))


def _first_answer(config: Path, target: Target, key: str) -> float:
    began = time.monotonic()
    process = _serve(config)
    with stopped_in_the_end(process):
        while not _answers(target, key):
            if process.poll() is not None or time.monotonic() - began > START_S:
                raise SystemExit("penstock serve did not start")
            time.sleep(0.002)
        return time.monotonic() - began


def _answers(target: Target, key: str) -> bool:
    """Whether a completion is answered; False while nobody listens."""
    connection = http.client.HTTPConnection(target.host, target.port, timeout=START_S)
    body = target.request(stream=False).partition(b"\r\n\r\n")[2]
    try:
        connection.request("POST", target.path, body, {"authorization": f"Bearer {key}"})
        status = connection.getresponse().status
    except ConnectionError:
        return False
    finally:
        connection.close()
    if status != http.client.OK:
        raise SystemExit(f"the first answer was {status}")
    return True


def _help() -> float:
    began = time.monotonic()
    subprocess.run(pinned([*PENSTOCK, "--help"], OWN_CORE), stdout=subprocess.DEVNULL, check=True, timeout=START_S)
    return time.monotonic() - began


def _import() -> float:
    command = pinned([sys.executable, "-c", IMPORT], OWN_CORE)
    return float(subprocess.run(command, capture_output=True, check=True, timeout=START_S).stdout)
