"""The input of a response as a list of items: as it was sent, as it is continued, and as it is shown again."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Raw, json

from penstock.dialects import json_fields
from penstock.dialects.json_fields import plain

REFERENCE = b"item_reference"  # without these bytes nothing in an input is one
_ITEMS = json.Decoder(list[Raw])
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
_ID = re.compile(r"[!-~]{1,200}")  # what a store can look up; ids as published are far shorter
_WITH_STATUS = frozenset({"message", "function_call", "function_call_output"})


def items_of(input: Raw) -> list[Raw]:
    """The items of an input, which may be a text. ValueError when it is neither."""
    if bytes(input).lstrip().startswith(b'"'):
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": json.decode(input)}]}
        return [Raw(json_fields.join(message))]
    return _ITEMS.decode(input)


def reference_in(item: Raw) -> str | None:
    """The id of the item that this one only names; None when it is an item itself."""
    if REFERENCE not in bytes(item):
        return None
    value = plain(item)
    named = isinstance(value, dict) and value.get("type") == "item_reference"
    return str(value.get("id")) if named else None


def is_id(name: str) -> bool:
    """Whether a response or an item could be kept under this name."""
    return _ID.fullmatch(name) is not None


def item_ids(output: Raw | None) -> list[str]:
    """The ids of the items of an output, those under which an item can be kept."""
    items = plain(output)
    found = [item.get("id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return [id for id in found if isinstance(id, str) and is_id(id)]


def output_of(answer: str) -> list[Raw]:
    """The output of a response (JSON) that is kept; nothing when that is no list, as an upstream may write it."""
    output = json_fields.split(answer.encode()).get("output", Raw(b"[]"))
    return _ITEMS.decode(output) if bytes(output).startswith(b"[") else []


def items_named(answer: str, ids: Collection[str]) -> dict[str, Raw]:
    """The items of these ids in the output of a response (JSON). They are copies, which keep nothing else of it."""
    wanted, found = frozenset(ids), dict[str, Raw]()
    for item in output_of(answer):
        id = _id_of(item)
        if id in wanted and id not in found:
            found[id] = item.copy()
    return found


def _id_of(item: Raw) -> str:
    """The id of an item; empty when it has none."""
    try:
        id = plain(json_fields.split(item).get("id"))
    except (ValueError, RecursionError):  # it is no object: an upstream may say what it likes
        return ""
    return id if isinstance(id, str) else ""


def response_in(last: bytes) -> Mapping[str, Raw] | None:
    """The response in the last bytes of an answer, plain or streamed; None when they carry none that ended well."""
    data = last if last.startswith(b"{") else last.rpartition(b"\ndata: ")[2]
    try:
        str(data, "utf-8")
        fields = json_fields.split(data)
        response = json_fields.split(fields["response"]) if "response" in fields else fields
    except (ValueError, RecursionError):
        return None
    return response if plain(response.get("status")) in ("completed", "incomplete") else None


def shown(item: Raw, response: str, place: int) -> dict[str, Any]:
    """An item of the input as the published API shows it: with an id and a status, its content a list."""
    value = plain(item)
    value = value if isinstance(value, dict) else {}
    kind = value.get("type") or "message"
    prefix = _PREFIXES.get(kind, "item") if isinstance(kind, str) else "item"
    base = {"id": f"{prefix}_{response.partition('_')[2]}i{place:04x}", "type": kind}
    status = {"status": "completed"} if kind in _WITH_STATUS else {}
    value = {**base, **status, **{name: each for name, each in value.items() if each is not None}}
    if isinstance(value.get("content"), str):
        part = "output_text" if value.get("role") == "assistant" else "input_text"
        value["content"] = [{"type": part, "text": value["content"]}]
    for part in value.get("content") or ():
        if isinstance(part, dict) and part.get("type") == "input_image":
            part.setdefault("detail", "auto")
        elif isinstance(part, dict) and part.get("type") == "output_text":
            part.setdefault("annotations", [])
    return value
