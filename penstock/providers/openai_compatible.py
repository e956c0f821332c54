"""A provider that speaks the OpenAI wire format over HTTP: a base URL, a key and a few headers of its own.

It adds its credentials to a call and sends it; what is in the body, and in the answer, is the dialect's business.
Nothing of the caller's request is sent but what the call holds.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from penstock import __version__
from penstock.config import ProviderSettings
from penstock.errors import ConfigError, UpstreamFailed
from penstock.ports import Answer, Call, OnCancel, Timeouts
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin

LARGEST_LIST = 16 * 1024 * 1024  # bytes: the longest list of models there is takes a few
NO_LIST = frozenset({404, 405, 501})


class OpenAICompatible:
    """Implements `ports.Provider`. ConfigError when the settings' URLs, key, headers or CA file are no good."""

    __slots__ = ("_client", "_own_names", "name", "on_cancel")

    def __init__(self, settings: ProviderSettings) -> None:
        self.name = settings.name
        self.on_cancel: OnCancel = settings.on_cancel
        try:
            headers = _headers(settings)
            self._client = Client(_origin(settings, headers))
        except ValueError as error:
            # `from None`: an encoding error carries the text it failed on, which may be the key.
            raise ConfigError([f"provider {settings.name}: {_reason(error)}"]) from None
        self._own_names = frozenset(name for name, _ in headers)

    def __repr__(self) -> str:
        return f"OpenAICompatible({self.name}, {self._client!r})"

    @property
    def open_connections(self) -> int:
        """Connections that are established, idle ones included."""
        return self._client.open_connections

    @property
    def idle_connections(self) -> int:
        """Connections kept for the next call."""
        return self._client.idle_connections

    @property
    def waiting(self) -> int:
        """Calls that wait for a connection because all are in use."""
        return self._client.waiting

    def open(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Send the call. The provider's own headers win over the call's. Errors: see `ports.Provider`."""
        headers = call.headers
        if headers:
            headers = tuple(pair for pair in headers if pair[0].lower() not in self._own_names)
        return self._client.request(call.method, call.path, headers, call.body, sent=call.sent)

    def ready(self, model: str, account: str) -> bool:
        """Whether it can be reached is not known before it is asked."""
        return True

    async def check(self) -> tuple[str, ...]:
        """Have the upstream list its models; one that keeps no list (404, 405, 501) serves all the same."""
        answer = await self.open(Call("models", b"", stream=False, method="GET"))
        try:
            if answer.status in NO_LIST:
                return ()
            if answer.status != 200:
                raise UpstreamFailed(f"The provider answered with status {answer.status}.")
            return _listed(await answer.read(LARGEST_LIST))
        finally:
            answer.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()


def _headers(settings: ProviderSettings) -> tuple[tuple[bytes, bytes], ...]:
    """What goes with every call, names in lower case. The settings' headers replace the usual ones."""
    headers = {
        b"content-type": b"application/json",
        b"user-agent": f"penstock/{__version__}".encode(),
    }
    if settings.api_key is not None:
        key = settings.api_key.encode("latin-1")
        if settings.kind == "anthropic":
            headers[b"x-api-key"] = key
        else:
            headers[b"authorization"] = b"Bearer " + key
    for name, value in settings.headers:
        headers[name.lower().encode("latin-1")] = value.encode("latin-1")
    return tuple(headers.items())


def _origin(settings: ProviderSettings, headers: tuple[tuple[bytes, bytes], ...]) -> Origin:
    return Origin(
        base_url=settings.base_url,
        timeouts=Timeouts(
            connect_s=settings.connect_timeout_s,
            first_byte_s=settings.first_byte_timeout_s,
            idle_s=settings.idle_timeout_s,
            total_s=settings.total_timeout_s,
        ),
        max_connections=settings.max_connections,
        proxy_url=settings.proxy_url,
        ca_file=settings.ca_file,
        headers=headers,
    )


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeError):
        return "its key and headers must be made of Latin characters"
    return str(error)


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Entry]


_LIST = msgspec.json.Decoder(_List | list[_Entry])  # Together's is bare


def _listed(body: bytes) -> tuple[str, ...]:
    try:
        listed = _LIST.decode(body)
        return tuple(entry.id for entry in (listed.data if isinstance(listed, _List) else listed))
    except (ValueError, RecursionError):
        raise UpstreamFailed("The provider's list of models is not one.", began=True) from None
