"""The caller leaves before the answer is complete: what becomes of the upstream call.

Upstreams differ. Some stop when the connection closes and bill the part (`stop`): the call is cancelled. Some run on
and bill all (`drain`, `full`): then the rest is read, muted, so that the charge is what the upstream counts; how many
calls may drain at once, and for how long, is limited. A `full` call that could not be drained is charged all that its
hold covers.
"""

from __future__ import annotations

import asyncio

from penstock.config import LimitSettings
from penstock.ports import OnCancel


class Drains:
    """The calls that are being read to their end for nobody."""

    def __init__(self, limits: LimitSettings) -> None:
        self.most = limits.draining_calls
        self.longest_s = limits.drain_s
        self.loop = asyncio.get_running_loop()
        self.now = 0

    def __repr__(self) -> str:
        return f"Drains({self.now} of {self.most})"


class Departure:
    """Called when the caller has gone. `on_cancel` is that of the upstream which has the call at the moment."""

    __slots__ = ("_drains", "_task", "_timer", "gone", "on_cancel")

    def __init__(self, drains: Drains) -> None:
        self._drains = drains
        self._task = asyncio.current_task(drains.loop)
        self._timer: asyncio.TimerHandle | None = None
        self.on_cancel: OnCancel = "stop"
        self.gone = False

    def __repr__(self) -> str:
        return f"Departure(gone={self.gone}, on_cancel={self.on_cancel})"

    def __call__(self) -> None:
        if self.gone or self._task is None:
            return
        self.gone = True
        if self.on_cancel == "stop" or self._drains.now >= self._drains.most:
            self._task.cancel()
        else:
            self._drains.now += 1
            self._timer = self._drains.loop.call_later(self._drains.longest_s, self._task.cancel)

    def over(self) -> None:
        """The call has ended, one way or another: nobody is cancelled any more."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._drains.now -= 1
