"""Names for things: `req_`, `acc_`, `usr_`, `key_`, `lot_` … and nothing secret (see access.py for keys).

An id is a prefix, the time in milliseconds and 80 random bits, both in hexadecimal: ids sort by age, so a new row
lands at the end of its index. Random bits come from the operating system in blocks, one system call per 256 ids.
"""

from __future__ import annotations

import os
import time

RANDOM_BYTES = 10
IDS_PER_BLOCK = 256


class IdMaker:
    """Makes ids. One per process; not thread-safe: used on the event loop."""

    __slots__ = ("_block", "_used")

    def __init__(self) -> None:
        self._block = ""
        self._used = 0

    def __repr__(self) -> str:
        return f"IdMaker({(len(self._block) - self._used) // (2 * RANDOM_BYTES)} ids in the block)"

    def new(self, prefix: str) -> str:
        """An id such as `req_019a8f…`: prefix, underscore, 12 digits of time, 20 random ones."""
        begin = self._used
        if begin == len(self._block):
            self._block = os.urandom(IDS_PER_BLOCK * RANDOM_BYTES).hex()
            begin = 0
        self._used = end = begin + 2 * RANDOM_BYTES
        return f"{prefix}_{time.time_ns() // 1_000_000:012x}{self._block[begin:end]}"
