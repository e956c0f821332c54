"""The built-in tool `web_fetch`: a page of the public internet as text.

One hop at a time: resolve, check (`addresses.py`), connect to the checked address with the name in `Host` and in TLS;
a redirect is a new hop and is checked anew. No proxy, no cookies, no credentials; size, time and the number of hops
are bounded. HTML is reduced to its text, which is what a model can use; this is no browser and runs no scripts.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import ssl
import zlib
from collections.abc import Mapping
from html import unescape
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import certifi
import httpx2
from msgspec import Struct

from penstock import __version__
from penstock.toolbox.addresses import AddressRefused, Resolver, SystemResolver, target
from penstock.toolbox.settings import WebFetchSettings
from penstock.toolbox.source import ToolError, arguments_as, cut, schema_of
from penstock.tools import Tool, ToolResult

NAME = "web_fetch"
MOST_HOPS = 6  # the page and five redirects
LONGEST_URL = 4_096
PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TEXTS = (
    "text/",
    "application/json",
    "application/xml",
    "application/xhtml",
    "application/javascript",
    "application/x-",
)
SILENT = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
BLOCKS = re.compile(
    "address|article|aside|blockquote|br|dd|div|dl|dt|figure|footer|form|h[1-6]|header|hr|li|main|nav|ol|p|pre|section"
    "|table|tr|ul"
)
# What browsers read, by Python's names. Others take time squared (punycode), fail, or make what is no text.
CODECS = frozenset(
    ["ascii", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic"]
    + ["gbk", "gb2312", "gb18030", "big5", "big5hkscs", "euc_jp", "iso2022_jp", "shift_jis", "cp932", "euc_kr", "cp949"]
    + ["cp866", "cp874", *(f"cp{number}" for number in range(1250, 1259))]
    + [f"iso8859-{number}" for number in (*range(1, 12), *range(13, 17))]
)

_TAG = re.compile(r"<!--|<[!?]|</?([A-Za-z][A-Za-z0-9]*)")
_SPACE = re.compile(r"\s+")
_NO_CHARACTER = re.compile("&#(?:[xX][0-9a-fA-F]{9,}|[0-9]{9,});?")  # and too long to be read as a number


class _Wanted(Struct, forbid_unknown_fields=True):
    url: str


class _Page(Struct, frozen=True):
    url: str
    status: int
    kind: str
    body: bytes
    whole: bool


class WebFetch:
    """Implements `source.Source`."""

    def __init__(self, settings: WebFetchSettings, resolve: Resolver | None = None) -> None:
        self._settings = settings
        self._resolve = resolve or SystemResolver()
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"WebFetch({self._settings!r})"

    def tools(self) -> tuple[Tool, ...]:
        schema = schema_of(_Wanted, url="The address of the page, beginning with http:// or https://.")
        return (Tool(NAME, "Fetch a page from the public internet and return it as text.", schema),)

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        wanted = arguments_as(_Wanted, arguments)
        try:
            page = await self._follow(wanted.url, within_s)
        except AddressRefused as error:
            raise ToolError(str(error)) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ToolError(f"The page could not be fetched ({type(error).__name__}).") from None
        text = await asyncio.to_thread(self._shown, page)  # seconds, for a large page
        return ToolResult(text, failed=page.status >= 400)

    def _shown(self, page: _Page) -> str:
        if not page.kind.startswith(TEXTS):
            raise ToolError(f"The page is of type {page.kind[:100] or 'unknown'}, which is not text.")
        text = page.body.decode(_charset(page.kind), "replace")
        if "html" in page.kind:
            text = text_of(text)
        ending = "" if page.whole else f"\n[cut: more than {self._settings.max_bytes} bytes]"
        return cut(f"{page.url} (status {page.status})\n\n{text}", self._settings.max_text_bytes) + ending

    async def _follow(self, url: str, within_s: float) -> _Page:
        for _ in range(MOST_HOPS):
            found = await self._hop(url, within_s)
            if isinstance(found, _Page):
                return found
            url = found
        raise ToolError(f"The page redirects more than {MOST_HOPS - 1} times.")

    async def _hop(self, url: str, within_s: float) -> _Page | str:
        """The page, or where it says to look."""
        scheme, place, path = _parts(url)
        where = await target(place.host, place.port, self._resolve, self._settings.allow)
        async with self._client(within_s) as client:
            request = client.build_request(
                "GET",
                f"{scheme}://{_bracketed(where.address)}:{where.port}{path}",
                headers={
                    "host": _authority(scheme, place),
                    "user-agent": f"penstock-tools/{__version__}",
                    "accept": "text/html, text/plain, application/json;q=0.9, */*;q=0.5",
                    "accept-encoding": "gzip, identity;q=0.5",
                },
                extensions={"sni_hostname": where.host},
            )
            response = await client.send(request, stream=True)
            try:
                location = response.headers.get("location")
                if response.status_code in REDIRECTS and location:
                    return _joined(url, location)
                body, whole = await self._read(response)
                kind = response.headers.get("content-type", "").lower()
                return _Page(url, response.status_code, kind, body, whole)
            finally:
                await response.aclose()

    def _client(self, within_s: float) -> httpx2.AsyncClient:
        """A client for one hop: a kept connection of another name at the same address is never used."""
        if self._tls is None:
            self._tls = ssl.create_default_context()  # the system's authorities, or those of SSL_CERT_FILE
            store = ssl.get_default_verify_paths()
            if not store.cafile and not store.capath:
                self._tls.load_verify_locations(certifi.where())
        return httpx2.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=within_s)

    async def _read(self, response: httpx2.Response) -> tuple[bytes, bool]:
        """The body, unpacked, up to the limit; and whether that is all of it."""
        most = self._settings.max_bytes
        unpack = _unpacker(response.headers.get("content-encoding", "identity"), most)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += unpack(piece)
            if len(body) > most:
                return bytes(body[:most]), False
        return bytes(body), True


class _Place(Struct, frozen=True):
    host: str
    port: int


def _parts(url: str) -> tuple[Literal["http", "https"], _Place, str]:
    """Scheme, host with port, and path with query. ToolError for what is no address of a page."""
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ToolError("The URL is not valid.")
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port
    except ValueError:
        raise ToolError("The URL is not valid.") from None
    if scheme not in ("http", "https"):
        raise ToolError("Only http and https are fetched.")
    if parts.username is not None or parts.password is not None:
        raise ToolError("A URL with a user name or password is not fetched.")
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else ""
    place = _Place((parts.hostname or "").rstrip("."), port or PORTS[scheme])
    return ("https" if scheme == "https" else "http"), place, path + query


def _joined(url: str, location: str) -> str:
    """Where a redirect leads. ToolError when that is no address."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise ToolError("The page redirects to an address that is not valid.") from None


