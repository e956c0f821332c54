"""Sessions: tokens with which a person acts as a user, on the management API and the trust surface.

Where people sign in is somebody else's business. Until there is such a door, the operator issues tokens, at the
machine only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.access import SESSION_S
from penstock.db.accounts import User, find_user
from penstock.db.credentials import find_lineage
from penstock.db.program import Program
from penstock.errors import NotFound, WrongState
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.values import show_instant, within


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A token, shown once: `Authorization: Bearer <token>`."""

    user: str
    token: str = field(repr=False)
    expires: str


async def issue_session(office: Office, actor: Actor, *, user: str, seconds: int = SESSION_S) -> SessionToken:
    """Issue a session token for a user, good for `seconds` (at most seven days, which is also the default)."""
    within(seconds, "seconds", most=SESSION_S)
    found = await office.store.read(_may_have_session(user))
    now_ms = office.clock.now_ms()
    return SessionToken(found.id, office.sessions.issue(found.id, seconds), show_instant(now_ms + seconds * 1000))


def _may_have_session(user: str) -> Program[User]:
    found = yield from find_user(user)
    if found is None:
        raise NotFound("There is no such user.")
    session = yield from find_lineage(f"ses_{user}")
    if found.disabled_ms is not None or (session and session[0].revoked_ms is not None):
        raise WrongState("This user may not sign in any more: it is disabled or its session was revoked.")
    return found
