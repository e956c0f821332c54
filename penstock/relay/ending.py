"""How a call can end. Every usage record names one of these."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from penstock.errors import InvalidRequest, PenstockError, UpstreamError, UpstreamRefused, UpstreamTimeout


class Ending(StrEnum):
    """Closed, and written to the store: add, never rename. Recovery adds `crash` for what it had to settle."""

    ANSWER = "answer"
    MONEY = "money"
    CALLER_GONE = "caller_gone"
    SHUTDOWN = "shutdown"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UPSTREAM_FAILED = "upstream_failed"
    FAULT = "fault"


def ending_of(error: BaseException, *, caller_gone: bool) -> tuple[Ending, int]:
    """The ending, and the status for the record, of a call that an exception ended. 499 is a caller that left."""
    if isinstance(error, asyncio.CancelledError):
        return (Ending.CALLER_GONE, 499) if caller_gone else (Ending.SHUTDOWN, 503)
    if isinstance(error, UpstreamRefused):
        return Ending.REFUSED, error.refused_status
    if isinstance(error, InvalidRequest):  # a field that no offer's dialect has anything for
        return Ending.REFUSED, error.status
    if isinstance(error, UpstreamTimeout):
        return Ending.TIMEOUT, error.status
    if isinstance(error, UpstreamError):
        return Ending.UPSTREAM_FAILED, error.status
    return Ending.FAULT, error.status if isinstance(error, PenstockError) else 500
