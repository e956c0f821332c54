"""Who acts, and on what: every operation is told, and asks before it shows or changes anything.

Two questions. *Scope*: is this kind of operation allowed at all (`index.perform` asks). *Account*: is this one the
actor's (the operation asks). Of accounts that are not the actor's nothing is told, not even that they exist: unknown
and foreign are both NotFound.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from penstock.access import Caller
from penstock.db.accounts import memberships_of_user
from penstock.errors import Forbidden, NotFound
from penstock.operations.office import Office

Scope = Literal["inference", "read", "management", "operator", "local"]
IMPLIED: dict[str, frozenset[str]] = {
    "management": frozenset({"read"}),
    "operator": frozenset({"read", "management"}),
    "local": frozenset({"read", "management", "operator"}),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who manages. `sees` and `manages` are accounts, None means all of them.

    A member of a team sees it, an owner manages it; a management key manages its account. `key` is the id of the
    credential, `child` tells one that was minted from another.
    """

    scopes: frozenset[str]
    sees: frozenset[str] | None
    manages: frozenset[str] | None
    user: str | None = None
    key: str | None = None
    child: bool = False

    def may(self, scope: str) -> bool:
        """Whether operations of this scope are allowed."""
        return scope in covered(self.scopes)

    @property
    def everywhere(self) -> bool:
        """Whether this is the operator, whose every account is."""
        return self.manages is None

    def check_sees(self, account: str) -> None:
        """NotFound unless the account may be looked at."""
        if self.sees is not None and account not in self.sees:
            raise NotFound("There is no such account.")

    def check_manages(self, account: str) -> None:
        """NotFound unless the account may be looked at, Forbidden unless it may be changed."""
        self.check_sees(account)
        if self.manages is not None and account not in self.manages:
            raise Forbidden("Only an owner of the account may do this.")

    def check_governs(self, account: str) -> None:
        """The same for what is the account's own: its members, its rules. Forbidden for a child key as well, which what
        it changed there would outlive."""
        self.check_manages(account)
        if self.child:
            raise Forbidden(
                "A key that was minted from another changes neither the members nor the rules of an account."
            )

    def check_line(self, lineage: Collection[str]) -> None:
        """Forbidden for a child key unless it is among these, which are a key and those that it was minted from."""
        if self.child and self.key not in lineage:
            raise Forbidden("A key that was minted from another mints, changes and revokes only keys of its own line.")


LOCAL = Actor(frozenset({"local"}), sees=None, manages=None)
"""Whoever can read the server's secrets and its database: the operator at the machine."""


def covered(scopes: frozenset[str]) -> frozenset[str]:
    """`scopes` and all that they include."""
    return scopes.union(*(IMPLIED.get(scope, frozenset()) for scope in scopes))


def handed_on(scopes: frozenset[str]) -> frozenset[str]:
    """Of these scopes what a key that is minted from another may have. `operator` stays with the key that was given it,
    for users, accounts and grants that a child made would outlive it; a child of such a key manages its account."""
    return scopes - {"operator"} | {"management"} if "operator" in scopes else scopes


async def actor_of(office: Office, caller: Caller) -> Actor:
    """The actor behind an admitted management key or session."""
    sees: frozenset[str] | None
    manages: frozenset[str] | None
    child = len(caller.keys) > 1
    scopes = handed_on(caller.scopes) if child else caller.scopes
    if "operator" in scopes:
        sees = manages = None
    elif caller.user is not None:
        theirs = await office.store.read(memberships_of_user(caller.user))
        sees = frozenset(each.account_id for each in theirs)
        manages = frozenset(each.account_id for each in theirs if each.role == "owner")
    else:
        sees = manages = frozenset({caller.account})
    return Actor(scopes, sees, manages, caller.user, caller.credential, child)
