"""How a key is shown: everything but the secret, which only a new key comes with, once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from penstock.db.credentials import Credential
from penstock.operations.values import Amount, amount, show_instant


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """A key without its secret. `display` is its prefix and last characters; `models` null allows all of them.

    `state` is `active`, `expired` or `revoked`. `spent` includes what the keys minted from it have spent.
    """

    id: str
    kind: str
    name: str
    display: str
    user: str | None
    account: str | None
    parent: str | None
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    environment: str
    requests_per_minute: int
    limit: Amount | None
    spent: Amount
    held: Amount
    created: str
    last_used: str | None
    expires: str | None
    revoked: str | None
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MintedKey(KeyView):
    """A new key. `key` is the secret itself; it is never shown again."""

    key: str = field(repr=False)


def key_view(each: Credential, now_ms: int) -> KeyView:
    """A key as it stands at `now_ms`."""
    return KeyView(
        id=each.id,
        kind=each.kind,
        name=each.name,
        display=each.display,
        user=each.user_id,
        account=each.account_id,
        parent=each.parent_id,
        scopes=each.scopes,
        models=each.models,
        environment=each.environment,
        requests_per_minute=each.requests_per_minute,
        limit=None if each.limit_nano is None else amount(each.limit_nano),
        spent=amount(each.spent_nano),
        held=amount(each.held_nano),
        created=show_instant(each.created_ms),
        last_used=show_instant(each.last_used_ms),
        expires=show_instant(each.expires_ms),
        revoked=show_instant(each.revoked_ms),
        state="revoked" if each.revoked_ms is not None else "active" if each.alive(now_ms) else "expired",
    )


def minted_key(key: str, credential: Credential) -> MintedKey:
    """A key that was made just now, with its secret."""
    view = key_view(credential, credential.created_ms)
    return MintedKey(**{each.name: getattr(view, each.name) for each in fields(view)}, key=key)
