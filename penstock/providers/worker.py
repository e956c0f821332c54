"""GPU workers as one provider: whoever has dialled in and serves the model gets the call (`penstock/hub`).

Which workers there are is nobody's configuration; which of them a call may use depends on whose call it is. It does not
know what is in the body, and repeats a job only while nothing of an answer has come.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from penstock.config import ProviderSettings
from penstock.errors import UpstreamUnavailable
from penstock.hub.hub import Hub
from penstock.hub.seats import Request, Wanted
from penstock.ports import Answer, Call, OnCancel, Timeouts


class WorkerProvider:
    """Implements `ports.Provider`. A call waits for `connect_timeout_s` when all workers for it are busy."""

    __slots__ = ("_hub", "_limits", "name", "on_cancel")

    def __init__(self, settings: ProviderSettings, hub: Hub) -> None:
        self.name = settings.name
        self.on_cancel: OnCancel = settings.on_cancel
        self._hub = hub
        self._limits = Timeouts(
            connect_s=settings.connect_timeout_s,
            first_byte_s=settings.first_byte_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=settings.total_timeout_s,
        )
        hub.watch()

    def __repr__(self) -> str:
        return f"WorkerProvider({self.name}, {self._hub!r})"

    def ready(self, model: str, account: str) -> bool:
        """Whether a worker that this account may use serves the model; worth asking while a new process has not looked
        round yet."""
        return self._hub.knows(self._wanted(model, account)) or not self._hub.has_looked

    def open(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Have a worker that `call.account` may use do it. Errors: see `ports.Provider`; the first piece is here."""
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in call.headers)
        request = Request(call.path, call.body, call.method, headers, call.stream, call.sent, call.returned)
        return self._hub.open(
            self._wanted(call.model, call.account), request, self._limits, patience_s=self._limits.connect_s
        )

    def _wanted(self, model: str, account: str) -> Wanted:
        return Wanted("worker", account, model)

    async def check(self) -> tuple[str, ...]:
        """The models that connected workers serve. UpstreamUnavailable when there are no workers."""
        await self._hub.refresh()
        offers = self._hub.offers("worker")
        if not offers:
            raise UpstreamUnavailable("No worker is connected.")
        return tuple(sorted({model.id for offer in offers for model in offer.models}))

    async def close(self) -> None:
        """Nothing is its own: workers stay connected to the hub."""
