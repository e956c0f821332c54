"""What `penstock serve` says when it takes calls; with `--sample`, an account to try it with, a new key each time.

A key is made only when it is asked for: the output of a gateway that a machine starts is no place for one.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import typer

from penstock.cli.sample import KEY_HOURS, Sample, open_sample

if TYPE_CHECKING:
    from penstock.app import Gateway
    from penstock.catalogue import Catalogue

SAMPLE_TOKENS = 10_000  # of each contract: enough for many trials


async def welcome(gateway: Gateway, url: str) -> None:
    """Print the address on standard error; standard output is for the log of requests."""
    typer.echo(f"Penstock serves at {url}  (management API: {url}/docs)", err=True)


async def welcome_with_sample(gateway: Gateway, url: str) -> None:
    """Print the address, and how to make a first call on each surface."""
    await welcome(gateway, url)
    sample = await open_sample(gateway.office, contract_tokens=SAMPLE_TOKENS)
    typer.echo(_invitation(gateway.office.catalogue, url, sample), err=True)


def _invitation(catalogue: Catalogue, url: str, sample: Sample) -> str:
    return "\n".join(
        [
            f"A sample account has some credit, and these keys for {KEY_HOURS} hours:",
            "",
            f"  base URL {url}/api/openai              key {sample.router_key}",
            f"  base URL {url}/v1                      key {sample.trust_key}   header X-Trust: {sample.account}",
            f"  base URL {url}/api/v1/gateway/v1       key {sample.forward_key}",
            "",
            f"  {_command(catalogue, url, sample.router_key)}",
            "",
        ]
    )


def _command(catalogue: Catalogue, url: str, key: str) -> str:
    """A call of the first model that the key can pay for."""
    chats = (model for model in catalogue.listed("router") if model.kind == "chat" and model.priced)
    model = next((model.name_on("router") for model in chats), "MODEL")
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    headers = (f"authorization: Bearer {key}", "content-type: application/json")
    words = [f"{url}/api/openai/chat/completions", *(word for each in headers for word in ("-H", each)), "-d", body]
    return shlex.join(["curl", *words])
