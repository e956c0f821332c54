"""Events that differ in their text alone are found together, and no others with them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects.alike import FIRST_WINDOW, Alike, put_together

LEAD, TAIL = b'data: {"text":"', b'"}\n\n'
TWO_LINES = b'event: text\ndata: {"text":"'
PADDED = b'","pad":"'
FIRST = re.compile(rb'(?:event: text\n)?data: \{"text":"([^"\\\x00-\x1f]*)(?:","pad":"([^"\\\x00-\x1f]*))?"\}\n\n')
OTHERS = [
    b'data: {"text":"a","end":1}\n\n',
    b'data: {"more":1,"text":"a"}\n\n',
    b'data: {"text":"a"}\nid: 5\n\n',
    b'data: {"text":"a\\"}{"text":"b"}\n\n',
    b'data: {"text":"a\\n"}\n\n',
    b'data: {"text":"\x07"}\n\n',
    b'data: {"text":"',
    b'data: {"text":"a"}\n',
    b"\n\n",
    b"\n",
    b'id: 5\ndata: {"text":"a"}\n\n',
    b'data: {"text":"\n\n"}\n\n',
    b'data: {"text":"a","pad":"b","pad":"c"}\n\n',
    b'data: {"text":"a","pad":"\\u0020"}\n\n',
]


def found(block: bytes) -> tuple[list[bytes], int]:
    """Texts and end, and that they come to what they are said to."""
    first = FIRST.match(block)
    assert first is not None
    texts, fillings, end = Alike().find(block, 0, first)
    assert put_together(block[: first.start(1)], fillings, TAIL) == block[:end]
    assert all(filling.split(PADDED)[0] == text for text, filling in zip(texts, fillings, strict=True))
    return list(texts), end


@pytest.mark.parametrize("lead", [LEAD, TWO_LINES])
@pytest.mark.parametrize("texts", [["a"], ["a", "", "ü", "data: ", "{}[]:,"], ["x" * 400] * 30])
def test_all_of_them_are_found(lead: bytes, texts: list[str]) -> None:
    block = put_together(lead, [text.encode() for text in texts], TAIL)
    assert found(block) == ([text.encode() for text in texts], len(block))


def test_those_that_are_padded_are_found() -> None:
    texts = [b"a", b"", "ü".encode(), b"data: "]
    block = put_together(LEAD, [text + PADDED + b"x" * 7 * place for place, text in enumerate(texts)], TAIL)
    assert found(block) == (texts, len(block))


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("padding", [b"", PADDED + b"xyz"])
@pytest.mark.parametrize("lead", [LEAD, TWO_LINES])
def test_none_is_found_behind_another_one(lead: bytes, padding: bytes, other: bytes) -> None:
    before, after = (put_together(lead, [each + padding for each in two], TAIL) for two in ([b"a", b"b"], [b"c", b"d"]))
    assert found(before + other + after) == ([b"a", b"b"], len(before))
    assert found(before + other) == ([b"a", b"b"], len(before))


TEXTS = st.text('ab {}:,"\\\n', max_size=4).map(str.encode)
EVENTS = st.builds(lambda text: LEAD + text + TAIL, TEXTS)
PADDED_EVENTS = st.builds(lambda text, pad: LEAD + text + PADDED + pad + TAIL, TEXTS, TEXTS)


@given(st.sampled_from([b"", PADDED]), st.lists(EVENTS | PADDED_EVENTS | st.sampled_from(OTHERS), max_size=8))
def test_they_are_those_that_one_after_the_other_would_be(padding: bytes, events: list[bytes]) -> None:
    block = LEAD + padding + TAIL + b"".join(events)
    one_by_one, end = [], 0
    while (
        (event := FIRST.match(block, end)) and block.startswith(LEAD, end) and (event[2] is not None) == bool(padding)
    ):
        one_by_one.append(event[1])
        end = event.end()
    assert found(block) == (one_by_one, end)


def test_one_that_is_longer_than_it_looks_at_first_is_found() -> None:
    text = b"a" * (FIRST_WINDOW + 1)
    assert found(LEAD + text + TAIL) == ([text], len(LEAD + text + TAIL))


def test_those_of_a_long_block_are_found_in_few_goes() -> None:
    block = put_together(LEAD, [b"abc"] * 50_000, TAIL)
    alike, start, goes = Alike(), 0, 0
    while start < len(block):
        first = FIRST.match(block, start)
        assert first is not None
        texts, _, start = alike.find(block, start, first)
        assert set(texts) == {b"abc"}
        goes += 1
    assert goes < 6


def test_behind_events_that_stand_alone_it_looks_no_farther_than_a_little() -> None:
    block = put_together(LEAD, [b"a"], TAIL) + OTHERS[0] * 2 * FIRST_WINDOW
    alike, first = Alike(), FIRST.match(block)
    assert first is not None
    for _ in range(2):
        assert alike.find(block, 0, first)[2] == len(LEAD + b"a" + TAIL)
    assert "window=2048" in repr(alike)
