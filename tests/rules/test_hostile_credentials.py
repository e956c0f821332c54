"""Credentials made up, altered or signed by somebody else: none is taken, and none is a fault."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.access import KINDS, Keyring, Sessions, bearer
from penstock.clock import Clock
from penstock.config import JwtSettings, KeyPrefixes
from penstock.errors import AuthMissing
from penstock.log import Redactor

SECRET = b"s" * 32
CLOCK = Clock.starting_at("2027-01-01T00:00:00Z")
NOW = CLOCK.now_ms() // 1000
SESSIONS = Sessions(JwtSettings(), SECRET, CLOCK)
ELSEWHERE = Sessions(JwtSettings(), b"e" * 32, CLOCK)
KEYRING = Keyring(KeyPrefixes(), b"p" * 32)
CLAIMS: dict[str, Any] = {"iss": "penstock", "aud": "penstock", "sub": "usr_1", "iat": NOW, "exp": NOW + 86_400}
HS256 = {"alg": "HS256"}


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def token(header: Any, claims: Any, *, key: bytes = SECRET, digest: str = "sha256") -> str:
    """A token signed with `key`; header and claims are JSON, or bytes as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    message = ".".join(map(encoded, parts))
    return f"{message}.{encoded(hmac.digest(key, message.encode(), digest))}"


def unsigned(header: Any) -> str:
    return token(header, CLAIMS).rpartition(".")[0] + "."


VALUES: dict[str, list[Any]] = {
    "exp": [None, "x", float("inf"), float("nan"), -1, 0, True, False, [], {}, NOW, str(NOW + 100)],
    "iat": [None, "x", [], float("inf")],
    "nbf": [NOW + 80_000, "x", None, []],
    "sub": [None, 5, [], "", {}, True],
    "iss": [None, 5, ["penstock"], "penstock ", {}],
    "aud": [None, 5, ["x"], "penstock2", {}, [5]],
}
FORGED = {
    "alg none": unsigned({"alg": "none"}),
    "alg None": unsigned({"alg": "None"}),
    "alg nOnE": token({"alg": "nOnE"}, CLAIMS),
    "no alg": token({}, CLAIMS),
    "HS256 without a signature": unsigned(HS256),
    "HS384": token({"alg": "HS384"}, CLAIMS, digest="sha384"),
    "HS512": token({"alg": "HS512"}, CLAIMS, digest="sha512"),
    "RS256": token({"alg": "RS256"}, CLAIMS),
    "ES256": token({"alg": "ES256"}, CLAIMS),
    "hs256": token({"alg": "hs256"}, CLAIMS),
    "alg in a list": token({"alg": ["HS256"]}, CLAIMS),
    "alg in an object": token({"alg": {"HS256": 1}}, CLAIMS),
    "an empty key": token(HS256, CLAIMS, key=b""),
    "another key": token(HS256, CLAIMS, key=b"t" * 32),
    "the key it brings along": token({**HS256, "jwk": {"kty": "oct", "k": encoded(b"t" * 32)}}, CLAIMS, key=b"t" * 32),
    "a key elsewhere": token({**HS256, "jku": "http://127.0.0.1:9/", "kid": "a"}, CLAIMS, key=b"t" * 32),
    "a certificate": token({**HS256, "x5c": ["AAAA"], "x5u": "http://127.0.0.1:9/"}, CLAIMS, key=b"t" * 32),
    "a kid that is a path": token({**HS256, "kid": "../../../dev/null"}, CLAIMS, key=b""),
    "a kid that is a query": token({**HS256, "kid": "x' UNION SELECT 'tttt"}, CLAIMS, key=b"t" * 32),
    "a kid that is no text": token({**HS256, "kid": {"a": 1}}, CLAIMS, key=b"t" * 32),
    "unencoded payload": token({**HS256, "b64": False, "crit": ["b64"]}, CLAIMS),
    "unknown critical header": token({**HS256, "crit": ["x"], "x": 1}, CLAIMS),
    "compressed": token({**HS256, "zip": "DEF"}, CLAIMS),
    "a header of another type": token([], CLAIMS),
    "a deep header": token(b'{"alg":"HS256","x":' + b"[" * 1_400 + b"]" * 1_400 + b"}", CLAIMS),
    "a deeper header": token(b"[" * 3_000, CLAIMS),
    "a header with a long number": token(b'{"alg":"HS256","x":' + b"9" * 5_000 + b"}", CLAIMS),
    "a header that is no text": token(b'{"alg":"\xff"}', CLAIMS),
    "deep claims": token(HS256, b"[" * 3_000),
    "claims of another type": token(HS256, []),
    "claims that are null": token(HS256, None),
    "four parts": token(HS256, CLAIMS) + ".x",
    "five parts": token(HS256, CLAIMS) + ".x.y",
    "two parts": token(HS256, CLAIMS).rpartition(".")[0],
    "padding": token(HS256, CLAIMS) + "=",
    "a space": token(HS256, CLAIMS) + " ",
    "beyond ASCII": token(HS256, CLAIMS) + "\xff",
    "nothing": "ey..",
    **{f"{name} {value!r}": token(HS256, CLAIMS | {name: value}) for name, some in VALUES.items() for value in some},
    **{
        f"no {name}": token(HS256, {k: v for k, v in CLAIMS.items() if k != name})
        for name in ("iss", "aud", "sub", "exp")
    },
}


