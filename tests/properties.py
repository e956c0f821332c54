"""What holds whatever comes in, as plain functions over bytes: AssertionError when it does not. No tests here.

`tests/rules` and `tests/ports` call them with examples that Hypothesis draws, `fuzz` with inputs that a coverage-guided
fuzzer finds. They read what was sent as other programs would read it, with parsers that are not ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from penstock.catalogue import Catalogue
from penstock.config import Settings
from penstock.config_file import load
from penstock.dialects import Step, Wish, openai_chat, openai_embeddings, sse
from penstock.dialects.usage import TokenUsage
from penstock.errors import ConfigError, InvalidRequest, ModelMissing, UpstreamFailed
from penstock.providers.openai_compatible import OpenAICompatible
from tests.wishes import WISH, asking, labelled

MOST_TOKENS = 1_000_000
SHORT, PER_TOKEN = 16, 4  # how text is counted when nobody counts: see docs/money.md
LIMITS = ("max_tokens", "max_completion_tokens", "n_predict", "max_new_tokens")
Read = Callable[[bytes], Any]


# How others read an object: which of two values of a name counts, and what is the same name.


def _reader(*, folds: bool, first: bool) -> Read:
    def fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named = [(name.casefold() if folds else name, value) for name, value in pairs]
        return dict(reversed(named) if first else named)

    return lambda body: json.loads(body, object_pairs_hook=fold)


READERS: dict[str, Read] = {
    "the last one counts": _reader(folds=False, first=False),
    "the first one counts": _reader(folds=False, first=True),
    "case is not told": _reader(folds=True, first=False),
    "case is not told, and the first one counts": _reader(folds=True, first=True),
}


def chat_request(body: bytes) -> Wish | None:
    """A caller's body is refused, or is what every upstream will take it for: in model, limits, answers, streaming."""
    try:
        wish = openai_chat.peek(body, max_output_tokens=MOST_TOKENS)
    except InvalidRequest as refusal:
        _refused_plainly(refusal, body)
        return None
    assert 0 < wish.input_bytes <= len(body)
    assert wish.output_limit is None or 0 < wish.output_limit <= MOST_TOKENS
    for limit in (None, 7):
        for field in openai_chat.LIMIT_FIELDS:
            sent = openai_chat.request(wish, model="upstream", output_limit=limit, limit_field=field, ask_usage=True)
            for how, read in READERS.items():
                _same_request(_loaded(read, sent), wish, limit, how)
    _prompt_is_counted(wish, _loaded(READERS["the last one counts"], body))
    return wish


def embeddings_request(body: bytes) -> Wish | None:
    """The same for embeddings; and tokens that are given as such are counted one by one."""
    try:
        wish = openai_embeddings.peek(body, max_output_tokens=MOST_TOKENS)
    except InvalidRequest as refusal:
        _refused_plainly(refusal, body)
        return None
    sent = openai_embeddings.request(wish, model="upstream", output_limit=None, limit_field="", ask_usage=True)
    for how, read in READERS.items():
        upstream = _loaded(read, sent)
        if upstream is not None:
            assert upstream["model"] == "upstream", how
            assert wish.token_ids == _numbers(upstream["input"]), how
    return wish


def _refused_plainly(refusal: InvalidRequest, body: bytes) -> None:
    assert isinstance(refusal, ModelMissing) or type(refusal) is InvalidRequest
    assert 0 < len(refusal.message) < 500 + len(body)
    json.dumps([refusal.message, refusal.param, refusal.code]).encode()


def _loaded(read: Read, body: bytes) -> Any:
    """What a reader makes of it; None where it would refuse the request: too deep, or a number too long."""
    try:
        return read(body)
    except (ValueError, RecursionError):
        return None


def _same_request(upstream: Any, wish: Wish, limit: int | None, how: str) -> None:
    if upstream is None:
        return
    assert upstream["model"] == "upstream", how
    assert bool(upstream.get("stream")) == wish.stream, how
    assert (upstream.get("n") or 1) == wish.choices, how
    assert "best_of" not in upstream, how
    expected = wish.output_limit if limit is None else limit
    found = {upstream[name] for name in LIMITS if upstream.get(name) is not None}
    assert found == ({expected} if expected is not None else set()), how
    if wish.stream:
        assert upstream["stream_options"]["include_usage"] is True, how


def _prompt_is_counted(wish: Wish, body: Any) -> None:
    """All the text there is counts for the bound; only inline images do not."""
    if body is None:
        return
    pictures = 0
    for message in body["messages"]:
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            link = part.get("image_url") if isinstance(part, dict) else None
            url = link.get("url") if isinstance(link, dict) else link
            pictures += len(url) if isinstance(url, str) and url.startswith("data:image/") else 0
    text = sum(len(found.encode("utf-8", "surrogatepass")) for found in _texts(body))
    assert wish.input_bytes >= text - pictures - len(wish.model.encode())


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _numbers(value: Any) -> int:
    return sum(map(_numbers, value)) if isinstance(value, list) else int(isinstance(value, int))


# What comes back.


def plain_answer(body: bytes) -> None:
    """An upstream's answer is none, or passes with our names in it and nothing else changed."""
    for names in ({}, {"model": "ours"}, {"model": "ours", "id_prefix": "cmpl-"}):
        try:
            plain = openai_chat.answer(body, wish=WISH, label=labelled(names.get("model"), names.get("id_prefix")))
        except UpstreamFailed:
            return
        assert plain.produced >= 0
        _sound(plain.usage)
        came, went = (_loaded(READERS["the last one counts"], each) for each in (body, plain.body))
        if came is not None:
            assert {**came, "model": 0, "id": 0} == {**went, "model": 0, "id": 0}
            assert "model" not in names or "choices" not in came or went["model"] == "ours"
            assert plain.usage or plain.produced >= _least_tokens(came, "message")


