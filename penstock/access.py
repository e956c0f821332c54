"""From a credential to a caller: who asks, for which account, and what they may do.

A key is `prefix + 36 base-62 characters + 6 of CRC-32`, so a typo is told from a key without a look-up. The store
knows keys by HMAC-SHA-256 with the server's pepper: one index probe, nothing to steal. Callers are remembered for
one second; that is how long a removed membership, or what somebody wanted of routing, may live on. A revoked or expired
key is refused at once, because admission reads its row again in the same transaction that sets the money aside
(`money/books.py`).
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from dataclasses import dataclass
from typing import Literal, cast

from penstock.clock import Clock
from penstock.config import JwtSettings, KeyPrefixes
from penstock.db.credentials import Identity, NewCredential, find_session, identify_session
from penstock.db.identities import Identities
from penstock.db.ledger import Entry
from penstock.db.routing import Routing, combined
from penstock.db.store import Store
from penstock.errors import (
    AuthInvalid,
    AuthMissing,
    Forbidden,
    PaymentRequired,
    PenstockError,
    RateLimited,
    TrustMissing,
)
from penstock.money.books import Refusal, Refused
from penstock.money.limits import retry_after_s

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
BODY_CHARACTERS = 36  # 214 bits: nothing to guess, so no slow hash is needed
CHECK_CHARACTERS = 6
REMEMBER_S = 1.0
REMEMBER_MOST = 20_000
REMEMBER_CHARACTERS = 1_024  # of two headers that may be padded at will; longer ones would fill the memory
SESSION_S = 7 * 24 * 3600

Kind = Literal[
    "inference", "management", "instance", "personal", "team", "account", "worker", "tools_worker", "session"
]
KINDS: tuple[Kind, ...] = (
    "inference",
    "management",
    "instance",
    "personal",
    "team",
    "account",
    "worker",
    "tools_worker",
    "session",
)


@dataclass(frozen=True, slots=True)
class Surface:
    """Who may enter by a set of paths and whose money they spend there.

    `account_rule`: `trust` takes the account from the X-Trust header, `key` from the credential, `own` from the key's
    account or else from the user behind it. `lane` names the lane that pays when the request names none. `id_prefix`
    begins the ids of answers. `tools` says that models may be given the tools of connected workers.
    """

    name: str
    kinds: frozenset[str]
    account_rule: Literal["trust", "key", "own"]
    lane: Literal["credits", "contract"]
    id_prefix: str | None = None
    tools: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who may ask. `keys` are the credential's id and its ancestors'; `models` None allows all. `routing` is
    how keys and account want their calls routed, None when they want nothing in particular."""

    account: str
    keys: tuple[str, ...]
    kind: str
    user: str | None
    scopes: frozenset[str]
    models: frozenset[str] | None
    routing: Routing | None = None

    @property
    def credential(self) -> str:
        return self.keys[0]


class Keyring:
    """Makes keys, tells their kinds apart and digests them. Knows the pepper; shows nothing of it."""

    def __init__(self, prefixes: KeyPrefixes, pepper: bytes) -> None:
        self._pepper = pepper
        self._prefixes = {name: getattr(prefixes, name) for name in prefixes.__slots__}
        self._kinds: list[tuple[str, Kind, str]] = sorted(
            (
                (prefix, cast(Kind, name.removesuffix("_test")), "test" if name.endswith("_test") else "live")
                for name, prefix in self._prefixes.items()
            ),
            key=lambda entry: -len(entry[0]),
        )

    def __repr__(self) -> str:
        return f"Keyring({', '.join(prefix for prefix, _, _ in self._kinds)})"

    def mint(self, kind: Kind, environment: str = "live") -> str:
        """A new key. It is shown to its owner once and kept nowhere."""
        name = "management_test" if (kind, environment) == ("management", "test") else kind
        body = "".join(secrets.choice(BASE62) for _ in range(BODY_CHARACTERS))
        return f"{self._prefixes[name]}{body}{_checksum(body)}"

    def kind(self, key: str) -> tuple[Kind, str] | None:
        """`(kind, environment)` of a well-formed key; None for anything else, without a look-up."""
        for prefix, kind, environment in self._kinds:
            if key.startswith(prefix):
                body, check = key[len(prefix) : -CHECK_CHARACTERS], key[-CHECK_CHARACTERS:]
                well_formed = len(body) == BODY_CHARACTERS and key.isascii() and check == _checksum(body)
                return (kind, environment) if well_formed else None
        return None

    def digest(self, key: str) -> str:
        """The key as the store knows it, hex."""
        return hmac.digest(self._pepper, key.encode(), "sha256").hex()

    @staticmethod
    def display(key: str, prefix_length: int = 12) -> str:
        """Enough of a key for its owner to recognise it: `pen_sk_AbC…x9Zq`."""
        return f"{key[:prefix_length]}…{key[-4:]}"


def _checksum(body: str) -> str:
    value, characters = zlib.crc32(body.encode()), ""
    for _ in range(CHECK_CHARACTERS):
        value, digit = divmod(value, 62)
        characters = BASE62[digit] + characters
    return characters