def no_credential(header: bytes) -> None:
    """No `Authorization` header that we have not signed names anybody, and none is a fault."""
    try:
        credential = bearer(header.decode("latin-1"))
    except AuthMissing:
        return
    KEYRING.kind(credential)
    KEYRING.digest(credential)
    assert ELSEWHERE.user(credential) is None


@given(
    st.binary(max_size=200) | st.sampled_from(sorted(FORGED.values())).map(lambda forged: b"Bearer " + forged.encode())
)
def test_no_header_names_anybody(header: bytes) -> None:
    no_credential(header)


@pytest.mark.parametrize("name", FORGED)
def test_a_token_that_is_not_ours_names_nobody(name: str) -> None:
    assert SESSIONS.user(FORGED[name]) is None


def test_a_token_of_ours_names_somebody_whatever_its_header_says_of_keys() -> None:
    assert SESSIONS.user(SESSIONS.issue("usr_1")) == "usr_1"
    for header in (HS256, {**HS256, "typ": "JWT"}, {**HS256, "kid": "../../dev/null"}):
        assert SESSIONS.user(token(header, CLAIMS)) == "usr_1"


@given(st.integers(0, 400), st.text(st.characters(codec="latin-1"), max_size=4))
def test_no_part_of_a_token_can_be_another(place: int, other: str) -> None:
    good = token(HS256, CLAIMS)
    at = place % len(good)
    bad = good[:at] + other + good[at + len(other) :]
    assert SESSIONS.user(bad) in (None, "usr_1")
    assert SESSIONS.user(bad) is None or _bits(bad) == _bits(good)


def _bits(jwt: str) -> list[bytes]:
    """What the parts stand for: the last character of base 64 has bits that stand for nothing."""
    return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in jwt.split(".")]


@given(st.text(max_size=100), st.text(max_size=100))
@example("Bearer", "")
@example("bearer\t", "x")
@example("", "Bearer x")
@example("Bearer ", " x y ")
def test_a_header_holds_one_credential_or_none(scheme: str, rest: str) -> None:
    try:
        credential = bearer(f"{scheme} {rest}")
    except AuthMissing:
        return
    assert credential
    assert credential in f"{scheme} {rest}"
    assert f"{scheme} {rest}".strip()[:6].lower() == "bearer"


@given(st.sampled_from([kind for kind in KINDS if kind != "session"]), st.integers(0, 60), st.text(max_size=3))
def test_a_key_with_anything_changed_is_none(kind: Any, place: int, other: str) -> None:
    key = KEYRING.mint(kind)
    assert KEYRING.kind(key) == (kind, "live")
    at = place % len(key)
    for bad in (key[:at] + other + key[at + len(other) :], key + other, other + key, key[:at]):
        assert bad == key or KEYRING.kind(bad) is None


@given(st.text(max_size=80))
@example("user." + "A" * 42)
@example("user." + "\u0660" * 42)
@example("pen_sk_")
def test_no_text_is_a_key_by_chance(text: str) -> None:
    assert KEYRING.kind(text) is None


@pytest.mark.parametrize("secret", ['pass"word\\with/marks', "p\u00e4ss-w\u00f6rd-\U0001f511", "a\tb\x7fc-123"])
def test_a_secret_is_masked_as_it_stands_in_json_as_well(secret: str) -> None:
    redact = Redactor([secret])
    for written in (secret, json.dumps(secret), json.dumps({"said": f"<{secret}>"})):
        assert "[redacted]" in redact(written)
        assert json.dumps(secret)[1:-1] not in redact(written)
