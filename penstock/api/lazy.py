"""The application behind the door, built when first asked for: its framework takes half a second to import."""

from __future__ import annotations

import asyncio
import importlib

from penstock.access import Access
from penstock.api.asgi import App, Receive, Scope, Send
from penstock.operations.office import Office


class Lazy:
    """Stands for `management.build(office, access)`; the import runs in a thread, so that streams do not stall."""

    def __init__(self, office: Office, access: Access) -> None:
        self._office = office
        self._access = access
        self._building: asyncio.Task[App] | None = None

    def __repr__(self) -> str:
        return f"Lazy(built={self._building is not None and self._building.done()})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._building is None:
            self._building = asyncio.create_task(self._build())
        app = await asyncio.shield(self._building)
        await app(scope, receive, send)

    async def _build(self) -> App:
        try:
            management = await asyncio.to_thread(importlib.import_module, "penstock.api.management")
            app: App = management.build(self._office, self._access)
        except BaseException:
            self._building = None  # whoever asks next tries anew
            raise
        return app
