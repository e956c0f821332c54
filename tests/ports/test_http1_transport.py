"""How the upstream client gets to an origin: TLS and whom it trusts, proxies, Unix sockets, base URLs."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from penstock.errors import UpstreamFailed, UpstreamUnavailable
from penstock.ports import Timeouts
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin
from tests.ports.test_http1_script import OK, STREAM, Script, Server, Wire, answering, serving, turns, until

MIB = 1_048_576

pytestmark = pytest.mark.each_loop


@asynccontextmanager
async def calling(origin: Origin) -> AsyncIterator[Client]:
    client = Client(origin)
    try:
        yield client
    finally:
        await client.close()


async def ask(client: Client) -> bytes:
    return await (await client.request("POST", "chat/completions", (), b"{}")).read(MIB)


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, and a server's context with its certificate for `localhost`."""

    ca_file: str
    chain_file: str

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain_file)
        context.set_alpn_protocols(["http/1.1"])
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    ca = certificate(ca_name, ca_key.public_key(), ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=0))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))])
    leaf = certificate(name, key.public_key(), ca_name, ca_key, names)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "chain.pem").write_bytes(secret + leaf.public_bytes(Encoding.PEM))
    return Authority(str(folder / "ca.pem"), str(folder / "chain.pem"))


def certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    built = built.serial_number(x509.random_serial_number()).add_extension(extension, critical=True)
    built = built.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    built = built.add_extension(identifier, critical=False)
    built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return built.add_extension(_usage(signs=subject == issuer), critical=True).sign(issuer_key, hashes.SHA256())


def _usage(*, signs: bool) -> x509.KeyUsage:
    """Strict verification (Python 3.13) wants an authority to say that it signs certificates."""
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    none = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, **none)


# TLS.


async def test_tls_names_the_host_and_keeps_the_connection(authority: Authority) -> None:
    asked_for: list[str | None] = []
    tls = authority.server()
    tls.sni_callback = lambda _, name, __: asked_for.append(name)
    async with (
        serving(answering(OK, STREAM + b"2\r\nok\r\n0\r\n\r\n"), tls=tls) as server,
        calling(Origin(server.url, ca_file=authority.ca_file)) as client,
    ):
        assert [await ask(client), await ask(client)] == [b"ok", b"ok"]
    assert (asked_for, server.accepted) == (["localhost"], 1)


async def test_a_certificate_for_another_name_is_not_accepted(authority: Authority) -> None:
    async with serving(answering(OK), tls=authority.server()) as server:
        url = server.url.replace("localhost", "127.0.0.1")
        async with calling(Origin(url, ca_file=authority.ca_file)) as client:
            with pytest.raises(UpstreamUnavailable, match="certificate was not accepted"):
                await ask(client)
            assert client.open_connections == 0
    assert server.requests == []


async def test_an_authority_nobody_named_is_not_trusted(authority: Authority) -> None:
    async with serving(answering(OK), tls=authority.server()) as server, calling(Origin(server.url)) as client:
        with pytest.raises(UpstreamUnavailable, match="certificate was not accepted"):
            await ask(client)
    assert server.requests == []


async def test_ssl_cert_file_is_honoured(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.ca_file)
    async with serving(answering(OK), tls=authority.server()) as server, calling(Origin(server.url)) as client:
        assert await ask(client) == b"ok"


async def test_without_a_store_of_the_system_the_packaged_one_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    async with calling(Origin("https://localhost")) as client:
        assert client._tls is not None
        assert client._tls.cert_store_stats()["x509_ca"] > 50


async def test_a_server_without_tls_is_unavailable_over_tls() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.read(1)
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(script) as server, calling(Origin(f"https://127.0.0.1:{server.port}")) as client:
        with pytest.raises(UpstreamUnavailable, match="secure"):
            await ask(client)


async def test_a_handshake_that_stalls_ends_at_the_connect_time_out() -> None:
    async def script(wire: Wire) -> None:
        await wire.gone()

    limits = Timeouts(connect_s=0.1)
    async with serving(script) as server, calling(Origin(f"https://127.0.0.1:{server.port}", limits)) as client:
        with pytest.raises(UpstreamUnavailable, match="connect time-out"):
            await ask(client)
        assert client.open_connections == 0


async def test_a_body_until_close_ends_with_the_tls_farewell(authority: Authority) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nok")

    async with (
        serving(script, tls=authority.server()) as server,
        calling(Origin(server.url, ca_file=authority.ca_file)) as client,
    ):
        assert await ask(client) == b"ok"


