"""Wire formats without I/O: what a caller asks for, what goes upstream, what came back and what it used.

A dialect is a module, and so is a pair, the way from one dialect to another and back (`pairs/`); `Dialect` and `Pair`
say which names they have, so that `penstock/relay` can treat them as data. A dialect is its own pair: bodies pass
through, a handful of fields is read, fewer are replaced, everything else stays as it came. Who may call, what it costs
and where it goes is decided elsewhere.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Raw, Struct

from penstock.dialects.usage import TokenUsage


class Wish(Struct, frozen=True, gc=False):
    """What a caller asks for, as far as routing and money need to know.

    `output_limit` is in tokens a choice, None when the caller set none. `input_bytes` bounds the prompt: the size of
    the body without inline image data; `text_bytes` is the text in it that a model reads, for an estimate. `images`
    counts the parts of the prompt that are not text (image, audio, file, video), and `unmeasured` those of them whose
    tokens no size in the body bounds: documents, which may be packed or elsewhere, and links to other things than
    images. `fields` is the body by top-level field, for `request` to rewrite.
    `token_ids` counts a prompt that came as tokens, and not as text. `needs` is what
    a model must be able to do for it: `tools`, `images`, `json_schema`. `stored` is the name of the first field that
    refers to something a provider keeps (`stored.py`), None when there is none.
    """

    model: str
    stream: bool
    output_limit: int | None
    choices: int
    include_usage: bool
    input_bytes: int
    text_bytes: int
    images: int
    fields: dict[str, Raw]
    token_ids: int = 0
    needs: frozenset[str] = frozenset()
    unmeasured: int = 0
    stored: str | None = None

    def __repr__(self) -> str:
        return f"Wish({self.model!r}, stream={self.stream}, {self.input_bytes} bytes, limit={self.output_limit})"


class Label(Struct, frozen=True, gc=False):
    """What an answer is called: `model` (None keeps the upstream's name for it) and `id_prefix`; and for dialects that
    must name an answer themselves our `id` of the request (`req_…`) and when it was made, in seconds since 1970."""

    model: str | None
    id_prefix: str | None
    id: str
    created_s: int


class Plain(Struct, frozen=True, gc=False):
    """An answer in one piece, ready to send. `produced` is output tokens: as reported, else estimated from the text."""

    body: bytes
    usage: TokenUsage | None
    produced: int


class Step(Struct, frozen=True, gc=False):
    """What one stream event comes to.

    `out` is what to send on, empty when nothing. `produced` estimates the output tokens of this event alone, over all
    choices; `usage` is the upstream's running total, so the latest one counts. `done` marks the upstream's terminator
    and `error` an error it reported in the stream, in its own words; neither is in `out`.
    """

    out: bytes
    produced: int = 0
    usage: TokenUsage | None = None
    finish_reason: str | None = None
    done: bool = False
    error: str | None = None


class Stream(Protocol):
    """One streamed answer: reads the upstream's events and renders what we add to them."""

    def feed(self, event: bytes) -> Step:
        """Read one raw event, terminator included. Never raises: what is not understood passes, counted by size."""
        ...

    def run(self, block: bytes, start: int) -> tuple[bytes, int, int]:
        """`(what to send on, tokens produced, where they end)` of the events of `block` from `start` on that add text
        and nothing else, however many. A short cut: `feed` would come to the same for each of them."""
        ...

    def final_chunk(self, *, finish_reason: str, reason: str) -> bytes:
        """An event that ends every open choice, in place of the one that was fed last, which is not sent; `reason` is
        for machines and says why we ended it."""
        ...

    def usage_chunk(self, usage: TokenUsage) -> bytes:
        """The usage event a caller gets who asked for one."""
        ...

    def error_event(self, *, type: str, code: str | None, message: str, param: str | None) -> bytes:
        """An error after the stream began."""
        ...

    def terminator(self) -> bytes:
        """The last bytes of a stream that ended well."""
        ...


class Pair(Protocol):
    """The way from a caller's dialect to an upstream's and back, as a module. `PATH` is the upstream's."""

    PATH: str

    def request(self, wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
        """The body to send upstream, where the model is called `model`.

        With an `output_limit` (tokens a choice) that limit replaces the caller's, in the field `limit_field`; with None
        the caller's stays as it is. `ask_usage` asks for usage at the end of a stream. `InvalidRequest` names a field
        that the upstream's dialect has nothing for.
        """
        ...

    def answer(self, body: bytes, *, wish: Wish, label: Label) -> Plain:
        """Read an upstream's answer and give it in the caller's dialect. `UpstreamFailed` when it is none."""
        ...

    def open_stream(self, *, wish: Wish, label: Label) -> Stream:
        """Begin reading a streamed answer."""
        ...


class Dialect(Pair, Protocol):
    """A wire format, as a module. `FORWARDED` names the headers of a request that an upstream which speaks it should
    see, in lower case."""

    NAME: str
    FORWARDED: tuple[bytes, ...]

    def peek(self, body: bytes, *, max_output_tokens: int) -> Wish:
        """Read a caller's body. `ModelMissing` before anything else about the fields, else `InvalidRequest`."""
        ...
