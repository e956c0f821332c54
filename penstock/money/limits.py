"""The rate limit: GCRA, one integer of state a key.

`tat_us` is the theoretical arrival time: when the bucket will be full again. A burst of a whole minute's allowance is
let through at once, after that the allowance refills evenly. A `tat_us` two minutes ahead cannot come from requests:
the clock was set back since, and it is not waited for, which could take years.
"""

from __future__ import annotations

MINUTE_US = 60_000_000


def arrive(tat_us: int, now_us: int, per_minute: int) -> tuple[int, int]:
    """One request arrives: `(new tat_us, 0)` when it may pass, `(tat_us, microseconds to wait)` when not."""
    interval = MINUTE_US // per_minute or 1
    burst = interval * per_minute
    if tat_us > now_us + 2 * MINUTE_US:
        tat_us = now_us + burst - interval  # room for this request and no new burst
    full = (tat_us if tat_us > now_us else now_us) + interval
    wait = full - now_us - burst
    return (full, 0) if wait <= 0 else (tat_us, wait)


def retry_after_s(wait_us: int) -> int:
    """Whole seconds for the `Retry-After` header, 1 to 60."""
    return min(60, max(1, -(-wait_us // 1_000_000)))
