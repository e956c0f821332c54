"""A JSON object as its top-level fields, each kept as raw bytes: read some, replace a few, write the rest as it came.

Splitting walks the bytes once and builds nothing below the top level. A key that appears twice keeps its last value, so
what we read is what the upstream reads. This module knows JSON; what fields mean is the dialects' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from msgspec import DecodeError, Raw, ValidationError, json

from penstock.errors import InvalidRequest, ModelMissing, UpstreamFailed

T = TypeVar("T")
Fields = dict[str, Raw]

_OBJECT: json.Decoder[Fields] = json.Decoder(dict[str, Raw])
_STRING = json.Decoder(str)
_ENCODER = json.Encoder()
MOST_PARTS = 20_000  # messages in a request, and parts of them
MOST_REMEMBERED = 256  # sets of names
LONGEST_REMEMBERED = 400  # characters of one
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})
_MANY = frozenset({"n", "n_cmpl", "best_of"})

split = _OBJECT.decode  # raises ValueError when it is not a JSON object and RecursionError when it is nested too deep
join = _ENCODER.encode


def request_fields(body: bytes) -> Fields:
    """The fields of a caller's body; `InvalidRequest` when it is not a JSON object in UTF-8."""
    try:
        str(body, "utf-8")  # splitting skips over strings without looking at their encoding
        return split(body)
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not valid UTF-8.") from None
    except ValidationError:
        raise InvalidRequest("The request body must be a JSON object.") from None
    except DecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deep.") from None


def answer_fields(body: bytes) -> Fields:
    """The fields of an upstream's answer; `UpstreamFailed` when it is not a JSON object or only says `error`."""
    try:
        fields = split(body)
    except (ValueError, RecursionError):
        raise UpstreamFailed("The provider's answer is not a JSON object.", began=True) from None
    if "error" in fields or ("choices" not in fields and "data" not in fields):
        message = error_message(fields)
        if message is not None and not (plain(fields.get("choices")) or plain(fields.get("data"))):
            raise UpstreamFailed(message, began=True)
    return fields


class Meant(dict[str, str]):
    """For names in lower case, which of the fields that we read they are: `fields` themselves, and `others`. And the
    sets of names that are known to hold no lookalike, for clients send few, again and again."""

    def __init__(self, fields: Iterable[str], others: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__({name: name for name in fields} | dict(others))
        self.clear_of_doubt: set[tuple[str, ...]] = set()


def refuse_lookalikes(fields: Iterable[str], meant: Meant) -> None:
    """`InvalidRequest` for a field that some upstream takes for one that we read, and so would follow in its place.
    Servers written in Go, for one, do not tell case."""
    names = tuple(fields)
    if names in meant.clear_of_doubt:
        return
    for name in names:
        ours = meant.get(name) or meant.get(name.casefold())
        if ours is not None and ours != name:
            raise InvalidRequest(f"'{name}' is not taken here; write '{ours}'.", param=name)
    if len(meant.clear_of_doubt) < MOST_REMEMBERED and sum(map(len, names)) < LONGEST_REMEMBERED:
        meant.clear_of_doubt.add(names)


def refuse_many(fields: Mapping[str, Raw]) -> None:
    """`InvalidRequest` for a wish for several answers, in a dialect that has one: some servers would make them all."""
    for name in fields:
        if name.casefold() in _MANY and plain(fields[name]) not in (None, 1):
            raise InvalidRequest(f"'{name}' is not taken here: there is one answer to a request.", param=name)


def refuse_crowd(count: int, param: str) -> None:
    """`InvalidRequest` for more messages and parts of them than anybody has to say. Each takes a time of its own, here
    and in translation: in a body full of the smallest it would add up to seconds in which nobody else is served."""
    if count > MOST_PARTS:
        raise InvalidRequest(f"'{param}' has more than {MOST_PARTS} messages and parts of messages.", param=param)


def read(fields: Mapping[str, Raw], name: str, decoder: json.Decoder[T], shape: str) -> T | None:
    """The value of a field, None when it is absent; `InvalidRequest` saying that it must be `shape` when it is not."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except ValidationError as error:
        raise InvalidRequest(f"'{name}' must be {shape}: {error}.", param=name) from None
    except (ValueError, RecursionError):
        raise InvalidRequest(f"'{name}' must be {shape}.", param=name) from None


def read_model(fields: Mapping[str, Raw]) -> str:
    """The model's name, not empty; `ModelMissing` otherwise."""
    raw = fields.get("model")
    try:
        model = None if raw is None else _STRING.decode(raw)
    except ValueError:
        model = None
    if not model:
        raise ModelMissing("The 'model' field is required and must be a string.", param="model", code="missing_model")
    return model


def plain(raw: Raw | None) -> Any:
    """The decoded value; None when there is none or it cannot be had."""
    if raw is None:
        return None
    try:
        return json.decode(raw)
    except (ValueError, RecursionError):
        return None


def given_size(raw: Raw | None) -> int:
    """Bytes of a value as it is written; 0 when there is none, or nothing in it."""
    return 0 if raw is None or bytes(raw) in _EMPTY else len(bytes(raw))


def schema_size(fields: Mapping[str, Raw], name: str) -> int:
    """Bytes of a field that says how to answer, if a schema is in it, which a model gets to read."""
    raw = fields.get(name)
    return 0 if raw is None or b'"schema"' not in bytes(raw) else len(bytes(raw))


def error_message(fields: Mapping[str, Raw]) -> str | None:
    """The words of an upstream's error (`{"error": {"message"}}`, `{"error": "…"}`, `{"object": "error", "message"}`).

    None when the object is no error. The words are the upstream's own: redact before showing them.
    """
    error = plain(fields.get("error"))
    if not error:
        if plain(fields.get("object")) != "error":
            return None
        error = plain(fields.get("message"))
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) and error else "The provider reported an error."
