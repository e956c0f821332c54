"""What Anthropic calls our kinds of error, in a refusal and inside a stream alike."""

from __future__ import annotations

_TYPES = {
    "auth_missing": "authentication_error",
    "auth_invalid": "authentication_error",
    "trust_missing": "invalid_request_error",
    "forbidden": "permission_error",
    "invalid_request": "invalid_request_error",
    "model_missing": "invalid_request_error",
    "model_unknown": "not_found_error",
    "payment_required": "billing_error",
    "not_found": "not_found_error",
    "method_not_allowed": "invalid_request_error",
    "wrong_state": "invalid_request_error",
    "too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "upstream_refused": "invalid_request_error",
    "upstream_unavailable": "overloaded_error",
    "no_healthy_provider": "overloaded_error",
    "upstream_timeout": "timeout_error",
    "not_implemented": "not_implemented",
    "store_unavailable": "overloaded_error",
    "shutting_down": "overloaded_error",
    "crowded": "overloaded_error",
}


def error_type(kind: str) -> str:
    """The type for a kind of `penstock/errors.py`; `api_error` for what is our own fault or an upstream's."""
    return _TYPES.get(kind, "api_error")
