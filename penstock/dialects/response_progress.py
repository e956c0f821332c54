"""How far a streamed response has come: which items are open, what they hold so far, which number is next.

It looks on while an upstream's events pass, and writes events where we are the ones to write them; either way it can
end what is open in good order, whenever the stream has to end, and take back what the latest event did, should that one
not be sent. It reads no bytes and knows no upstream: that is `openai_responses.py` and the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec import Raw

from penstock.dialects import json_fields

# The parts of an item: what their events begin with, where the text is, and the name of their place in the item.
_PARTS = {
    "output_text": ("response.output_text", "text", "content_index"),
    "refusal": ("response.refusal", "refusal", "content_index"),
    "reasoning_text": ("response.reasoning_text", "text", "content_index"),
    "summary_text": ("response.reasoning_summary_text", "text", "summary_index"),
}
# Items without parts: what their events begin with, and where the text is.
_CALLS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}
_WITH_STATUS = frozenset({"message", "reasoning", "function_call"})
_DELTAS = {f"{prefix}.delta" for prefix, *_ in (*_PARTS.values(), *_CALLS.values())}
_ABSENT: Any = object()
LARGEST_BEGINNING = 8192  # bytes of an item before anything has been added to it: some carry encrypted thoughts
MOST_OPEN = 256  # items at once


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an item; `texts` are its deltas."""

    value: dict[str, Any]
    texts: list[str] = field(default_factory=list)
    closed: bool = False

    def whole(self) -> dict[str, Any]:
        """The part with all that has come of its text."""
        name = _PARTS.get(_kind(self.value), ("", "text"))[1]
        return {**self.value, name: "".join(self.texts) or self.value.get(name) or ""}


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of the output that is not finished. `texts` are the deltas of a call's arguments or input."""

    value: dict[str, Any]
    content: dict[int, _Part] = field(default_factory=dict)
    summary: dict[int, _Part] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def parts(self, place_name: str) -> dict[int, _Part]:
        return self.summary if place_name == "summary_index" else self.content

    def whole(self, status: str) -> dict[str, Any]:
        """The item with all that has come of it."""
        item = dict(self.value)
        if _kind(item) in _WITH_STATUS:
            item["status"] = status
        for name, parts in (("summary", self.summary), ("content", self.content)):
            if parts:
                item[name] = [parts[place].whole() for place in sorted(parts)]
        call = _CALLS.get(_kind(item))
        if call and self.texts:
            item[call[1]] = "".join(self.texts)
        return item


