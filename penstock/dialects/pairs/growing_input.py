"""A tool's input that comes in pieces of JSON: whether it is whole."""

from __future__ import annotations

import re

from penstock.dialects import json_fields

# What says where an object ends: its braces, where strings begin and end, and what is escaped in them. A backslash that
# comes last waits for what it escapes.
_MARKS = re.compile(r'[{}"]|\\.|\\\Z', re.DOTALL)
_BLANKS = " \t\r\n"


class GrowingInput:
    """A tool's input as it grows, and whether it is an object, and whole. However often that is asked, each part is
    looked through once."""

    __slots__ = ("_depth", "_ended", "_escape", "_quoted", "_read", "_texts", "_whole")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._read = 0  # so many of them have been looked through
        self._depth = 0
        self._quoted = False
        self._escape = ""
        self._ended = False  # there were as many closing braces as opening ones
        self._whole: bool | None = None

    def __repr__(self) -> str:
        return f"GrowingInput({len(self._texts)} parts, whole={self._whole})"

    def add(self, text: str) -> None:
        """A piece more."""
        self._texts.append(text)

    def is_whole(self) -> bool:
        """Whether it is an object that has ended; nothing but blanks may have come behind it."""
        for place in range(self._read, len(self._texts)):
            self._look_through(self._texts[place])
        self._read = len(self._texts)
        if self._ended and self._whole is None:
            self._whole = is_object("".join(self._texts).encode("utf-8", "surrogatepass"))
        return self._whole is True

    def _look_through(self, text: str) -> None:
        if self._ended:
            self._whole = False if text.strip(_BLANKS) else self._whole
            return
        marks = _MARKS.findall(self._escape + text)
        self._escape = marks[-1] if marks and marks[-1] == "\\" else ""
        for mark in marks:
            if mark == '"':
                self._quoted = not self._quoted
            elif mark in "{}" and not self._quoted:
                self._depth += 1 if mark == "{" else -1
                self._ended = self._ended or self._depth <= 0


def is_object(raw: bytes) -> bool:
    """Whether this is a JSON object, as far as its fields."""
    try:
        json_fields.split(raw)
        return True
    except (ValueError, RecursionError):
        return False
