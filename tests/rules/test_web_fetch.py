"""What `web_fetch` fetches, and what it will not: a real server on loopback, which the test allows by name."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from penstock.toolbox.settings import WebFetchSettings
from penstock.toolbox.source import Toolbox
from penstock.toolbox.web_fetch import WebFetch, text_of
from penstock.tools import ToolResult

Site = Callable[[bytes], bytes]  # from a request's head to the whole response


@asynccontextmanager
async def site(answer: Site, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A web server: its port, and the heads of the requests that came."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(heads[-1]))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


def page(body: bytes, kind: str = "text/html", status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


async def fetch(url: str, *, hosts: dict[str, list[str]] | None = None, **settings: Any) -> ToolResult:
    """Fetch with 127.0.0.1 allowed; `hosts` is what DNS says, one list of answers after the other for a name."""
    asked: dict[str, int] = {}

    async def resolve(host: str, port: int) -> list[str]:
        asked[host] = asked.get(host, -1) + 1
        answers = (hosts or {}).get(host, [host])
        return [answers[min(asked[host], len(answers) - 1)]]

    tool = WebFetch(WebFetchSettings(allow=(ip_network("127.0.0.1/32"),), **settings), resolve)
    return await Toolbox([tool]).run("web_fetch", {"url": url}, within_s=5)


async def test_a_page_is_fetched_at_the_checked_address_under_its_own_name() -> None:
    html = b"<title>T</title><script>x()</script><p>One &amp; two</p><style>p{}</style><p>three<br>four"
    async with site(lambda head: page(html)) as (port, heads):
        result = await fetch(f"http://docs.example:{port}/a?b=c", hosts={"docs.example": ["127.0.0.1"]})
    assert result == ToolResult(f"http://docs.example:{port}/a?b=c (status 200)\n\nT\nOne & two\n\nthree\nfour")
    assert heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"host: docs.example:{port}".encode() in heads[0].lower()
    assert b"cookie" not in heads[0].lower()
    assert b"authorization" not in heads[0].lower()


async def test_over_tls_the_certificate_has_to_be_the_names_and_not_the_addresss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(self_signed("docs.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    asked_for: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked_for.append(name)
    hosts = {"docs.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    async with site(lambda head: page(b"safe"), tls) as (port, heads):
        right = await fetch(f"https://docs.example:{port}/", hosts=hosts)
        wrong = await fetch(f"https://other.example:{port}/", hosts=hosts)
    assert right.text.endswith("safe")
    assert wrong == ToolResult("The page could not be fetched (ConnectError).", failed=True)
    assert asked_for == ["docs.example", "other.example"]
    assert len(heads) == 1


def self_signed(host: str) -> bytes:
    """A key and a certificate for a name, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret + built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


async def test_a_redirect_to_a_private_address_is_refused_and_never_asked() -> None:
    async with site(lambda head: page(b"secret")) as (inside, inside_heads):
        target = f"location: http://inside.example:{inside}/"
        async with site(lambda head: page(b"", "text/html", "302 Found", target)) as (port, heads):
            result = await fetch(f"http://127.0.0.1:{port}/", hosts={"inside.example": ["127.0.0.2"]})
    assert result.failed
    assert "not on the public internet" in result.text
    assert len(heads) == 1
    assert inside_heads == []


async def test_a_name_that_answers_otherwise_the_second_time_is_checked_the_second_time() -> None:
    """Rebinding: there is one look-up a connection, and the connection goes where that look-up said."""
    again = "location: http://rebind.example:{}/again"

    def answer(head: bytes) -> bytes:
        return page(b"", "text/html", "302 Found", again.format(port))

    async with site(answer) as (port, heads):
        result = await fetch(f"http://rebind.example:{port}/", hosts={"rebind.example": ["127.0.0.1", "127.0.0.2"]})
    assert result.failed
    assert "not on the public internet" in result.text
    assert len(heads) == 1


async def test_redirects_end() -> None:
    async with site(lambda head: page(b"", "text/html", "302 Found", "location: /again")) as (port, heads):
        result = await fetch(f"http://127.0.0.1:{port}/")
    assert result == ToolResult("The page redirects more than 5 times.", failed=True)
    assert len(heads) == 6


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "public internet"),
        ("http://metadata.example/", "public internet"),
        ("http://[::ffff:169.254.169.254]/", "public internet"),
        ("http://2130706433/", "public internet"),
        ("http://localhost:9/", "public internet"),
        ("file:///etc/passwd", "Only http"),
        ("ftp://example.com/", "Only http"),
        ("gopher://127.0.0.1:70/_x", "Only http"),
        ("http://user:secret@example.com/", "user name"),
        ("http://a b/", "not valid"),
        ("http://example.com:99999/", "not valid"),
        ("http:///nothing", "names no host"),
        ("", "Only http"),
        ("http://example.com/\r\nx: y", "not valid"),
    ],
)
async def test_what_is_not_on_the_internet_is_refused_in_words(url: str, words: str) -> None:
    hosts = {"metadata.example": ["169.254.169.254"], "2130706433": ["127.0.0.3"], "localhost": ["::1"]}
    result = await fetch(url, hosts=hosts)
    assert result.failed
    assert words in result.text


