"""Where the upstream client sends its requests: an origin's URL taken apart, the proxy before it, whom it trusts, and
header lines that stay header lines. ValueError for what is no good; the message never repeats it.
"""

from __future__ import annotations

import os
import re
import ssl
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import certifi

from penstock.ports import Timeouts

Headers = Sequence[tuple[bytes, bytes]]

PATH = re.compile(r"[!-~]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OURS = frozenset(
    b"host content-length transfer-encoding connection accept-encoding te trailer upgrade expect keep-alive "
    b"proxy-connection".split()
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a client sends its requests, and within which limits.

    `base_url` is `http://…`, `https://…` or `http+unix://%2Fpath%2Fof%2Fsocket/…`; `unix_path` names a socket to use
    instead of the URL's host and port. `headers` go with every request. `ca_file` (PEM) is trusted besides the usual
    authorities. `proxy_url` is `http://[user:password@]host[:port]`.
    """

    base_url: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: int = 512
    proxy_url: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    unix_path: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A base URL, taken apart. `prefix` is its path and ends in a slash."""

    tls: bool
    host: str
    port: int
    prefix: str
    unix_path: str | None

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def authority(self) -> str:
        return self.bracketed if self.port == (443 if self.tls else 80) else f"{self.bracketed}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    host: str
    port: int
    headers: tuple[tuple[bytes, bytes], ...] = field(repr=False)


def site_of(origin: Origin) -> Site:
    url = urlsplit(origin.base_url)
    if url.scheme not in {"http", "https", "http+unix"}:
        raise ValueError("base_url must start with http://, https:// or http+unix://")
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError("base_url must not contain a user, a query or a fragment")
    if not url.netloc or not PATH.fullmatch(url.path):
        raise ValueError("base_url must name a host, and a path of visible ASCII characters")
    prefix = url.path.rstrip("/") + "/"
    if url.scheme == "http+unix":
        return Site(False, "localhost", 80, prefix, origin.unix_path or unquote(url.netloc))
    tls = url.scheme == "https"
    host, port = _host_and_port(origin.base_url, "base_url", default=443 if tls else 80)
    return Site(tls, host, port, prefix, origin.unix_path)


def proxy_of(proxy_url: str) -> Proxy:
    url = urlsplit(proxy_url)
    if url.scheme != "http" or url.path not in {"", "/"} or url.query or url.fragment:
        raise ValueError("proxy_url must be http://[user:password@]host[:port]")
    host, port = _host_and_port(proxy_url, "proxy_url", default=80)
    if url.username is None:
        return Proxy(host, port, ())
    credentials = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return Proxy(host, port, ((b"proxy-authorization", b"Basic " + b64encode(credentials)),))


def _host_and_port(address: str, what: str, *, default: int) -> tuple[str, int]:
    url = urlsplit(address)
    try:
        host, port = (url.hostname or "").encode("idna").decode(), url.port
    except ValueError:
        raise ValueError(f"{what} has no valid host and port") from None
    if not host or not PATH.fullmatch(host):
        raise ValueError(f"{what} has no valid host and port")
    return host, default if port is None else port


def header_lines(headers: Headers) -> bytes:
    """Header lines. ValueError for what would not stay a header or would change where the request ends."""
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise ValueError("a header name has characters that no header name has")
        if name.lower() in _OURS:
            raise ValueError(f"the header {name.decode()} belongs to the connection")
        if _CONTROL.search(value):
            raise ValueError(f"the value of the header {name.decode()} has control characters")
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def authorities(ca_file: str | None) -> ssl.SSLContext:
    """The system's authorities (`SSL_CERT_FILE` is honoured), certifi's where the system has none, and `ca_file`'s."""
    context = ssl.create_default_context()
    store = ssl.get_default_verify_paths()
    if not store.cafile and not (store.capath and os.listdir(store.capath)):
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ValueError("ca_file cannot be read as PEM certificates") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