def _authority(scheme: str, place: _Place) -> str:
    host = _bracketed(place.host)
    return host if place.port == PORTS[scheme] else f"{host}:{place.port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _unpacker(encoding: str, most: int) -> Any:
    """What turns pieces of the wire into pieces of the body, never much more than `most` bytes at once."""
    if encoding in ("identity", ""):
        return lambda piece: piece
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ToolError(f"The page is packed as {encoding[:20]}, which was not asked for.")
    packed = zlib.decompressobj(47)  # gzip or zlib, as the first bytes say

    def unpack(piece: bytes) -> bytes:
        try:
            return packed.decompress(piece, most + 1)
        except zlib.error:
            raise ToolError("The page is packed, and not as it says.") from None

    return unpack


def _charset(kind: str) -> str:
    """The codec for a page of this type: the one it names, if that is one of `CODECS`."""
    named = re.search(r"charset=\"?([A-Za-z0-9_-]{1,40})", kind)
    try:
        codec = codecs.lookup(named[1] if named else "utf-8").name
    except LookupError:
        return "utf-8"
    return codec if codec in CODECS else "utf-8"


def text_of(html: str) -> str:
    """The text of a page, a line for each block. Goes over the page once, whatever is in it."""
    pieces: list[str] = []
    at = 0
    while (tag := _TAG.search(html, at)) is not None:
        pieces.append(_SPACE.sub(" ", html[at : tag.start()]))
        name = (tag[1] or "").lower()
        at = _after(html, tag, name)
        if BLOCKS.fullmatch(name):
            pieces.append("\n")
        if at < 0:  # a tag or a comment that never ends: so does the text
            break
    else:
        pieces.append(_SPACE.sub(" ", html[at:]))
    text = unescape(_NO_CHARACTER.sub("\ufffd", "".join(pieces)))
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _after(html: str, tag: re.Match[str], name: str) -> int:
    """Where the text goes on behind a tag, a comment or an element that nobody sees; negative when it does not."""
    ending = "-->" if tag[0] == "<!--" else ">"
    at = html.find(ending, tag.end())
    if at < 0:
        return -1
    if name in SILENT and not tag[0].startswith("</"):
        closing = re.compile(f"</{name}[^>]{{0,100}}>", re.IGNORECASE).search(html, at)
        return -1 if closing is None else closing.end()
    return at + len(ending)