async def test_a_long_page_and_a_bomb_are_cut() -> None:
    bomb = gzip.compress(b"<p>" + b"x" * 30_000_000)
    packed = page(bomb, "text/html", "200 OK", "content-encoding: gzip")
    async with site(lambda head: packed) as (port, _):
        result = await fetch(f"http://127.0.0.1:{port}/", max_bytes=50_000, max_text_bytes=1_000)
    assert not result.failed
    assert len(result.text) < 1_200
    assert result.text.endswith("[cut: more than 50000 bytes]")


@pytest.mark.parametrize(
    ("charset", "body", "text"),
    [
        ("iso-8859-15", b"\xa4", "€"),
        ("Shift_JIS", b"\x83e", "テ"),
        ("gb2312", b"\xc4\xe3", "你"),
        ("utf-16le", b"a\x00", "a"),
        ("nonsense", "ü".encode(), "ü"),
        ("punycode", b"x-" + b"a9b" * 60_000, "x-" + "a9b" * 20),  # takes Python time squared
        ("idna", b"a\xff", "a\ufffd"),
        ("unicode_escape", b"\\ud800", "\\ud800"),
        ("utf-7", b"+AGEA-", "+AGEA-"),
    ],
)
async def test_a_page_is_read_in_its_encoding_if_that_is_one_of_the_webs(charset: str, body: bytes, text: str) -> None:
    async with site(lambda head: page(body, f"text/plain; charset={charset}")) as (port, _):
        started_s = time.perf_counter()
        result = await fetch(f"http://127.0.0.1:{port}/", max_text_bytes=200)
    assert time.perf_counter() - started_s < 1.5
    assert not result.failed
    assert result.text.split("\n\n")[1].startswith(text)


async def test_a_large_page_holds_nobody_up() -> None:
    late_s = 0.0

    async def look() -> None:
        nonlocal late_s
        while True:
            started_s = time.perf_counter()
            await asyncio.sleep(0.01)
            late_s = max(late_s, time.perf_counter() - started_s)

    async with site(lambda head: page(b"<a>" * 600_000)) as (port, _):
        looking = asyncio.create_task(look())
        await fetch(f"http://127.0.0.1:{port}/")
        await asyncio.sleep(0.02)  # for the last look
        looking.cancel()
    assert late_s < 0.7


async def test_a_redirect_to_what_is_no_address_is_told() -> None:
    async with site(lambda head: page(b"", "text/html", "302 Found", "location: http://[x")) as (port, _):
        result = await fetch(f"http://127.0.0.1:{port}/")
    assert result == ToolResult("The page redirects to an address that is not valid.", failed=True)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", ""])
async def test_what_is_no_text_is_named_and_not_returned(kind: str) -> None:
    async with site(lambda head: page(b"\x89PNG", kind)) as (port, _):
        result = await fetch(f"http://127.0.0.1:{port}/")
    assert result.failed
    assert "which is not text" in result.text


async def test_an_error_page_is_a_failed_result_with_its_text() -> None:
    async with site(lambda head: page(b"<h1>Gone</h1>", "text/html", "404 Not Found")) as (port, _):
        result = await fetch(f"http://127.0.0.1:{port}/")
    assert result.failed
    assert result.text.endswith("(status 404)\n\nGone")


async def test_wrong_arguments_are_a_result_that_says_what_is_wrong() -> None:
    box = Toolbox([WebFetch(WebFetchSettings())])
    for arguments in ({}, {"url": 7}, {"url": "http://x/", "more": 1}):
        result = await box.run("web_fetch", arguments, within_s=1)
        assert result.failed
        assert result.text.startswith("The arguments are wrong")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<b>c</b>", "ac"),
        ("a<!-- x > y -->b", "ab"),
        ("a<!-- never ends", "a"),
        ("a<script>never ends", "a"),
        ("<SCRIPT>x</SCRIPT >y", "y"),
        ("1 < 2 and 3 &lt; 4", "1 < 2 and 3 < 4"),
        ("<ul><li>x<li>y</ul>", "x\ny"),
        ("<p  \n class='a'>x\n\n   y</p>", "x y"),
        ("a &#" + "1" * 5000 + "; b &#x" + "f" * 5000 + " c &#0000065;", "a \ufffd b \ufffd c A"),
    ],
)
def test_text_of_a_page(html: str, text: str) -> None:
    assert text_of(html) == text


def test_a_hostile_page_takes_time_in_proportion_to_its_size() -> None:
    for nasty in ("<a" * 300_000, "<!--" * 300_000, "<" * 600_000, "<script><" * 100_000, "<p>" * 300_000):
        text_of(nasty)


async def test_names_that_nobody_answers_for_hold_up_neither_addresses_nor_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over, system = threading.Event(), socket.getaddrinfo

    def look_up(host: str, *words: Any, **named: Any) -> Any:
        if "silent" in host and not named.get("flags", 0) & socket.AI_NUMERICHOST:
            over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return system(host, *words, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    box = Toolbox([WebFetch(WebFetchSettings(allow=(ip_network("127.0.0.1/32"),)))])
    try:
        names = [f"http://silent{number}.test/" for number in range(40)]
        results = await asyncio.gather(*(box.run("web_fetch", {"url": name}, within_s=0.5) for name in names))
        assert {result.text for result in results} == {"The tool took longer than 0.5 seconds and was stopped."}
        async with site(lambda head: page(b"there")) as (port, _):
            result = await box.run("web_fetch", {"url": f"http://127.0.0.1:{port}/"}, within_s=5)
        assert result.text.endswith("there")
    finally:
        over.set()
