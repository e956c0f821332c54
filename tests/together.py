"""Which tests never run beside each other, when several processes share a session: all of a group go to one process.

Told here and not by marks: pytest 9.2 has no place any more where xdist 3.8 could note them, so that its `loadgroup`
does nothing and says nothing (pytest-dev/pytest-xdist#1386).
"""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "many processes and callers, which want the machine": ("test_many_processes", "test_torture", "test_workers"),
    "a store or a process that is stopped": ("test_store_faults", "test_crash", "test_chores", "test_real_engine"),
    "a gateway that is started once": ("test_langchain",),
    "a TLS server that is started once": ("test_http1_transport",),
}
GROUPS = {module: group for group, modules in TOGETHER.items() for module in modules}


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Gives out groups as a whole, the largest first, and every other test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(test: str) -> str:
    """The group that a test is in, by its node id; else it is one by itself."""
    return GROUPS.get(Path(test.partition("::")[0]).stem, test)
