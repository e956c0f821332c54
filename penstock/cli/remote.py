"""Operations at a gateway over HTTP: the management door from the other side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx2

from penstock.cli.desk import RefusedThereError, UnreachableError
from penstock.errors import AuthMissing
from penstock.operations.index import operation_named

ROOT = "/api/v1"
UNAVAILABLE = ("store_unavailable", "shutting_down")
TIMEOUT_S = 60.0  # for the slowest operation, verifying a large ledger


def perform_there(url: str, key: str | None, name: str, arguments: Mapping[str, Any]) -> Any:
    """What the gateway at `url` answers.

    RefusedThereError with its words, UnreachableError when it gives no answer that could be its own.
    """
    operation = operation_named(name)
    assert operation.method is not None, "commands of local operations have no --url"
    if key is None:
        raise AuthMissing("A management key is needed: --key, or PENSTOCK_MANAGEMENT_KEY.")
    in_path = re.findall(r"{(\w+)}", operation.path)
    path = operation.path.format(**{param: quote(arguments[param], safe="") for param in in_path})
    rest = {param: value for param, value in arguments.items() if param not in in_path}
    is_post = operation.method == "POST"
    try:
        response = httpx2.request(
            operation.method,
            url.rstrip("/") + ROOT + path,
            params=None if is_post else rest,
            json=rest if is_post else None,
            headers={"authorization": f"Bearer {key}"},
            timeout=TIMEOUT_S,
        )
        return _answer(response.status_code, response.json())
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise UnreachableError(f"No gateway answers at {url}: {str(error) or type(error).__name__}") from None


def _answer(status: int, body: Any) -> Any:
    if 200 <= status < 300:
        return body
    refusal = body.get("error") if isinstance(body, dict) else None
    if not isinstance(refusal, dict) or not isinstance(refusal.get("message"), str):
        raise ValueError(f"HTTP {status} with an unknown body")
    if refusal.get("code") in UNAVAILABLE:
        raise UnreachableError(refusal["message"])
    raise RefusedThereError(body)
