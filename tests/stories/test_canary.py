"""No secret turns up anywhere: database, write-ahead log, logs, error bodies, metrics, documentation.

A real process is given secrets that are easy to find, and a hard time; then everything it has written is searched.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import Table

from penstock.app import open_office
from penstock.config_file import load
from penstock.db.schema import metadata
from penstock.operations.actor import LOCAL
from penstock.operations.child_keys import create_child_key
from penstock.operations.keys import revoke_key
from penstock.operations.office import Office
from penstock.operations.sessions import issue_session
from tests.engines import is_postgres
from tests.ledger import rows_of
from tests.stories.gateway import FORWARD, HELLO, ROUTER, TRUST, plain_client, running
from tests.upstream import Hang, Plain, Raw, Refusal, Script, ScriptedUpstream, Stream, Wire

ROOT = Path(__file__).parents[2]
PEPPER = "canary-pepper-5d1f0c9e8b7a6d5c4b3a2f1e"
AUTH_SECRET = "canary-auth-secret-91b2c3d4e5f60718293a"
UPSTREAM_KEY = "canary-upstream-key-77f0a1b2c3d4e5f6"
FOREIGN_KEY = "sk-proj-canary0123456789abcdefghij"  # somebody else's key, sent here by mistake
VARIABLES = {
    "PENSTOCK_KEY_PEPPER": PEPPER,
    "PENSTOCK_AUTH_SECRET": AUTH_SECRET,
    "PENSTOCK_PROVIDER_MAIN_API_KEY": UPSTREAM_KEY,
}
CONFIG = """
[health]
failures = 0
[server]
port = 0
grace_s = 1
[store]
url = "{store_url}"
[providers.main]
base_url = "{upstream}"
first_byte_timeout_s = 0.2
[[contracts]]
id = "TOKENS"
name = "Tokens"
price = 0.2
minimum_tokens = 1
expires = 2099-01-01
[[models]]
id = "canary"
offers = [{{ provider = "main" }}]
price = {{ input = 1, output = 1 }}
contract = "TOKENS"
"""


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The URL of `penstock serve`, and a list that gets all it prints."""
    said: list[bytes] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | VARIABLES
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock", "serve", "--config", str(config), cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while b"serves at " not in (line := await process.stdout.readline()):
            assert line, b"".join(said)
            said.append(line)
        yield line.split(b"serves at ")[1].split()[0].decode(), said
        process.send_signal(signal.SIGTERM)
        said.append(await process.stdout.read())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Visitor:
    """Somebody who calls the process at `url` and keeps everything that comes back."""

    http: httpx2.AsyncClient
    account: str
    seen: list[str] = field(default_factory=list)

    async def send(
        self, method: str, path: str, key: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        sent = {"authorization": f"Bearer {key}", "x-trust": self.account} | dict(headers or {})
        answer = await self.http.request(method, path, content=json.dumps(body), headers=sent)
        self.seen.append(f"{answer.text} {answer.headers}")

    async def chat(
        self, base: str, key: str, *, stream: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        body = {"model": "canary", "messages": HELLO, "stream": stream}
        await self.send("POST", f"{base}/chat/completions", key, body, headers)


async def test_no_secret_turns_up_in_anything_that_is_written_or_said(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = tmp_path / "penstock.toml"
    config.write_text(CONFIG.format(store_url=store_url, upstream=upstream.base_url))
    settings = load(config, VARIABLES)
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1", tokens=1_000, contract="TOKENS")
        poor = await gateway.person()
        child = await create_child_key(gateway.office, LOCAL, key=ada.personal_key.id, name="child")
        management = await gateway.key("management", account=ada.account, scopes=["operator"])
        session = (await issue_session(gateway.office, LOCAL, user=ada.user)).token
    keys = (ada.account_key, ada.inference_key, ada.personal_key, poor.personal_key, child, management)
    secrets = [*VARIABLES.values(), FOREIGN_KEY, session, session.rpartition(".")[2], *(key.key for key in keys)]
    bad_stream = misbehave(upstream, f"Bad key {UPSTREAM_KEY}, {child.key}, {FOREIGN_KEY} and {session}.")

    async with serving(config) as (url, said), plain_client(base_url=url) as http:
        visitor = Visitor(http, ada.account)
        await visitor.chat(TRUST, ada.account_key.key, headers={"idempotency-key": "once"})
        await visitor.chat(FORWARD, ada.inference_key.key, stream=True)
        await visitor.chat(TRUST, session)
        for stream in bad_stream:
            await visitor.chat(ROUTER, child.key, stream=stream)
        await visitor.chat(ROUTER, poor.personal_key.key)
        for wrong in (FOREIGN_KEY, ada.inference_key.key, management.key, session, child.key[:-1], UPSTREAM_KEY):
            await visitor.chat(ROUTER, wrong, headers={"x-payment-lane": child.key, "cookie": wrong})
            await visitor.send("GET", f"/v1/{wrong}", wrong)
            await visitor.send("GET", f"/api/v1/keys?account={wrong}", wrong)
        for noun in ("accounts", "keys", "users", "usage", "usage/summary", "models", "ledger/verification", "nothing"):
            await visitor.send("GET", f"/api/v1/{noun}", management.key)
        await visitor.send("POST", f"/api/v1/keys/{child.key}/children", management.key, {"name": "child"})
        for path in ("/metrics", "/openapi.json", "/docs", "/health", "/health/db", "/api/v1/config", "/v1/models"):
            await visitor.send("GET", path, ada.account_key.key)
        async with open_office(settings) as office:
            await revoke_key(office, LOCAL, key=child.id)
            await visitor.chat(ROUTER, child.key)
            written = files(tmp_path) | {
                table.name: await contents(office, table) for table in metadata.tables.values()
            }
    assert len(upstream.requests) == 3 + len(bad_stream)
    assert any(name.endswith("-wal") for name in written) == (not is_postgres(store_url))
    assert len(written["usage_records"]) > 1_000
    written |= {f"{name} afterwards": content for name, content in files(tmp_path).items()}
    written |= {"the log": b"".join(said), "what callers saw": "\n".join(visitor.seen).encode()}
    assert b'"event":"call"' in written["the log"]
    assert b"[redacted]" in written["the log"]
    assert b"[redacted]" in written["what callers saw"]
    found = [(place, secret) for place, content in written.items() for secret in secrets if holds(content, secret)]
    assert found == []


def misbehave(upstream: ScriptedUpstream, leak: str) -> list[bool]:
    """Have the upstream answer three calls well, then say `leak` in every way; whether to stream each of those."""
    error: dict[str, Any] = {"message": leak, "code": UPSTREAM_KEY, "param": UPSTREAM_KEY}
    body = json.dumps({"error": error}).encode()
    bad: list[tuple[Script, bool]] = [
        (Raw(body, status=400), False),
        (Raw(body, status=401), False),
        (Raw(body), False),
        (Stream(tokens=2, error=error), True),
        (Refusal(500, leak), False),
        (Wire(leak.encode()), False),
        (Raw(leak.encode(), content_type=f"text/{UPSTREAM_KEY}"), True),
        (Stream(break_after=1), True),
        (Hang(), False),
    ]
    upstream.script(Plain(), Stream(), Plain(), *(script for script, _ in bad))
    return [stream for _, stream in bad]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def contents(office: Office, table: Table) -> bytes:
    """Every row of a table."""
    return repr(await office.store.read(rows_of(table))).encode()


def holds(content: bytes, secret: str) -> bool:
    """Whether a secret is in there, as it is, in hexadecimal or in base 64."""
    plain = secret.encode()
    forms = (plain, plain.hex().encode(), base64.b64encode(plain).rstrip(b"="), base64.urlsafe_b64encode(plain[:30]))
    return any(form in content for form in forms)


async def test_no_object_shows_a_secret_when_it_is_printed(
    tmp_path: Path, store_url: str, upstream: ScriptedUpstream
) -> None:
    config = tmp_path / "penstock.toml"
    config.write_text(CONFIG.format(store_url=store_url, upstream=upstream.base_url))
    settings = load(config, VARIABLES)
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        token = await issue_session(gateway.office, LOCAL, user=ada.user)
        parts = [
            settings, settings.secrets, settings.providers, gateway.gateway, gateway.office, gateway.office.keyring,
            gateway.office.sessions, gateway.gateway.relay, gateway.gateway.relay.attempts, ada, token,
            gateway.gateway.relay.attempts.providers,
        ]  # fmt: skip
        shown = repr(parts)
    for secret in (PEPPER, AUTH_SECRET, UPSTREAM_KEY, ada.personal_key.key, token.token):
        assert secret not in shown
