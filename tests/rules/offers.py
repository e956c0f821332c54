"""Offers for tables: everything about them is usual but what a row is about."""

from __future__ import annotations

from typing import Any

from penstock.catalogue import Offer
from penstock.money.prices import Price


def offer(provider: str, kind: str = "cloud", *, model: str = "m", price: int = 100, **fields: Any) -> Offer:
    """An offer at a provider of class `kind`; `price` is nano-USD per million tokens, in and out alike."""
    usual: dict[str, Any] = {
        "price": Price(price, price, price, price),
        "limit_field": "max_tokens",
        "ask_usage": True,
        "speaks": ("openai_chat",),
        "model_id": model,
        "provider_class": kind,
        "accounts": frozenset(),
        "context_length": None,
        "capabilities": frozenset({"tools", "images", "json_schema"}),
        "max_output_tokens": None,
    }
    return Offer(provider=provider, model=model, **(usual | fields))
