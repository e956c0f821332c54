"""The server's two secrets and the keys of providers: where they come from, and how missing secrets are made.

The pepper turns keys into digests and the other signs sessions, so both must outlive the process: with a new pepper no
key works any more. What the environment does not give is made once and kept beside the SQLite database, before there is
one; beside a database that was used, missing secrets are lost ones, or somebody else has them, and none are made unless
that is asked for. Processes that start together agree: the file appears under its name complete or not at all, and only
the first to link it there wins.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from penstock.config import SecretSettings
from penstock.config_tables import Mistakes
from penstock.config_value import WrongValueError

SECRETS_FILE = "penstock.secrets"
LEAST_BYTES = 32
SECRET_VARIABLES = {"key_pepper": "PENSTOCK_KEY_PEPPER", "auth_secret": "PENSTOCK_AUTH_SECRET"}
_FIRST_LINE = "# Made by Penstock on its first start. Back it up with the database: without it no key works.\n"


def given_secrets(
    environ: Mapping[str, str], store_url: str, mistakes: Mistakes, warnings: list[str]
) -> dict[str, bytes]:
    """The secrets the environment gives, as text or as the name of a file.

    Notes wrong ones, and absent ones that have no place to be kept.
    """
    found: dict[str, bytes] = {}
    for name, variable in SECRET_VARIABLES.items():
        source = f"{variable}_FILE" if environ.get(f"{variable}_FILE") else variable
        try:
            if secret := _given(environ, variable, warnings):
                found[name] = secret
            elif not store_url.startswith("sqlite:"):
                raise WrongValueError("is not set; only beside a SQLite database is it made by itself")
        except WrongValueError as error:
            mistakes.in_environment(source, str(error))
    return found


def complete_secrets(found: Mapping[str, bytes], store_url: str, warnings: list[str]) -> SecretSettings:
    """The secrets `found`, and the others from the file beside the database, which is made when neither is there yet.

    Those of a database in memory last as long as it does: they are made anew each time. WrongValueError when the file
    cannot be made or read, and when it is missing beside a database.
    """
    return _completed(found, store_url, warnings, _made_at_first)


def look_for_secrets(found: Mapping[str, bytes], store_url: str, warnings: list[str]) -> SecretSettings:
    """The same for who only looks: nothing is written, and what would be made lasts no longer than this process."""
    return _completed(found, store_url, warnings, _never_made)


def renewed_secrets(found: Mapping[str, bytes], store_url: str, warnings: list[str]) -> SecretSettings:
    """The same for who has lost the file: a new one is made beside a database that was used."""
    return _completed(found, store_url, warnings, _made_again)


def fingerprints(settings: SecretSettings) -> dict[str, str]:
    """By name, what tells a secret from others and not what it is: an HMAC with it of words that never change."""
    return {
        name: hmac.digest(getattr(settings, name), f"fingerprint of penstock {name}".encode(), "sha256").hex()
        for name in SECRET_VARIABLES
    }


def sqlite_file(store_url: str) -> Path | None:
    """The file of `sqlite:///relative.db` or `sqlite:////absolute.db`; None for one in memory or another engine."""
    path = store_url.removeprefix("sqlite:///").partition("?")[0]
    if not store_url.startswith("sqlite:///") or path in ("", ":memory:") or "mode=memory" in store_url:
        return None
    return Path(path.removeprefix("file:"))


def secret_in(path: Path, warnings: list[str]) -> bytes:
    """What a secret's file holds, without the line end; a warning when everyone can read it.

    WrongValueError when we cannot.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                warnings.append(f"{path} can be read by every user of this machine; chmod o= {path}")
            return file.read().rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        raise WrongValueError(f"names a file that cannot be read ({_reason(error)})") from error


def provider_key(written: str) -> str:
    """A provider's key as it can go into a header. WrongValueError when it cannot."""
    key = written.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise WrongValueError("holds no key: one line of printable ASCII is needed")
    return key


def _given(environ: Mapping[str, str], variable: str, warnings: list[str]) -> bytes | None:
    text, file = environ.get(variable), environ.get(f"{variable}_FILE")
    if text and file:
        raise WrongValueError(f"{variable} is set as well; one of the two is enough")
    if not text and not file:
        return None
    secret = secret_in(Path(file), warnings) if file else (text or "").encode("utf-8", "surrogateescape")
    if len(secret) < LEAST_BYTES:
        raise WrongValueError(f"must be at least {LEAST_BYTES} bytes long (try: openssl rand -hex 32)")
    return secret


def _new_secrets() -> dict[str, bytes]:
    return {name: secrets.token_bytes(LEAST_BYTES) for name in SECRET_VARIABLES}


def _completed(
    found: Mapping[str, bytes], store_url: str, warnings: list[str], make: Callable[[Path, bool], None]
) -> SecretSettings:
    """The secrets, after `make(file, whether there is a database)` has seen to it that there is a file."""
    if len(found) == len(SECRET_VARIABLES):
        return SecretSettings(**found)
    database = sqlite_file(store_url)
    if database is None:
        return SecretSettings(**(_new_secrets() | dict(found)))
    path = database.with_name(SECRETS_FILE)
    try:
        was_used = _was_used(database)  # asked first: whoever makes both makes the database last
        if not path.exists():
            make(path, was_used)
        kept = _kept_secrets(path, warnings) if path.exists() else None
    except OSError as error:
        raise WrongValueError(
            f"cannot be made ({_reason(error)}); or set {' and '.join(SECRET_VARIABLES.values())}"
        ) from error
    if kept is None and was_used:
        missing = [variable for name, variable in SECRET_VARIABLES.items() if name not in found]
        raise WrongValueError(
            "is not there, and the database beside it is: restore it, or set "
            f"{' and '.join(missing)} as the gateway has them; when they are lost, `penstock accept-secrets` makes new "
            "ones, and no key that was made with the old ones works again"
        )
    return SecretSettings(**((kept or _new_secrets()) | dict(found)))


def _was_used(database: Path) -> bool:
    """Whether anything is in the file; in one that a start has made and not filled there is nothing."""
    try:
        return database.stat().st_size > 0
    except FileNotFoundError:
        return False


def _made_at_first(path: Path, was_used: bool) -> None:
    if not was_used:
        _make_file(path)


def _never_made(path: Path, was_used: bool) -> None:
    pass


def _made_again(path: Path, was_used: bool) -> None:
    if was_used:
        _make_file(path)


def _kept_secrets(path: Path, warnings: list[str]) -> dict[str, bytes]:
    """The file's secrets."""
    try:
        kept = tomllib.loads(secret_in(path, warnings).decode())
        found = {name: bytes.fromhex(kept[name]) for name in SECRET_VARIABLES}
    except (KeyError, TypeError, ValueError) as error:
        raise WrongValueError("is not the file Penstock made; restore it, or no key works") from error
    if min(map(len, found.values())) < LEAST_BYTES:
        raise WrongValueError(f"has a secret of less than {LEAST_BYTES} bytes; restore it, or no key works")
    return found


def _make_file(path: Path) -> None:
    """Write elsewhere, then link: a link either takes the name or finds it taken, whoever else is trying."""
    text = _FIRST_LINE + "".join(f'{name} = "{value.hex()}"\n' for name, value in _new_secrets().items())
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600, opened exclusively
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
        _sync_folder(path.parent)
    except FileExistsError:
        pass  # another process was first, and its secrets are the ones
    finally:
        os.unlink(draft)


def _sync_folder(folder: Path) -> None:
    """The name too must outlive a power cut: the database may already hold digests made with the pepper."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "not a file name"