class Access:
    """Admits callers, and remembers each for a second."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        sessions: Sessions,
        clock: Clock,
        requests_per_minute: int,
    ) -> None:
        self._store = store
        self._identities = Identities(store, clock)
        self._keyring = keyring
        self._sessions = sessions
        self._clock = clock
        self.requests_per_minute = requests_per_minute
        self._known: dict[tuple[str | None, str | None, str], tuple[Caller, float]] = {}

    def __repr__(self) -> str:
        return f"Access({len(self._known)} callers remembered)"

    async def admit(self, authorization: str | None, trust: str | None, surface: Surface) -> Caller:
        """The caller behind an `Authorization` header (or a bare key) on a surface.

        AuthMissing, AuthInvalid; TrustMissing and Forbidden by the surface's account rule.
        """
        credential = bearer(authorization)
        identity = await self._identify(credential, surface)
        if identity.kind not in surface.kinds:
            raise AuthInvalid()
        account = _account(identity, trust, surface)
        caller = Caller(
            account=account,
            keys=identity.keys,
            kind=identity.kind,
            user=identity.user,
            scopes=identity.scopes,
            models=identity.models,
            routing=combined((*identity.keys, account), identity.wanted),
        )
        if len(authorization or "") + len(trust or "") <= REMEMBER_CHARACTERS:
            if len(self._known) >= REMEMBER_MOST:
                self._known.clear()
            self._known[authorization, trust, surface.name] = caller, self._clock.monotonic() + REMEMBER_S
        return caller

    def remembered(self, authorization: str | None, trust: str | None, surface: Surface) -> Caller | None:
        """Whom `admit` has admitted with exactly this a moment ago."""
        known = self._known.get((authorization, trust, surface.name))
        return known[0] if known is not None and known[1] > self._clock.monotonic() else None

    async def enter(self, authorization: str | None, trust: str | None, surface: Surface) -> Caller:
        """`admit` for a request that spends nothing: it counts against the key's rate limit. RateLimited."""
        caller = self.remembered(authorization, trust, surface) or await self.admit(authorization, trust, surface)
        outcome = await self._store.commit(Entry(caller.keys))
        if isinstance(outcome, Refused):
            raise refusal(outcome)
        return caller

    async def _identify(self, credential: str, surface: Surface) -> Identity:
        if credential.count(".") == 2 and credential.startswith("ey"):
            identity = await self._identify_session(credential) if "session" in surface.kinds else None
        elif self._keyring.kind(credential):
            identity = await self._identities.of(self._keyring.digest(credential))
        else:
            identity = None
        if identity is None:
            raise AuthInvalid()
        return identity

    async def _identify_session(self, token: str) -> Identity | None:
        """Whose token it is. Only the first good one of a user is written down: who is refused costs no write."""
        user = self._sessions.user(token)
        if user is None:
            return None
        now_ms = self._clock.now_ms()
        identity, is_new = await self._store.read(find_session(f"ses_{user}", user, now_ms))
        if not is_new:
            return identity
        session = NewCredential(
            id=f"ses_{user}",
            kind="session",
            name="session",
            display="session",
            digest=None,
            user_id=user,
            account_id=None,
            scopes=("inference", "management"),
            created_ms=now_ms,
            requests_per_minute=self.requests_per_minute,
        )
        return await self._store.write(identify_session(session, now_ms))


class Sessions:
    """JSON Web Tokens for people: HS256 with the server's secret, seven days."""

    def __init__(self, settings: JwtSettings, secret: bytes, clock: Clock) -> None:
        self._settings = settings
        self._secret = secret
        self._clock = clock

    def __repr__(self) -> str:
        return f"Sessions({self._settings!r})"

    def issue(self, user: str, seconds: int = SESSION_S) -> str:
        """A token that says: this is `user`, until `seconds` from now."""
        from joserfc import jwt  # noqa: PLC0415 -- slow to import, needed for sessions only
        from joserfc.jwk import OctKey  # noqa: PLC0415

        now = self._clock.now_ms() // 1000
        claims = {
            "iss": self._settings.issuer,
            "aud": self._settings.audience,
            "sub": user,
            "iat": now,
            "exp": now + seconds,
        }
        return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(self._secret))

    def user(self, token: str) -> str | None:
        """Whose token this is; None when its signature, time, issuer or audience is not right."""
        from joserfc import jwt  # noqa: PLC0415
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jwk import OctKey  # noqa: PLC0415

        try:
            decoded = jwt.decode(token, OctKey.import_key(self._secret), algorithms=["HS256"])
            issued = decoded.claims.pop("iat", 0)  # it need not be past: a clock may have been set back
            if not isinstance(issued, int):
                return None
            jwt.JWTClaimsRegistry(
                now=self._clock.now_ms() // 1000,
                iss={"essential": True, "value": self._settings.issuer},
                aud={"essential": True, "value": self._settings.audience},
                sub={"essential": True},
                exp={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError, TypeError, RecursionError):
            return None
        subject = decoded.claims["sub"]
        return subject if isinstance(subject, str) else None


def refusal(refused: Refused) -> PenstockError:
    """The ledger's no, as an error that doors render."""
    match refused.why:
        case Refusal.KEY_INVALID:
            return AuthInvalid()
        case Refusal.RATE_LIMITED:
            return RateLimited(retry_after_s=retry_after_s(refused.wait_us))
        case Refusal.KEY_LIMIT:
            return PaymentRequired("The spending limit of this key does not cover this request.")
        case Refusal.HELD:
            return PaymentRequired("Other requests in flight hold what is left of the balance. Try again shortly.")
        case Refusal.NO_FUNDS | Refusal.GONE:
            return PaymentRequired()


def bearer(authorization: str | None) -> str:
    """The credential in an `Authorization` header; the scheme in any case. AuthMissing when there is none."""
    if not authorization:
        raise AuthMissing()
    scheme, _, credential = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise AuthMissing()
    return credential.strip()


def _account(identity: Identity, trust: str | None, surface: Surface) -> str:
    """Whose money is spent. It is never said whether an account exists that the caller may not use."""
    if surface.account_rule == "trust":
        if not trust:
            raise TrustMissing()
        allowed = {identity.account} if identity.account else identity.accounts
        if trust not in allowed:
            raise Forbidden()
        return trust
    account = identity.account or (identity.own_account if surface.account_rule == "own" else None)
    if account is None:
        raise AuthInvalid()
    return account
