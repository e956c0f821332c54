"""What a model says in a form whose text nobody here reads: counted by its size, so that none of it is free.

The readers of each dialect count the text they know, event by event. They ask here about what has none: tools of other
kinds, sounds and images, whatever is new. What only repeats a text, or says nothing of a model's own, is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, json

from penstock.dialects.usage import estimate_delta_tokens

LONG_EVENT = 4_096  # bytes; one that is longer may have more in it than its text
# Bytes of a sound or an image that count as one of text. Vendors count 20 tokens for a second of sound, which is 64 kB
# as they send it, and a thousand or some for an image of a megabyte.
_MEDIA_SHARE = 64
# Of a chat delta: texts that its readers know, and what no model has written.
_READ_OF_CHAT = frozenset({"content", "reasoning_content", "reasoning", "refusal", "function_call"})
_ABOUT_CHAT = frozenset({"role", "name", "annotations", "extra_content"})
_ABOUT_CALLS = frozenset({"index", "id", "type", "function", "extra_content"})
_TEXTS_OF_DETAILS = ("text", "summary", "data")
# Of a choice of a completion: its text, and what repeats it or is said about it.
_ABOUT_COMPLETIONS = frozenset(
    {"text", "index", "finish_reason", "stop_reason", "matched_stop", "logprobs", "prompt_logprobs", "token_ids"}
    | {"prompt_token_ids", "content_filter_results", "seed"}
)
# Of a block of a message, or what is added to one.
_READ_OF_BLOCKS = frozenset({"text", "thinking", "partial_json", "name", "data", "input"})
_ABOUT_BLOCKS = frozenset(
    {"type", "id", "signature", "citation", "citations", "tool_use_id", "cache_control", "caller", "server_name"}
)
# Of an item of a response: what it is called, and what a tool of the provider's has said in it.
_ABOUT_ITEMS = frozenset(
    {"type", "id", "call_id", "status", "role", "server_label", "output", "outputs", "results", "tools"}
)
_THOUGHTS = ("summary", "content", "encrypted_content")


class _Choice(Struct, gc=False):
    delta: Any = None
    message: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None


class _Completion(Struct, gc=False):
    choices: list[dict[str, Any]] | None = None


_CHUNK = json.Decoder(_Chunk)
_COMPLETION = json.Decoder(_Completion)


def in_chunk(data: bytes) -> int:
    """Tokens in a chat completion, or in an event of one, beside its texts. ValueError and RecursionError."""
    said = (each for choice in _CHUNK.decode(data).choices or () for each in (choice.delta, choice.message))
    return sum(estimate_delta_tokens(in_chat(each)) for each in said if isinstance(each, dict))


def in_completion(data: bytes) -> int:
    """Tokens in a legacy completion, or in an event of one, beside its texts. ValueError and RecursionError."""
    beside = (
        sum(_size(value) for name, value in choice.items() if name not in _ABOUT_COMPLETIONS)
        for choice in _COMPLETION.decode(data).choices or ()
    )
    return sum(map(estimate_delta_tokens, beside))


def in_chat(said: Mapping[str, Any]) -> int:
    """Bytes in a chat delta or message beside its texts."""
    size = 0
    for name, value in said.items():
        if not value or name in _READ_OF_CHAT or name in _ABOUT_CHAT:
            continue
        match name:
            case "tool_calls":
                size += sum(map(_in_call, value)) if isinstance(value, list) else _size(value)
            case "reasoning_details":  # servers send them beside the same text
                size += 0 if said.get("reasoning") or said.get("reasoning_content") else _in_details(value)
            case "images":
                size += _share(_size(value))
            case "audio" if isinstance(value, dict):
                size += _share(_size(value.get("data"))) + _size(value.get("transcript"))
            case _:
                size += _size(value)
    return size


def in_block(block: Mapping[str, Any]) -> int:
    """Bytes in a block of a message, or in what is added to one, beside its texts. What a tool of the provider's has
    found is not the model's."""
    if str(block.get("type")).endswith("_tool_result"):
        return 0
    known = _READ_OF_BLOCKS | _ABOUT_BLOCKS
    return sum(_size(value) for name, value in block.items() if name not in known)


def in_item(item: Mapping[str, Any]) -> int:
    """Bytes that a model has said in an item of a response. What it thought may be told several times over."""
    if item.get("type") == "reasoning":
        return max(_size(item.get(name)) for name in _THOUGHTS)
    size = 0
    for name, value in item.items():
        if name == "result" and item.get("type") == "image_generation_call":
            size += _share(_size(value))
        elif name not in _ABOUT_ITEMS:
            size += _size(value)
    return size


def _in_call(call: Any) -> int:
    if not isinstance(call, dict):
        return _size(call)
    custom = call.get("custom")
    if not isinstance(custom, dict):
        return sum(_size(value) for name, value in call.items() if name not in _ABOUT_CALLS)
    return _size(custom.get("name")) + _size(custom.get("input"))


def _in_details(details: Any) -> int:
    """What is told of thinking, without the signatures that go with it."""
    if not isinstance(details, list) or not all(isinstance(each, dict) for each in details):
        return _size(details)
    size = sum(_size(each.get(name)) for each in details for name in _TEXTS_OF_DETAILS)
    known = size or any("signature" in each for each in details)
    return size if known else _size(details)


def _share(size: int) -> int:
    return -(-size // _MEDIA_SHARE)


def _size(value: Any) -> int:
    """Bytes of a text, or of whatever else is written at length. Numbers and what is empty say nothing."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return len(json.encode(value)) if value and isinstance(value, list | dict) else 0
