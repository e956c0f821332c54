"""`make bench`: the gateway beside no gateway and beside nginx, in one run on one machine.

The mock upstream and the generator share one core, what is measured has the other to itself: every figure is per core.
Ratios carry over to other machines, absolute figures do not. Each figure is the median of some rounds taken in turn, so
that a noisy moment hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import load
from bench.load import Target, Throughput

LOAD_CORE, OWN_CORE = 0, 1
CONNECTIONS = 64
START_S = 20.0


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure. `pids` are the processes whose time counts."""

    name: str
    target: Target
    pids: tuple[int, ...]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL"), default="FULL")
    parser.add_argument("--store", type=Path, help="folder for the database (default: a temporary one)")
    given = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory(dir=given.store) as folder, subjects(Path(folder), given.synchronous) as found:
        print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
        print(f"SQLite synchronous={given.synchronous}, {given.rounds} rounds of {given.seconds:g} s, medians\n")
        asyncio.run(measure(found, given.seconds, given.rounds))
    return 0


@contextmanager
def subjects(folder: Path, synchronous: str) -> Iterator[list[Subject]]:
    """The mock itself, nginx where it is installed, and the gateway; all stopped in the end."""
    with started([sys.executable, "-m", "bench.mock"], LOAD_CORE) as (_, said):
        upstream = said.strip()
        direct = _target(upstream)
        found = [Subject("no gateway", direct, ())]
        command = [sys.executable, "-m", "bench.gateway", "--upstream", upstream, "--synchronous", synchronous]
        with started([*command, "--database", str(folder / "bench.db")], OWN_CORE) as (gateway, told):
            own = json.loads(told)
            ours = _target(f"{own['url']}/api/openai")
            ours = replace(ours, headers=(("authorization", f"Bearer {own['key']}"),))
            found.append(Subject("penstock", ours, (gateway.pid,)))
            nginx = shutil.which("nginx")
            if nginx is None:
                print("nginx is not installed; it is left out", file=sys.stderr)
                yield found
                return
            with proxied(nginx, folder, direct) as subject:
                yield [found[0], subject, found[1]]


@contextmanager
def started(command: Sequence[str], core: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process on a core, and the line it prints when it is ready."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        try:
            yield process, line
        finally:
            process.terminate()
            process.wait(30)
            drain.wait(5)
    finally:
        process.kill()


@contextmanager
def proxied(nginx: str, folder: Path, upstream: Target) -> Iterator[Subject]:
    """nginx as a plain proxy: the limit of what a gateway that does none of the work reaches."""
    port = upstream.port + 1
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 100000000;\n"
        f"  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n"
        f"  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"  upstream mock {{ server {upstream.host}:{upstream.port}; keepalive 512; keepalive_requests 100000000; }}\n"
        f"  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{ proxy_pass http://mock;\n"
        '    proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n'
    )
    process = subprocess.Popen(["taskset", "-c", str(OWN_CORE), nginx, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield Subject("nginx", replace(upstream, port=port), (process.pid,))
    finally:
        process.terminate()
        process.wait(10)


async def measure(found: list[Subject], seconds: float, rounds: int) -> None:
    """All measurements, printed as they come."""
    await _throughput("plain completions", found, seconds, rounds, load.closed_loop)
    await _throughput("burst streams of 62 events", found, seconds, rounds, load.burst_streams)
    print(f"{'open loop, 500 requests/s':34}{'p50 ms':>10}{'p99 ms':>10}{'added p50':>12}{'added p99':>12}")
    base: load.Latency | None = None
    for subject in found:
        seen = [
            await load.open_loop(subject.target, rate_per_s=500, seconds=seconds, pids=subject.pids)
            for _ in range(rounds)
        ]
        median = sorted(seen, key=lambda each: each.p50_ms)[rounds // 2]
        base = base or median
        added = f"{median.p50_ms - base.p50_ms:12.2f}{median.p99_ms - base.p99_ms:12.2f}"
        print(f"  {subject.name:32}{median.p50_ms:10.2f}{median.p99_ms:10.2f}{added}")
    print(f"\n{'paced streams':34}{'events':>10}{'p50 ms':>10}{'p99 ms':>10}{'longest gap':>14}{'CPU µs/event':>14}")
    for streams, model in ((100, "mock-stream-paced-5ms"), (512, "mock-stream-paced-20ms")):
        for subject in found:
            target = replace(subject.target, model=model)
            delay = await load.paced_streams(target, streams=streams, seconds=seconds, pids=subject.pids)
            cpu = f"{delay.cpu_s / max(1, delay.events) * 1e6:14.1f}" if subject.pids else f"{'':14}"
            name = f"{streams} of {model[18:]} {subject.name}"
            print(
                f"  {name:32}{delay.events:10}{delay.p50_ms:10.2f}{delay.p99_ms:10.2f}{delay.longest_gap_ms:14.1f}{cpu}"
            )


async def _throughput(
    title: str, found: list[Subject], seconds: float, rounds: int, drive: Callable[..., object]
) -> None:
    taken: dict[str, list[Throughput]] = {subject.name: [] for subject in found}
    for _ in range(rounds):
        for subject in found:
            result = await drive(  # type: ignore[misc]
                subject.target, connections=CONNECTIONS, seconds=seconds, pids=subject.pids
            )
            taken[subject.name].append(result)
    print(f"{title:34}{'per s':>10}{'per CPU-s':>12}{'failures':>10}{'of nginx':>10}")
    reference = statistics.median(each.rate_per_s for each in taken.get("nginx", taken["no gateway"]))
    for name, results in taken.items():
        rate = statistics.median(each.rate_per_s for each in results)
        busy = [each.answers / each.cpu_s for each in results if each.cpu_s]
        per_cpu = f"{statistics.median(busy):12.0f}" if busy else f"{'':12}"
        print(f"  {name:32}{rate:10.0f}{per_cpu}{sum(e.failures for e in results):10}{rate / reference:10.2f}")
    print()


def _target(url: str) -> Target:
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    return Target(host, int(port), f"/{path}/chat/completions")


if __name__ == "__main__":
    raise SystemExit(main())
