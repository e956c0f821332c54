"""From what a command prints to what it says: text, usage, end and error. Bytes in, values out, no I/O.

Output comes in whatever pieces the pipe delivers. In `jsonl` a line that is no object is noise (a banner, a warning)
and passed over; a line that begins as one and is not is a failure, because a piece of the answer may have been in it.
Bytes that are no UTF-8 are shown as the replacement character, never an error: the answer around them is good.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from penstock.dialects.usage import MOST_TOKENS, TokenUsage
from penstock.errors import UpstreamFailed
from penstock.providers.cli.templates import Counts, Output, Rule

MOST_LINE_BYTES = 8 * 1024 * 1024  # agents report whole files in a line; one that never ends fills no memory


class Said(Struct, frozen=True, gc=False):
    """What one piece of output comes to. `end` is a finish reason, `error` and `remark` are the command's own words."""

    text: str = ""
    usage: TokenUsage | None = None
    end: str | None = None
    error: str | None = None
    remark: str | None = None


class Reader(Protocol):
    """Reads the output of one run."""

    def feed(self, piece: bytes) -> list[Said]:
        """What `piece` completes; `UpstreamFailed` when it cannot be read."""
        ...

    def rest(self) -> list[Said]:
        """What came last, once the output has ended."""
        ...


def reader(output: Output) -> Reader:
    """A reader for a command's output."""
    return _Lines(output) if output.format == "jsonl" else _Text()


def usage_in_words(output: Output, words: str) -> TokenUsage | None:
    """The usage that a command reported in words on stderr, if it did."""
    found = re.search(output.usage_words, words) if output.usage_words else None
    if found is None:
        return None
    input, output_tokens = (int(found[name].replace(",", "")) for name in ("input", "output"))
    if max(input, output_tokens) > MOST_TOKENS:
        return None
    return TokenUsage(input, output_tokens, total=input + output_tokens)


class _Text:
    """The answer is what is printed, but for the line ends after it."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._line_ends = ""

    def feed(self, piece: bytes) -> list[Said]:
        return self._said(self._decode(piece))

    def rest(self) -> list[Said]:
        return self._said(self._decode(b"", True))

    def _said(self, text: str) -> list[Said]:
        text = self._line_ends + text
        bare = text.rstrip("\r\n")
        self._line_ends = text[len(bare) :]
        return [Said(bare)] if bare else []


class _Lines:
    """A JSON object a line."""

    def __init__(self, output: Output) -> None:
        self._rules = [_Compiled(rule) for rule in output.rules]
        self._counts = output.counts
        self._ends = dict(output.ends)
        self._pending = bytearray()
        self._spoken = False
        self._block_begins = False

    def feed(self, piece: bytes) -> list[Said]:
        first_end = piece.find(b"\n")
        if first_end < 0:
            self._pending += piece
            self._check()
            return []
        lines = (bytes(self._pending) + piece).split(b"\n")
        self._pending = bytearray(lines.pop())
        self._check()
        return [said for line in lines if (said := self._said(line))]

    def rest(self) -> list[Said]:
        said = self._said(bytes(self._pending))
        self._pending.clear()
        return [said] if said else []

    def _check(self) -> None:
        if len(self._pending) > MOST_LINE_BYTES:
            raise UpstreamFailed("The command printed a line that is too long.", began=self._spoken)

    def _said(self, line: bytes) -> Said | None:
        line = line.strip()
        if not line.startswith(b"{"):
            return None
        document = _decoded(line)
        if document is None:
            raise UpstreamFailed("The command printed a line that is not JSON.", began=self._spoken)
        found: dict[str, Any] = {}
        for rule in self._rules:
            value = rule.read(document)
            if value is not None and rule.reads not in found:
                found[rule.reads] = value
        return self._meaning(found, document) if found else None

    def _meaning(self, found: dict[str, Any], document: Any) -> Said:
        if "block" in found and self._spoken:
            self._block_begins = True
        text = _words(found.get("text"))
        if not text and not self._spoken:
            text = _words(found.get("whole"))
        if text and self._block_begins:
            text, self._block_begins = f"\n\n{text}", False
        self._spoken = self._spoken or bool(text)
        error, end = found.get("error"), found.get("end")
        return Said(
            text,
            _counted(self._counts, document) if "usage" in found else None,
            None if end is None else self._ends.get(str(end), "stop"),
            None if error is None else _words(error) or "It reported an error.",
            _words(found.get("remark")) or None,
        )


class _Compiled:
    """A rule with its paths taken apart."""

    __slots__ = ("_path", "_when", "reads")

    def __init__(self, rule: Rule) -> None:
        self.reads = rule.reads
        self._path = rule.path.split(".")
        self._when = [(path.split("."), value) for path, value in rule.when]

    def read(self, document: Any) -> Any:
        """What the rule finds; None when there is nothing, or something empty: `"error": ""` is no error."""
        for path, value in self._when:
            found = _at(document, path)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                return None
        return _at(document, self._path) or None


def _at(document: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal():
            document = document[int(name)] if int(name) < len(document) else None
        else:
            return None
    return document


def _words(value: Any) -> str:
    """Text as it may be sent on; an object that stands where words should is shown as JSON."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value)
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a character is no text


def _decoded(line: bytes) -> Any:
    """The object in a line; None when it is none."""
    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError):
        pass
    try:  # the slower one takes what JavaScript writes when it cuts a character in half
        return json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _counted(counts: Counts, document: Any) -> TokenUsage | None:
    """The usage in a line; None when it does not say how much went in and came out."""
    input, output = _sum(document, counts.input), _sum(document, counts.output)
    if input is None or output is None:
        return None
    return TokenUsage(
        input=input,
        output=output,
        cached_input=min(_count(document, counts.cached) or 0, input),
        reasoning=min(_count(document, counts.reasoning) or 0, output),
        total=input + output,
        cache_write=min(_count(document, counts.cache_write) or 0, input),
    )


def _sum(document: Any, paths: tuple[str, ...]) -> int | None:
    found = [count for path in paths if (count := _count(document, path)) is not None]
    return sum(found) if found else None


def _count(document: Any, path: str) -> int | None:
    value = _at(document, path.split(".")) if path else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        return None
    return value