class Progress:
    """One streamed response. `next_number` is the sequence number that the next event of ours gets, `next_index` the
    place of the next item of the output."""

    __slots__ = ("_finished", "_marked", "_open", "_places", "_undo", "next_index", "next_number")

    def __init__(self) -> None:
        self.next_number = 0
        self.next_index = 0
        self._marked = 0, 0
        self._undo: list[Callable[[], object]] = []
        self._open: dict[int, _Item] = {}
        self._finished: dict[int, Any] = {}
        self._places: dict[str, int] = {}  # of items that an upstream has begun, by name

    def __repr__(self) -> str:
        return f"Progress({len(self._finished)} items finished, {len(self._open)} open, next is {self.next_number})"

    def output(self) -> list[Any]:
        """The items that are finished, in their order."""
        return [self._finished[index] for index in sorted(self._finished)]

    # Taking back.

    def mark(self) -> None:
        """What happens from now on may be taken back."""
        self._undo.clear()
        self._marked = self.next_number, self.next_index

    def take_back(self) -> None:
        """Be as at the last `mark`."""
        while self._undo:
            self._undo.pop()()
        self.next_number, self.next_index = self._marked

    def put(self, where: dict[Any, Any], place: int | str, value: Any) -> None:
        """Set `where[place]`, or drop it when the value is `_ABSENT`; may be taken back."""
        self._undo.append(partial(_restore, where, place, where.get(place, _ABSENT)))
        _restore(where, place, value)

    def extend(self, values: list[Any], more: list[Any]) -> None:
        """Add to a list; may be taken back."""
        self._undo.append(partial(values.__delitem__, slice(len(values), None)))
        values.extend(more)

    # Events that an upstream wrote.

    def place_of(self, name: str | None) -> int | None:
        """Where the open item of this name is; without a name, the one that was begun last. None when there is none."""
        return next(reversed(self._open), None) if name is None else self._places.get(name)

    def has_room(self, item_bytes: int) -> bool:
        """Whether an item that begins is like those of a model: of a size to be filled yet, and beside few others."""
        return item_bytes <= LARGEST_BEGINNING and len(self._open) <= MOST_OPEN

    def saw(self, type: str, index: int, place: int, delta: str | None, value: Raw) -> None:
        """An event about the item at `index` has passed; `place` is that of a part in it, `value` the item or part."""
        item = self._open.get(index)
        if type == "response.output_item.done":
            self._name(item, _ABSENT)
            self._take_place(index)
            self.put(self._open, index, _ABSENT)
            self.put(self._finished, index, value)
            return
        if type == "response.output_item.added":
            item = _Item(_object(value))
            self._name(item, index)
            self._take_place(index)
            self.put(self._open, index, item)
            return
        if item is None:
            return
        if delta is not None and type in _DELTAS:
            self._grow(item, type, place, delta)
        elif type in ("response.content_part.added", "response.reasoning_summary_part.added"):
            self.put(_parts_of(item, type), place, _Part(_object(value)))
        elif type in ("response.content_part.done", "response.reasoning_summary_part.done"):
            self.put(_parts_of(item, type), place, _Part(_object(value), closed=True))

    def _take_place(self, index: int) -> None:
        self.next_index = max(self.next_index, index + 1)

    def _name(self, item: _Item | None, place: Any) -> None:
        """Note where an item is by what an upstream calls it in the events about it."""
        name = item and _name_of(item.value)
        if isinstance(name, str) and name:
            self.put(self._places, name, place)

    def _grow(self, item: _Item, type: str, place: int, delta: str) -> None:
        if type in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            self.extend(item.texts, [delta])
            return
        part = _parts_of(item, type).get(place)
        if part is not None:
            self.extend(part.texts, [delta])

    # Events that we write.

    def event(self, type: str, **fields: Any) -> bytes:
        """An event, numbered."""
        data = json_fields.join({"type": type, "sequence_number": self.next_number, **fields})
        self.next_number += 1
        return b"event: " + type.encode() + b"\ndata: " + data + b"\n\n"

    def begin(self, item: dict[str, Any]) -> tuple[int, bytes]:
        """`(its place in the output, the event)` of an item that begins."""
        index = self.next_index
        self._take_place(index)
        self.put(self._open, index, _Item(item))
        return index, self.event("response.output_item.added", output_index=index, item=item)

    def begin_part(self, index: int, part: dict[str, Any]) -> tuple[int, bytes]:
        """`(its place in the item, the event)` of a part that begins in an open item."""
        item, place_name = self._open[index], _PARTS[part["type"]][2]
        parts = item.parts(place_name)
        place = len(parts)
        self.put(parts, place, _Part(part))
        name = "reasoning_summary_part" if place_name == "summary_index" else "content_part"
        where = {"item_id": item.value["id"], "output_index": index, place_name: place}
        return place, self.event(f"response.{name}.added", **where, part=part)

    def grow_part(self, index: int, place: int, kind: str, text: str, **more: Any) -> bytes:
        """The event of some more text in an open part of `kind`. `more` is added to the event."""
        prefix, _, place_name = _PARTS[kind]
        item = self._open[index]
        self.extend(item.parts(place_name)[place].texts, [text])
        where = {"item_id": item.value["id"], "output_index": index, place_name: place}
        return self.event(f"{prefix}.delta", **where, delta=text, **more)

    def annotate(self, index: int, place: int, annotation: dict[str, Any]) -> bytes:
        """The event of an annotation to the text of an open part."""
        item = self._open[index]
        annotations = item.content[place].value["annotations"]
        self.extend(annotations, [annotation])
        return self.event(
            "response.output_text.annotation.added",
            item_id=item.value["id"],
            output_index=index,
            content_index=place,
            annotation_index=len(annotations) - 1,
            annotation=annotation,
        )

    def add_logprobs(self, index: int, place: int, logprobs: list[Any]) -> None:
        """Keep what a model thought of its tokens for the end of an open part."""
        self.extend(self._open[index].content[place].value["logprobs"], logprobs)

    def grow_call(self, index: int, text: str) -> bytes:
        """The event of some more of an open call's arguments, or input."""
        item = self._open[index]
        self.extend(item.texts, [text])
        prefix = _CALLS[item.value["type"]][0]
        return self.event(f"{prefix}.delta", item_id=item.value["id"], output_index=index, delta=text)

    def change(self, index: int, **fields: Any) -> None:
        """Let an open item have other fields at its end."""
        item = self._open[index]
        self.put(self._open, index, _Item({**item.value, **fields}, item.content, item.summary, item.texts))

    def is_open(self, index: int) -> bool:
        return index in self._open

    def end(self, index: int, status: str) -> bytes:
        """The events that end an open item, its parts first. `status` is `completed` or `incomplete`."""
        item = self._open[index]
        where = {"item_id": _name_of(item.value), "output_index": index}
        out = [
            self._end_part(part, {**where, place_name: place})
            for place_name in ("summary_index", "content_index")
            for place, part in sorted(item.parts(place_name).items())
            if not part.closed
        ]
        whole = item.whole(status)
        call = _CALLS.get(_kind(whole))
        if call:
            prefix, name = call
            more = {"name": whole.get("name")} if name == "arguments" else {}
            out.append(self.event(f"{prefix}.done", **where, **more, **{name: whole.get(name) or ""}))
        self.put(self._open, index, _ABSENT)
        self.put(self._finished, index, whole)
        out.append(self.event("response.output_item.done", output_index=index, item=whole))
        return b"".join(out)

    def end_all(self, status: str) -> bytes:
        """The events that end every open item, in their order."""
        return b"".join([self.end(index, status) for index in sorted(self._open)])

    def _end_part(self, part: _Part, where: dict[str, Any]) -> bytes:
        whole = part.whole()
        known = _PARTS.get(_kind(whole))
        if known is None:
            return b""
        prefix, name, place_name = known
        more = {"logprobs": whole.get("logprobs") or []} if prefix == "response.output_text" else {}
        group = "reasoning_summary_part" if place_name == "summary_index" else "content_part"
        text_done = self.event(f"{prefix}.done", **where, **{name: whole[name]}, **more)
        return text_done + self.event(f"response.{group}.done", **where, part=whole)


def _restore(where: dict[Any, Any], place: int | str, value: Any) -> None:
    if value is _ABSENT:
        where.pop(place, None)
    else:
        where[place] = value


def _parts_of(item: _Item, type: str) -> dict[int, _Part]:
    return item.summary if "reasoning_summary" in type else item.content


def _name_of(item: dict[str, Any]) -> Any:
    """What the events about an item call it: of a call that has no id, as llama.cpp's have none, its `call_id`."""
    return item.get("id") or item.get("call_id")


def _kind(value: dict[str, Any]) -> str:
    kind = value.get("type")
    return kind if isinstance(kind, str) else ""


def _object(value: Raw) -> dict[str, Any]:
    decoded = json_fields.plain(value)
    return decoded if isinstance(decoded, dict) else {}