def stream(pieces: list[bytes]) -> None:
    """A stream is cut into events without a byte lost, wherever the network cut it, and no event goes by uncounted."""
    try:
        events, rest = _split(pieces)
    except UpstreamFailed:
        return
    whole = b"".join(pieces)
    assert b"".join([*events, rest]) == whole
    assert _split([whole]) == (events, rest)
    for model, prefix, usage in ((None, None, True), ("ours", None, False), ("ours", "cmpl-", True)):
        singly, together = (
            openai_chat.open_stream(wish=asking(usage=usage), label=labelled(model, prefix)) for _ in range(2)
        )
        assert _feed(singly, events) == in_runs(together, b"".join(events))


def _split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = sse.Splitter()
    return [event for piece in pieces for event in sse.events(splitter.feed(piece))], splitter.rest()


def in_runs(reader: openai_chat.ChatStream, block: bytes) -> tuple[bytes, int]:
    """What a block comes to when runs of text in it go at once, as they do on their way: what is sent, and tokens."""
    sent, produced, start = [], 0, 0
    while start < len(block):
        out, tokens, end = reader.run(block, start)
        if end == start:
            end = sse.event_end(block, start)
            step = reader.feed(block[start:end])
            out, tokens = step.out, step.produced
        sent.append(out)
        produced, start = produced + tokens, end
    return b"".join(sent), produced


def _feed(reader: openai_chat.ChatStream, events: list[bytes]) -> tuple[bytes, int]:
    """What the events come to one by one."""
    sent, produced = [], 0
    for event in events:
        step = reader.feed(event)
        sent.append(step.out)
        produced += step.produced
        assert step.produced >= 0
        _sound(step.usage)
        if step.done or step.error is not None:
            assert step.out == b""
        else:
            _passes(event, step)
    last = reader.final_chunk(finish_reason="length", reason="insufficient_balance")
    choices = json.loads(last.removeprefix(b"data: "))["choices"]
    assert 0 < len(choices) <= openai_chat.MOST_CHOICES
    assert len(last) <= 2_000 + 60 * len(choices) + max(map(len, events), default=0) * 4
    return b"".join(sent), produced


def _passes(event: bytes, step: Step) -> None:
    came, went = _data(event), _data(step.out)
    if not isinstance(came, dict):
        assert step.out or not event  # what a client cannot read passes, counted by its size
    elif step.out:
        assert {**came, "model": 0, "id": 0} == {**went, "model": 0, "id": 0}
        assert step.usage is not None or step.produced >= _least_tokens(went, "delta", "message")
    else:
        assert step.usage is not None  # the caller did not ask for it


def _data(event: bytes) -> Any:
    """The JSON of an event as a caller's client reads it (WHATWG, 9.2.6); None when it has none."""
    try:
        lines = (
            event.decode(errors="surrogateescape")
            .removeprefix("\ufeff")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
            .split("\n")
        )
        found = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        return json.loads("\n".join(found)) if found else None
    except (ValueError, RecursionError):
        return None


def _least_tokens(document: Mapping[str, Any], *names: str) -> int:
    """The fewest tokens that the text under these names in the choices of an answer or event may be counted as."""
    choices = document.get("choices")
    found = 0
    for choice in choices if isinstance(choices, list) else ():
        for name in names:
            text = choice.get(name) if isinstance(choice, dict) else None
            found += _tokens(_size(text)) if isinstance(text, dict) else 0
    return found


def _tokens(size: int) -> int:
    return -(-size // PER_TOKEN) if size > SHORT else min(size, 1)


def _size(text: Mapping[str, Any]) -> int:
    thought = max(_bytes(text.get("reasoning_content")), _bytes(text.get("reasoning")))
    calls = text.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    made = sum(_bytes(f.get("name")) + _bytes(f.get("arguments")) for f in functions if isinstance(f, dict))
    return _bytes(text.get("content")) + thought + _bytes(text.get("refusal")) + made


def _bytes(value: Any) -> int:
    return len(value.encode(errors="replace")) if isinstance(value, str) else 0  # at the least


def _sound(usage: TokenUsage | None) -> None:
    if usage is not None:
        assert min(usage.input, usage.output, usage.cached_input, usage.reasoning, usage.total) >= 0
        assert max(usage.input, usage.output, usage.total) <= 3 * 10**12
        assert usage.cached_input <= usage.input
        assert usage.reasoning <= usage.output


# The configuration.

SECRETS = {
    "PENSTOCK_KEY_PEPPER": "canary-pepper-0123456789abcdef-0123456789",
    "PENSTOCK_AUTH_SECRET": "canary-auth-secret-0123456789abcdef-012345",
    "PENSTOCK_PROVIDER_OPENAI_API_KEY": "canary-key-0123456789abcdef",
    "OPENAI_API_KEY": "canary-well-known-0123456789",
    "KEY": "canary-named-0123456789",
}


def configuration(text: bytes) -> Settings | None:
    """A file makes settings that a gateway can be built from, or mistakes; no secret is in either."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "penstock.toml"
        path.write_bytes(text)
        try:
            settings = load(path, SECRETS)
            Catalogue(settings)
            for provider in settings.providers:
                if provider.kind == "openai_compatible":
                    OpenAICompatible(provider)
        except ConfigError as error:
            _mistakes(error)
            return None
    assert "canary" not in repr(settings) + "".join(settings.warnings)
    return settings


def _mistakes(error: ConfigError) -> None:
    assert error.mistakes
    assert all(mistake and "\n" not in mistake.strip() for mistake in error.mistakes)
    assert "canary" not in error.message
