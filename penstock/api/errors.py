"""Errors, rendered: one taxonomy (`penstock/errors.py`), one envelope a dialect, wording by surface.

An envelope is a function from an error to `(status, body)`; it is told the surface's own shapes and the request's id.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from penstock.api.surfaces import Shape
from penstock.dialects.anthropic_errors import error_type
from penstock.errors import PenstockError, UpstreamRefused

COMMON: dict[str, Shape] = {
    "auth_missing": Shape("authentication_error", "invalid_api_key"),
    "auth_invalid": Shape("authentication_error", "invalid_api_key"),
    "trust_missing": Shape("invalid_request_error", "missing_trust"),
    "forbidden": Shape("permission_error", "forbidden"),
    "invalid_request": Shape("invalid_request_error", None),
    "model_missing": Shape("invalid_request_error", "missing_model"),
    "model_unknown": Shape("invalid_request_error", "model_not_found"),
    "payment_required": Shape("billing_error", "payment_required"),
    "not_found": Shape("not_found", "not_found"),
    "method_not_allowed": Shape("invalid_request_error", "method_not_allowed"),
    "wrong_state": Shape("conflict", "conflict"),
    "too_large": Shape("invalid_request_error", "too_large"),
    "rate_limited": Shape("rate_limit_error", "rate_limit_exceeded"),
    "upstream_failed": Shape("upstream_error", "upstream_failed"),
    "upstream_unavailable": Shape("upstream_error", "upstream_unavailable"),
    "no_healthy_provider": Shape("upstream_error", "no_healthy_provider"),
    "upstream_timeout": Shape("upstream_error", "upstream_timeout"),
    "upstream_refused": Shape("invalid_request_error", None),
    "not_implemented": Shape("not_implemented", "not_implemented"),
    "store_unavailable": Shape("internal_error", "store_unavailable"),
    "shutting_down": Shape("internal_error", "shutting_down"),
    "crowded": Shape("internal_error", "crowded"),
    "internal": Shape("internal_error", "internal_error"),
}


Render = Callable[[PenstockError, dict[str, Shape], str], tuple[int, bytes]]


def render_openai(error: PenstockError, shapes: dict[str, Shape], id: str = "") -> tuple[int, bytes]:
    """OpenAI's envelope; all four fields are always there. It has no place for an id."""
    shape = shapes.get(error.kind) or COMMON[error.kind]
    status = _status(error, shape)
    envelope = {
        "message": shape.message if shape.message and _says_no_more(error) else error.message,
        "type": shape.type,
        "code": error.code or shape.code,
        "param": error.param,
    }
    return status, json.dumps({"error": envelope}, ensure_ascii=False).encode()


def render_anthropic(error: PenstockError, shapes: dict[str, Shape], id: str) -> tuple[int, bytes]:
    """Anthropic's envelope: a type by kind, and the request's id."""
    status = _status(error, shapes.get(error.kind) or COMMON[error.kind])
    words = {"type": error_type(error.kind), "message": error.message}
    return status, json.dumps({"type": "error", "error": words, "request_id": id}, ensure_ascii=False).encode()


RENDER: dict[str, Render] = {"openai": render_openai, "anthropic": render_anthropic}


def _status(error: PenstockError, shape: Shape) -> int:
    return error.refused_status if isinstance(error, UpstreamRefused) else shape.status or error.status


def _says_no_more(error: PenstockError) -> bool:
    """Whether an error has just its kind's own message."""
    return error.message == type(error)().message
