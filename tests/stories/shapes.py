"""Requests that two readers may take for different ones: every shape of smuggling, and what has to become of each.

REFUSED is what must be answered with 400, or not at all, before the connection is closed. TAKEN is what RFC 9112 lets a
server take: it is one request, with exactly `BODY`. No tests here; `answers` reads what came back on a connection.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.stories.gateway import ROUTER

MARK = "one-and-only"
BODY = json.dumps({"model": "metered", "messages": [{"role": "user", "content": MARK}], "max_tokens": 5}).encode()
SIZE = len(BODY)
LINE = f"POST {ROUTER}/chat/completions HTTP/1.1\r\n".encode()
LENGTH = b"Content-Length: %d\r\n" % SIZE
CODED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)
HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nHost: hidden\r\nConnection: close\r\n\r\n"  # follows every shape
KEY = b"Host: gateway\r\nAuthorization: Bearer %(key)s\r\n"  # stands for the caller's own


def head(*lines: bytes, line: bytes = LINE, known: bytes = KEY) -> bytes:
    return line + known + b"".join(lines) + b"\r\n"


def coded(coding: bytes) -> bytes:
    """A chunked body under this Transfer-Encoding."""
    return head(b"Transfer-Encoding: %b\r\n" % coding) + CHUNKS


def both(coding: bytes) -> bytes:
    """A body with a length under this Transfer-Encoding as well."""
    return head(LENGTH, b"Transfer-Encoding: %b\r\n" % coding) + BODY


def sized(length: bytes) -> bytes:
    return head(b"Content-Length: %b\r\n" % length) + BODY


def chunk(size: bytes, *, end: bytes = b"\r\n0\r\n\r\n") -> bytes:
    """A chunked body whose first chunk is announced so, whatever it is."""
    return head(CODED) + size + b"\r\n" + BODY + end


def named(line: bytes) -> bytes:
    """One line more in an ordinary head."""
    return head(line, LENGTH) + BODY


def target(address: bytes) -> bytes:
    return head(LENGTH, line=b"POST %b HTTP/1.1\r\n" % address) + BODY


HEX = b"%x" % SIZE
CODINGS = (
    b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"gzip", b"identity", b"identity, chunked", b"xchunked",
    b"chunked;q=1", b'"chunked"', b"\x0bchunked", b"chunked\x0b", b"\x0cchunked", b"", b",chunked", b"chunked,",
    b"chunk", b"ch\xc3\xbcnked", b"chunked\x00", b"x\r\n chunked", b"chunked\r\n , identity", b"trailers, chunked",
)  # fmt: skip
LENGTHS = (
    b"+%d" % SIZE, b"-%d" % SIZE, b"0x" + HEX, HEX + b"h", b"%d,%d" % (SIZE, SIZE), b"%d, 0" % SIZE, b"", b" ",
    b"%d.0" % SIZE, b"1e2", b"9" * 23, b"18446744073709551616", b"%d\x0b" % SIZE, b"\x0b%d" % SIZE, b"%d;" % SIZE,
    b"1_0", b"\xd9\xa8\xd9\xa6", b"%d\r\n 0" % SIZE, b"%d\x00" % SIZE, b"%d 0" % SIZE,
)  # fmt: skip
REFUSED: dict[str, bytes] = {
    **{f"coding {coding!r}": coded(coding) for coding in CODINGS},
    **{f"length and coding {coding!r}": both(coding) for coding in (*CODINGS, b"chunked", b"Chunked", b"\tchunked")},
    **{f"length {length!r}": sized(length) for length in LENGTHS},
    "length, then coding": head(LENGTH, CODED) + CHUNKS,
    "coding, then length": head(CODED, LENGTH) + CHUNKS,
    "length zero and coding": head(b"Content-Length: 0\r\n", CODED) + CHUNKS,
    "coding twice": head(CODED, CODED) + CHUNKS,
    "coding twice, one unknown": head(CODED, b"Transfer-Encoding: cow\r\n") + CHUNKS,
    "coding with space before the colon": head(b"Transfer-Encoding : chunked\r\n") + CHUNKS,
    "coding with tab before the colon, and a length": head(LENGTH, b"Transfer-Encoding\t: chunked\r\n") + BODY,
    "coding after a leading space": head(b" Transfer-Encoding: chunked\r\n") + CHUNKS,
    "coding after a bare LF": named(b"X: a\nTransfer-Encoding: chunked\r\n"),
    "coding in HTTP/1.0": head(CODED, line=LINE.replace(b"1.1", b"1.0")) + CHUNKS,
    "coding and length in HTTP/1.0": head(CODED, LENGTH, line=LINE.replace(b"1.1", b"1.0")) + BODY,
    "two lengths": head(LENGTH, LENGTH) + BODY,
    "two lengths that differ, short first": head(b"Content-Length: 0\r\n", LENGTH) + BODY,
    "two lengths that differ, long first": head(LENGTH, b"Content-Length: 0\r\n") + BODY,
    "length with space before the colon": head(b"Content-Length : %d\r\n" % SIZE) + BODY,
    "bare LF everywhere": head(LENGTH).replace(b"\r\n", b"\n") + BODY,
    "bare LF after the request line": head(LENGTH, line=LINE[:-2] + b"\n") + BODY,
    "bare LF after a header": named(b"X: a\n"),
    "bare LF at the end of the head": (head(LENGTH)[:-2] + b"\n") + BODY,
    "bare CR in a value": named(b"X: a\rContent-Length: 0\r\n"),
    "bare CR before a colon": named(b"X\r: a\r\n"),
    "CR CR LF": named(b"X: a\r\r\n"),
    "a folded line": named(b"X: a\r\n b\r\n"),
    "a folded key": head(LENGTH, known=KEY.replace(b": Bearer", b":\r\n Bearer")) + BODY,
    "NUL in a value": named(b"X: a\x00b\r\n"),
    "NUL in a name": named(b"X\x00: b\r\n"),
    "a control character in a value": named(b"X: a\x01b\r\n"),
    "DEL in a value": named(b"X: a\x7fb\r\n"),
    "no name": named(b": b\r\n"),
    "no colon": named(b"X\r\n"),
    "a separator in a name": named(b"X(y): b\r\n"),
    "a name beyond ASCII": named(b"X\xc3\xa9: b\r\n"),
    "no host": head(LENGTH, known=KEY.replace(b"Host: gateway\r\n", b"")) + BODY,
    "two hosts": named(b"Host: other\r\n"),
    "a host that is none": head(LENGTH, known=KEY.replace(b"gateway", b"a b/@c")) + BODY,
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": head(LENGTH, line=LINE.replace(b"1.1", b"1.2")) + BODY,
    "HTTP/2.0": head(LENGTH, line=LINE.replace(b"1.1", b"2.0")) + BODY,
    "http/1.1": head(LENGTH, line=LINE.replace(b"HTTP", b"http")) + BODY,
    "HTTP/1.1 and more": head(LENGTH, line=LINE.replace(b"1.1", b"1.1x")) + BODY,
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another protocol": b"\x00\x01SSH-2.0-x\r\n",
    "an unknown method": head(LENGTH, line=LINE.replace(b"POST", b"PAST")) + BODY,
    "a method in lower case": head(LENGTH, line=LINE.replace(b"POST", b"post")) + BODY,
    "a tab in the request line": head(LENGTH, line=LINE.replace(b"POST ", b"POST\t")) + BODY,
    "a space before the method": b" " + head(LENGTH) + BODY,
    "a space after the version": head(LENGTH, line=LINE.replace(b"1.1", b"1.1 ")) + BODY,
    "CONNECT": b"CONNECT upstream:80 HTTP/1.1\r\nHost: upstream:80\r\n\r\n",
    "CONNECT to a path": head(LENGTH, line=LINE.replace(b"POST", b"CONNECT")) + BODY,
    "a target without a slash": target(b"api/openai/chat/completions"),
    "a target that is a host": target(b"upstream:80"),
    "NUL in the target": target(b"/api/openai/\x00chat/completions"),
    "CR in the target": target(b"/api/openai/\rchat/completions"),
    "LF in the target": target(b"/api/openai/\nchat/completions"),
    "bytes beyond ASCII in the target": target(b"/api/openai/\xc3\xa9chat/completions"),
    "chunk extension with bare LF": chunk(HEX + b";a\n"),
    "chunk extension with bare CR": chunk(HEX + b";a\rb"),
    "chunk extension with NUL": chunk(HEX + b";a\x00"),
    "chunk size with 0x": chunk(b"0x" + HEX),
    "chunk size with a sign": chunk(b"+" + HEX),
    "negative chunk size": chunk(b"-" + HEX),
    "chunk size after a space": chunk(b" " + HEX),
    "chunk size before a space": chunk(HEX + b" "),
    "chunk size with an underscore": chunk(b"1_0"),
    "chunk size beyond 64 bits": chunk(b"1" + b"0" * 16 + HEX),
    "chunk size missing": chunk(b""),
    "chunk size ended by LF": head(CODED) + HEX + b"\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk ended by LF": chunk(HEX, end=b"\n0\r\n\r\n"),
    "chunk without an end": chunk(HEX, end=b"0\r\n\r\n"),
    "chunk longer than announced": chunk(b"%x" % (SIZE - 5)),
    "chunks ended by LF": chunk(HEX, end=b"\r\n0\n\n"),
    "trailer with a length": chunk(HEX, end=b"\r\n0\r\nContent-Length: 500\r\n\r\n"),
    "trailer with a coding": chunk(HEX, end=b"\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "trailer that is none": chunk(HEX, end=b"\r\n0\r\nnonsense\r\n\r\n"),
    "trailer that is folded": chunk(HEX, end=b"\r\n0\r\nX: a\r\n b\r\n\r\n"),
}
TAKEN: dict[str, bytes] = {
    "as usual": named(b""),
    "in chunks": head(CODED) + CHUNKS,
    "coding in capitals": coded(b"CHUNKED"),
    "coding in spaces": coded(b"\tchunked "),
    "length in spaces": sized(b" %d " % SIZE),
    "length with a zero before it": sized(b"0%d" % SIZE),
    "a name that resembles coding": named(b"Transfer_Encoding: chunked\r\n"),
    "empty lines first": b"\r\n\r\n" + named(b""),
    "an absolute target": target(b"http://elsewhere.example/api/openai/chat/completions"),
    "HTTP/1.0": head(LENGTH, line=LINE.replace(b"1.1", b"1.0")) + BODY,
    "a wish for a web socket": named(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "a wish for HTTP/2": named(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
    "a wish for HTTP/2, in chunks": head(b"Connection: Upgrade\r\nUpgrade: h2c\r\n", CODED) + CHUNKS,
    "leave to send": named(b"Expect: 100-continue\r\n"),
    "leave to send, twice": named(b"Expect: 100-continue\r\nExpect: 100-continue\r\n"),
    "another expectation": named(b"Expect: the-spanish-inquisition\r\n"),
    "a header named as ours to drop": named(b"Connection: content-length, authorization\r\n"),
    "chunk extensions": chunk(HEX + b';a=b;c="d;e"'),
    "a chunk size of many digits": chunk(b"0" * 12 + HEX),
    "trailers that are headers": chunk(
        HEX, end=b"\r\n0\r\nAuthorization: Bearer x\r\nX-Trust: y\r\nHost: z\r\nExpect: 100-continue\r\n\r\n"
    ),
}


@dataclass(frozen=True)
class Got:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


class CutOffError(ValueError):
    """An answer is not complete."""


def answers(raw: bytes) -> list[Got]:
    """Every answer in what came back, in order; ValueError when there is anything else between, before or after."""
    found = []
    while raw:
        start, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            raise CutOffError
        match = re.match(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*(?:\r\n|$)", start)
        if match is None:
            raise ValueError(f"no answer begins with {raw[:100]!r}")
        pairs = (line.partition(": ") for line in start.decode("latin-1").split("\r\n")[1:])
        headers = {name.lower(): value for name, _, value in pairs}
        body, raw = _body(int(match[1]), headers, rest)
        found.append(Got(int(match[1]), headers, body))
    return [answer for answer in found if answer.status != 100]


def _body(status: int, headers: dict[str, str], rest: bytes) -> tuple[bytes, bytes]:
    if status == 100:
        return b"", rest
    if "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) < length:
            raise CutOffError
        return rest[:length], rest[length:]
    if "transfer-encoding" not in headers:
        return rest, b""  # as long as the connection
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not size:
            raise CutOffError
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length:].removeprefix(b"\r\n")
        if not length:
            return body, rest
