"""The gateway under test: everything on, one account with enough money, one key without a rate to run into.

Prints one line of JSON, `{"url": …, "key": …}`, once it takes calls. `python -m bench` starts it on a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace

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

PER_MINUTE = 1_000_000_000  # the rate limit is on, and out of reach
PRICE = PriceSettings(input=55_000_000, output=55_000_000)  # as of a small model
FREE = PriceSettings(free=True)
OFFERS = (  # model, provider, its name there, price
    ("mock", "mock", "mock", PRICE),
    ("mock-free", "mock", "mock", FREE),
    ("mock-tls", "mock-tls", "mock", PRICE),
    ("mock-stream-paced-5ms", "mock", "mock-stream-paced-5ms", PRICE),
    ("mock-stream-paced-20ms", "mock", "mock-stream-paced-20ms", PRICE),
)


def settings(store: StoreSettings, upstream: str, tls_upstream: str, ca_file: str) -> Settings:
    """The mock, over TCP and over TLS, and its models."""
    common = ProviderSettings("mock", base_url=upstream, api_key="sk-bench-not-a-secret", max_connections=4096)
    return Settings(
        secrets=SecretSettings(os.urandom(32), os.urandom(32)),
        server=ServerSettings(port=0),
        store=store,
        limits=LimitSettings(requests_per_minute=PER_MINUTE),
        providers=(common, replace(common, name="mock-tls", base_url=tls_upstream, ca_file=ca_file)),
        models=tuple(
            ModelSettings(name, offers=(OfferSettings(provider, there),), price=price)
            for name, provider, there, price in OFFERS
        ),
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
    parser.add_argument("--tls-upstream", required=True, help="base URL of the mock, over TLS")
    parser.add_argument("--ca-file", required=True, help="the mock's certificate")
    parser.add_argument("--store", required=True, metavar="URL", help="sqlite:///… or postgresql://…")
    parser.add_argument("--synchronous", choices=("EXTRA", "FULL", "NORMAL"), default="FULL")
    given = parser.parse_args()
    store = StoreSettings(given.store, given.synchronous)
    chosen = settings(store, given.upstream, given.tls_upstream, given.ca_file)
    serve(chosen, reload=lambda: chosen, announce=announce)


if __name__ == "__main__":
    main()
