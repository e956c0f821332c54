"""Events that are alike but for the text they add: found together, so that none of them has to be read.

A server writes the events of one answer in one way. Behind an event that adds text and nothing else usually come more
that are the same byte for byte, but for the text. So they are guessed to be, cut at the places where their texts would
be then, and put together again: when that is what came, the guess was right. This module knows bytes; what an event
that adds text looks like is the dialects' business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FIRST_WINDOW = 16_384  # bytes looked through at first: an answer that has come as a whole
LEAST_WINDOW = 2_048  # and behind events that stood alone: a dozen events
_GROWTH = 8
_NOT_PLAIN = bytes([*range(0x20), *b'"\\'])  # what JSON escapes


class Alike:
    """Finds them in the blocks of one stream.

    It looks only somewhat farther than the last time it found any: looking through all the rest for each event that
    stands alone would take time squared.
    """

    __slots__ = ("_window",)

    def __init__(self) -> None:
        self._window = FIRST_WINDOW

    def __repr__(self) -> str:
        return f"Alike(window={self._window})"

    def find(self, block: bytes, start: int, first: re.Match[bytes]) -> tuple[Sequence[bytes], Sequence[bytes], int]:
        """`(texts, fillings, where their events end)` of the event that begins at `start` and those behind it that are
        like it.

        `first` has matched that event's end, with its empty line, and in its first group its text, which is plain. What
        is in its second group, if anything is, differs from event to event too. A filling is what begins with the one
        and ends with the other: a text alone is its own.
        """
        text_at, end = first.span(1)
        between = None
        if first.lastindex == 2:
            between = block[end : first.start(2)]
            end = first.end(2)
        lead, tail = block[start:text_at], block[end : first.end()]
        stop = max(start + self._window, first.end())
        fillings = _guessed(block[start:stop], lead, tail)
        together = put_together(lead, fillings, tail)
        texts = _texts(fillings, between)
        if texts is None or not block.startswith(together, start):
            texts, fillings = _one_by_one(block, start, stop, lead, between, tail)
            together = put_together(lead, fillings, tail)
        end = start + len(together)
        self._window = _GROWTH * self._window if 2 * end > start + stop else LEAST_WINDOW
        return texts, fillings, end


def put_together(lead: bytes, fillings: Sequence[bytes], tail: bytes) -> bytes:
    """The events with these fillings."""
    return lead + (tail + lead).join(fillings) + tail


def _guessed(window: bytes, lead: bytes, tail: bytes) -> list[bytes]:
    """What the fillings are if all events up to the last one that looks alike are."""
    lines = lead.count(b"\n")
    ends = window.split(b"\n")[lines : -1 : lines + 2]  # the last line of each event; a single byte is found fastest
    begins, ends_with = lead[lead.rfind(b"\n") + 1 :], tail[:-2]
    while not (ends[-1].startswith(begins) and ends[-1].endswith(ends_with)):
        ends.pop()
    before, after = len(begins), -len(ends_with)
    return [end[before:after] for end in ends]


def _one_by_one(
    block: bytes, start: int, stop: int, lead: bytes, between: bytes | None, tail: bytes
) -> tuple[list[bytes], list[bytes]]:
    """Texts and fillings up to the first event that is another one."""
    texts: list[bytes] = []
    fillings: list[bytes] = []
    while block.startswith(lead, start):
        begin = start + len(lead)
        end = block.find(tail, begin, stop)
        if end < 0:
            break
        filling = [block[begin:end]]
        text = _texts(filling, between)
        if text is None:
            break
        texts += text
        fillings += filling
        start = end + len(tail)
    return texts, fillings


def _texts(fillings: list[bytes], between: bytes | None) -> list[bytes] | None:
    """The texts in them; None when one of them is not what it looks like."""
    if between is None:
        return fillings if is_plain(b"".join(fillings)) else None
    texts, rest = [], []
    for filling in fillings:
        text, found, other = filling.partition(between)
        if not found:
            return None
        texts.append(text)
        rest.append(other)
    return texts if is_plain(b"".join(texts)) and is_plain(b"".join(rest)) else None


def is_plain(text: bytes) -> bool:
    """Whether a text in JSON is as long as it looks."""
    return len(text.translate(None, _NOT_PLAIN)) == len(text)