async def test_a_body_until_close_cut_off_under_tls_is_not_taken_for_whole(authority: Authority) -> None:
    if not isinstance(asyncio.get_running_loop(), uvloop.Loop):
        pytest.skip("asyncio's own loop does not tell the two apart")

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        await turns(20)
        wire.writer.transport.abort()  # ends TCP without TLS having said that it ends

    async with (
        serving(script, tls=authority.server()) as server,
        calling(Origin(server.url, ca_file=authority.ca_file)) as client,
    ):
        answer = await client.request("POST", "chat/completions", (), b"{}")
        with pytest.raises(UpstreamFailed, match="broke off"):
            await answer.read(MIB)


async def test_long_bodies_cross_tls_whole_in_both_directions(authority: Authority) -> None:
    body = bytes(range(256)) * 16_384

    async def script(wire: Wire) -> None:
        sent = await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(sent.body) + sent.body)
        await wire.gone()

    async with (
        serving(script, tls=authority.server()) as server,
        calling(Origin(server.url, ca_file=authority.ca_file)) as client,
    ):
        answer = await client.request("POST", "echo", (), body)
        assert b"".join([piece async for piece in answer]) == body
        assert client.idle_connections == 1


async def test_closing_an_answer_closes_a_tls_connection_at_once(authority: Authority) -> None:
    async with (
        serving(answering(STREAM + b"2\r\nok\r\n"), tls=authority.server()) as server,
        calling(Origin(server.url, ca_file=authority.ca_file)) as client,
    ):
        answer = await client.request("POST", "chat/completions", (), b"{}")
        answer.close()
        async with asyncio.timeout(0.1):
            await server.gone.wait()
        await until(lambda: client.open_connections == 0)


# Proxies.


