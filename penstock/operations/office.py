"""What operations work with: the store, the settings, the upstreams and whatever makes keys, tokens, ids and the time.

`penstock/app.py` builds it and hands it to the doors. When the configuration is read again, `settings` and
`catalogue` are replaced here; an operation under way keeps what it has read.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.access import Keyring, Sessions
from penstock.catalogue import Catalogue
from penstock.clock import Clock
from penstock.config import Settings
from penstock.db.store import Store
from penstock.hub.hub import Hub
from penstock.ids import IdMaker
from penstock.routing.pulse import Pulse
from penstock.routing.upstreams import Upstreams


@dataclass(slots=True)
class Office:
    """The desk every operation sits down at."""

    store: Store
    settings: Settings
    catalogue: Catalogue
    keyring: Keyring
    sessions: Sessions
    clock: Clock
    ids: IdMaker
    upstreams: Upstreams
    pulse: Pulse
    hub: Hub
