"""The surfaces, as data: where they are, who may enter, whose money is spent, how errors look.

A surface is a row. Below this table nothing knows which document a call came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.access import Surface

MESSAGES = ("/messages", "/messages/count_tokens")
OPENAI_PERSON = frozenset({"account", "session"})


@dataclass(frozen=True, slots=True)
class Shape:
    """How errors of one kind look on a surface: `type`, `code`, and the status where it is not the kind's own.

    `message` takes the place of the kind's own message; an error that says more than that keeps its words.
    """

    type: str
    code: str | None
    status: int | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A surface and its paths: what is served below each of its prefixes, and whatever begins with a path that ends in
    a slash. `shapes` says where its errors differ from the common ones of its `envelope` (`errors.py`)."""

    surface: Surface
    prefixes: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: dict[str, Shape]
    envelope: Literal["openai", "anthropic"] = "openai"


TRUST = Place(
    Surface("trust", OPENAI_PERSON, account_rule="trust", lane="credits", id_prefix="cmpl-"),
    ("/v1",),
    ("/chat/completions", "/completions", "/responses", "/embeddings", *MESSAGES, "/models", "/balance", "/usage"),
    {
        "auth_missing": Shape("auth_error", "auth_error"),
        "auth_invalid": Shape("auth_error", "auth_error"),
        "payment_required": Shape("billing_error", "billing_error"),
    },
)
FORWARD = Place(
    Surface("forward", frozenset({"inference"}), account_rule="key", lane="contract"),
    ("/api/v1/gateway/v1",),
    ("/chat/completions", "/embeddings", "/models"),
    {
        "auth_missing": Shape("authentication_error", "invalid_api_key"),
        "auth_invalid": Shape("authentication_error", "invalid_api_key"),
        "model_unknown": Shape("invalid_request_error", "model_not_mapped"),
        "payment_required": Shape(
            "insufficient_compute_balance", "payment_required", message="Insufficient compute token balance"
        ),
    },
)
ROUTER = Place(
    Surface("router", frozenset({"personal", "team"}), account_rule="own", lane="credits", tools=True),
    ("/api/openai", "/api/openai/v1"),
    ("/chat/completions", "/completions", "/responses", "/embeddings", "/models"),
    {"model_unknown": Shape("invalid_request_error", "model_not_found", status=404)},
)
ANTHROPIC = Place(
    ROUTER.surface,
    ("/api/anthropic", "/api/anthropic/v1"),
    (*MESSAGES, "/models"),
    {"model_unknown": Shape("invalid_request_error", "model_not_found", status=404)},
    envelope="anthropic",
)
PLACES = (TRUST, FORWARD, ROUTER, ANTHROPIC)