def tunnelling(reply: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Script:
    """A proxy that lets everything through to where it was asked to connect."""

    async def script(wire: Wire) -> None:
        request = await wire.request()
        await wire.send(reply)
        host, _, port = request.start.split(b" ")[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(pump(wire.reader, writer), pump(reader, wire.writer))
        finally:
            writer.close()

    return script


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
    sink.close()


def proxy_url(proxy: Server, user: str = "") -> str:
    return f"http://{user}127.0.0.1:{proxy.port}"


async def test_https_goes_through_a_proxy_that_sees_only_where_to(authority: Authority) -> None:
    async with serving(answering(OK, OK), tls=authority.server()) as server, serving(tunnelling()) as proxy:
        origin = Origin(
            server.url,
            proxy_url=proxy_url(proxy, "us%40r:p%3Aw@"),
            ca_file=authority.ca_file,
            headers=((b"authorization", b"Bearer k"),),
        )
        async with calling(origin) as client:
            assert [await ask(client), await ask(client)] == [b"ok", b"ok"]
    [asked] = proxy.requests
    assert asked.start == b"CONNECT localhost:%d HTTP/1.1" % server.port
    assert asked.headers[b"proxy-authorization"] == b"Basic " + b64encode(b"us@r:p:w")
    assert b"authorization" not in asked.headers
    assert b"proxy-authorization" not in server.requests[0].headers
    assert server.requests[0].headers[b"authorization"] == b"Bearer k"


async def test_the_certificate_is_checked_through_a_proxy_too(authority: Authority) -> None:
    async with serving(answering(OK), tls=authority.server()) as server, serving(tunnelling()) as proxy:
        url = server.url.replace("localhost", "127.0.0.1")
        async with calling(Origin(url, proxy_url=proxy_url(proxy), ca_file=authority.ca_file)) as client:
            with pytest.raises(UpstreamUnavailable, match="certificate was not accepted"):
                await ask(client)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nand more",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"",
    ],
)
async def test_a_proxy_that_does_not_connect_makes_the_provider_unavailable(reply: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(reply)

    async with (
        serving(script) as proxy,
        calling(Origin("https://upstream.test", proxy_url=proxy_url(proxy))) as client,
    ):
        with pytest.raises(UpstreamUnavailable):
            await ask(client)
        assert client.open_connections == 0


async def test_a_proxy_that_speaks_for_the_provider_is_not_used(authority: Authority) -> None:
    eager = tunnelling(b"HTTP/1.1 200 Connection established\r\n\r\nx")
    async with serving(answering(OK), tls=authority.server()) as server, serving(eager) as proxy:
        origin = Origin(server.url, proxy_url=proxy_url(proxy), ca_file=authority.ca_file)
        async with calling(origin) as client:
            with pytest.raises(UpstreamUnavailable):
                await ask(client)


async def test_a_proxy_that_says_nothing_ends_at_the_connect_time_out() -> None:
    async def script(wire: Wire) -> None:
        await wire.gone()

    async with serving(script) as proxy:
        origin = Origin("https://upstream.test", Timeouts(connect_s=0.1), proxy_url=proxy_url(proxy))
        async with calling(origin) as client:
            with pytest.raises(UpstreamUnavailable, match="connect time-out"):
                await ask(client)
        await proxy.gone.wait()


async def test_http_asks_the_proxy_for_the_whole_address() -> None:
    async with (
        serving(answering(OK)) as proxy,
        calling(Origin("http://upstream.test/v1", proxy_url=proxy_url(proxy, "u:p@"))) as client,
    ):
        assert await ask(client) == b"ok"
    [asked] = proxy.requests
    assert asked.start == b"POST http://upstream.test/v1/chat/completions HTTP/1.1"
    assert asked.headers[b"host"] == b"upstream.test"
    assert asked.headers[b"proxy-authorization"] == b"Basic " + b64encode(b"u:p")


# Unix sockets and addresses.


async def test_a_unix_socket_is_reached_by_url_and_by_path(tmp_path: Path) -> None:
    path = str(tmp_path / "Upstream.sock")
    async with serving(answering(OK), path=path) as server:
        by_url = Origin(f"http+unix://{quote(path, safe='')}/v1")
        for origin in (by_url, Origin("http://models.test/v1", unix_path=path)):
            async with calling(origin) as client:
                assert await ask(client) == b"ok"
    assert [request.headers[b"host"] for request in server.requests] == [b"localhost", b"models.test"]
    assert {request.start for request in server.requests} == {b"POST /v1/chat/completions HTTP/1.1"}


async def test_tls_works_over_a_unix_socket(authority: Authority, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with (
        serving(answering(OK), path=path, tls=authority.server()),
        calling(Origin("https://localhost/v1", unix_path=path, ca_file=authority.ca_file)) as client,
    ):
        assert await ask(client) == b"ok"


async def test_a_missing_socket_is_unavailable(tmp_path: Path) -> None:
    async with calling(Origin("http://localhost", unix_path=str(tmp_path / "none"))) as client:
        with pytest.raises(UpstreamUnavailable):
            await ask(client)


async def test_small_writes_are_not_held_back() -> None:
    async with serving(answering(OK)) as server, calling(Origin(server.url)) as client:
        await ask(client)
        [connection] = client._all
        wire = connection.transport.get_extra_info("socket")
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("base_url", "start", "host"),
    [
        ("http://a.test", b"GET /models HTTP/1.1", b"a.test"),
        ("http://a.test:80/", b"GET /models HTTP/1.1", b"a.test"),
        ("http://A.test:8080/v1/", b"GET /v1/models HTTP/1.1", b"a.test:8080"),
        ("http://[::1]:81/x", b"GET /x/models HTTP/1.1", b"[::1]:81"),
        ("http://bücher.test", b"GET /models HTTP/1.1", b"xn--bcher-kva.test"),
    ],
)
async def test_a_base_url_becomes_start_line_and_host(base_url: str, start: bytes, host: bytes, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with (
        serving(answering(OK), path=path) as server,
        calling(Origin(base_url, unix_path=path)) as client,
    ):
        await client.request("GET", "models", (), b"")
    assert (server.requests[0].start, server.requests[0].headers[b"host"]) == (start, host)


GOOD = Origin("http://a.test")


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        (replace(GOOD, base_url="a.test/v1"), "base_url"),
        (replace(GOOD, base_url="ftp://a.test"), "base_url"),
        (replace(GOOD, base_url="http://"), "base_url"),
        (replace(GOOD, base_url="http://:80"), "base_url"),
        (replace(GOOD, base_url="http://a..test"), "base_url"),
        (replace(GOOD, base_url="http://a.test:99999"), "base_url"),
        (replace(GOOD, base_url="http://a.test:x"), "base_url"),
        (replace(GOOD, base_url="http://user:s3cret@a.test"), "base_url"),
        (replace(GOOD, base_url="http://a.test/v1?key=s3cret"), "base_url"),
        (replace(GOOD, base_url="http://a.test/v 1"), "base_url"),
        (replace(GOOD, proxy_url="https://p.test"), "proxy_url"),
        (replace(GOOD, proxy_url="http://u:s3cret@"), "proxy_url"),
        (replace(GOOD, proxy_url="http://p.test", unix_path="/s"), "proxy"),
        (replace(GOOD, headers=((b"authorization", b"Bearer s3cret\n"),)), "authorization"),
        (replace(GOOD, headers=((b"accept-encoding", b"gzip"),)), "accept-encoding"),
        (replace(GOOD, base_url="https://a.test", ca_file="/nonexistent.pem"), "ca_file"),
    ],
)
def test_an_origin_that_cannot_work_is_refused_without_repeating_secrets(origin: Origin, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        Client(origin)
    assert "s3cret" not in str(refusal.value)
