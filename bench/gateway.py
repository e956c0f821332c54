"""The gateway under test: everything on, one account with enough money, one key without a rate to run into.

Prints one line of JSON, `{"url": …, "key": …}`, once it takes calls. `python -m bench` starts it on a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from penstock.app import Gateway, serve
from penstock.config import (
    LimitSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    SecretSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from penstock.operations.actor import LOCAL
from penstock.operations.balances import grant_balance
from penstock.operations.keys import create_key
from penstock.operations.users import create_user

MODELS = ("mock", "mock-stream-paced-5ms", "mock-stream-paced-20ms")
PER_MINUTE = 1_000_000_000  # the rate limit is on, and out of reach


def settings(upstream: str, database: Path, synchronous: str) -> Settings:
    """One upstream, the mock's models, prices as of a small model."""
    price = PriceSettings(input=55_000_000, output=55_000_000)
    return Settings(
        secrets=SecretSettings(os.urandom(32), os.urandom(32)),
        server=ServerSettings(port=0),
        store=StoreSettings(f"sqlite:///{database}", "NORMAL" if synchronous == "NORMAL" else "FULL"),
        limits=LimitSettings(requests_per_minute=PER_MINUTE),
        providers=(ProviderSettings("mock", base_url=upstream, api_key="sk-bench-not-a-secret", max_connections=4096),),
        models=tuple(ModelSettings(name, offers=(OfferSettings("mock", name),), price=price) for name in MODELS),
    )


async def announce(gateway: Gateway, url: str) -> None:
    """Make the account and say where the gateway is."""
    office = gateway.office
    user = await create_user(office, LOCAL, name="bench")
    await grant_balance(office, LOCAL, account=user.account, usd="1000000")
    key = await create_key(office, LOCAL, kind="personal", name="bench", user=user.id, requests_per_minute=PER_MINUTE)
    print(json.dumps({"url": url, "key": key.key}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.gateway", description=__doc__)
    parser.add_argument("--upstream", required=True, help="base URL of the mock")
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL"), default="FULL")
    given = parser.parse_args()
    chosen = settings(given.upstream, given.database, given.synchronous)
    serve(chosen, reload=lambda: chosen, announce=announce)


if __name__ == "__main__":
    main()
