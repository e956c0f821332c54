"""When an upstream says that it may be asked again: `Retry-After` in seconds or as a date, and its kin in milliseconds.

Plain functions. What to make of it is decided in `attempt.py` and in `penstock/routing/health.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def wait_s(headers: Mapping[str, str], now_ms: int) -> float | None:
    """Seconds until it may be asked again, at least 0; None when it does not say so in any way that is known."""
    in_ms = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(in_ms):
        return float(in_ms) / 1000
    written = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(written):
        return float(written)
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - now_ms / 1000)
    except (ValueError, TypeError, OverflowError):
        return None
