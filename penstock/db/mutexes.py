"""SQLite without its mutexes, which nobody here needs.

As it is usually built SQLite takes a mutex for every value that it is given or gives, and for every piece of memory, so
that threads may share a connection. Ours do not: a connection is used by one thread at a time (`sqlite.py`). Without
them, and without counting its memory, a call takes hundreds of atomic operations less, some 3 % of its instructions
(docs/performance.md). SQLite calls this multi-thread mode; its driver has no word for it, so the library itself is
told.
"""

from __future__ import annotations

import _sqlite3
import ctypes

_MULTITHREAD, _MEMORY_STATUS = 2, 9  # SQLITE_CONFIG_…


def drop_mutexes() -> bool:
    """Tell SQLite, before the first connection of this process is opened, and only then. Whether it did as it was told:
    a library that is built otherwise, or hides its functions, stays as it is."""
    try:
        library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))  # the driver, and all that it is linked with
        config = library.sqlite3_config
        shut_down, initialize = library.sqlite3_shutdown, library.sqlite3_initialize
    except (OSError, AttributeError):
        return False
    config.argtypes = [ctypes.c_int]  # what comes after is variadic
    shut_down()
    refused = config(_MULTITHREAD) or config(_MEMORY_STATUS, 0)
    initialize()
    return not refused
