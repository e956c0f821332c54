"""Operations at a gateway over HTTP: the management door from the other side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_type_hints
from urllib.parse import quote

import httpx2
import msgspec

from penstock.cli.desk import RefusedThereError, UnreachableError
from penstock.errors import AuthMissing, ConfigError
from penstock.operations.index import HEADERS, Operation, operation_named
from penstock.operations.once import parse_idempotency_key
from penstock.operations.values import require_printable

ROOT = "/api/v1"
UNAVAILABLE = ("store_unavailable", "shutting_down")
_NO_ADDRESS = (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, UnicodeError)
TIMEOUT_S = 60.0  # for the slowest operation, verifying a large ledger


def perform_there(url: str, key: str | None, name: str, arguments: Mapping[str, Any]) -> Any:
    """What the gateway at `url` answers.

    RefusedThereError with its words, UnreachableError when it gives no answer that could be its own, ConfigError for a
    key that cannot be one, InvalidRequest for arguments that are refused here as well. No message repeats the key, or a
    password in the URL.
    """
    operation = operation_named(name)
    assert operation.method is not None, "commands of local operations have no --url"
    bearer = _sound(key)
    require_printable(arguments)
    in_path = re.findall(r"{(\w+)}", operation.path)
    path = operation.path.format(**{param: quote(arguments[param], safe="") for param in in_path})
    headers = {HEADERS[param]: parse_idempotency_key(value) for param, value in arguments.items() if param in HEADERS}
    rest = {param: value for param, value in arguments.items() if param not in in_path and param not in HEADERS}
    is_post = operation.method == "POST"
    try:
        response = httpx2.request(
            operation.method,
            url.rstrip("/") + ROOT + path,
            params=None if is_post else rest,
            json=rest if is_post else None,
            headers={"authorization": f"Bearer {bearer}"} | headers,
            timeout=TIMEOUT_S,
        )
        return _answer(operation, response.status_code, response.json())
    except _NO_ADDRESS:  # whose words may be a piece of a password
        raise UnreachableError(f"No gateway answers at {_shown(url)}: it is no address of one") from None
    except (httpx2.HTTPError, ValueError, RecursionError) as error:
        raise UnreachableError(f"No gateway answers at {_shown(url)}: {str(error) or type(error).__name__}") from None


def _sound(key: str | None) -> str:
    """The key as it can go into a header. AuthMissing when there is none, ConfigError when it cannot."""
    bearer = (key or "").strip()
    if not bearer:
        raise AuthMissing("A management key is needed: --key, or PENSTOCK_MANAGEMENT_KEY.")
    if not bearer.isascii() or not bearer.isprintable():
        raise ConfigError(["key: --key, or PENSTOCK_MANAGEMENT_KEY, is not one line of printable ASCII"])
    return bearer


def _shown(url: str) -> str:
    """The URL without what may be a password: all that stands before the last `@`."""
    scheme = next((each for each in ("https://", "http://") if url.startswith(each)), "")
    return scheme + url.removeprefix(scheme).rpartition("@")[2]


def _answer(operation: Operation, status: int, body: Any) -> Any:
    """The body, when it is what the operation answers. ValueError when it is nothing that a gateway says."""
    if 200 <= status < 300:
        msgspec.convert(body, get_type_hints(operation.function)["return"])
        return body
    refusal = body.get("error") if isinstance(body, dict) else None
    if not isinstance(refusal, dict) or not isinstance(refusal.get("message"), str):
        raise ValueError(f"HTTP {status} with an unknown body")
    if str(refusal.get("code")) in UNAVAILABLE:
        raise UnreachableError(refusal["message"])
    raise RefusedThereError(body)
