"""What a tools worker announces of its toolbox."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.json import encode

from penstock.hub.messages import DEEPEST, from_peer, is_deep
from penstock.toolbox.source import Toolbox
from penstock.toolbox.worker import offer_of
from penstock.tools import Tool


def schema(deep: int) -> dict[str, Any]:
    """So many objects and lists within each other, in turns."""
    value: Any = {}
    for place in range(deep - 1):
        value = {"anyOf": value} if place % 2 or place == deep - 2 else [value]
    assert isinstance(value, dict)
    return value


class Tools(Toolbox):
    """A deep tool and one that is not."""

    def tools(self) -> tuple[Tool, ...]:
        return Tool("deep", "", schema(DEEPEST + 1)), Tool("usual", "", schema(DEEPEST))


@pytest.mark.parametrize("deep", [1, 2, 3, DEEPEST - 1, DEEPEST])
def test_a_schema_may_be_as_deep_as_said(deep: int) -> None:
    assert not is_deep(schema(deep))


@pytest.mark.parametrize("deep", [DEEPEST + 1, DEEPEST + 2, 900])
def test_a_deeper_one_may_not(deep: int) -> None:
    assert is_deep(schema(deep))
    assert is_deep({"a": 1, "b": [{"c": "d"}, schema(deep - 2)]})


def test_a_tool_that_no_gateway_takes_is_not_offered_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    offer = offer_of(Tools([]), 1)
    assert [tool.name for tool in offer.tools] == ["usual"]
    assert "deep is not offered: its schema is nested deeper than 64" in caplog.text


def test_the_gateway_takes_what_is_offered() -> None:
    offer = offer_of(Tools([]), 1)
    assert from_peer(encode(offer)) == offer


class ManyTools(Toolbox):
    """More than a gateway takes at once, and a small one behind them."""

    def tools(self) -> tuple[Tool, ...]:
        return *(Tool(f"large{number}", "d" * 9_000, {}) for number in range(40)), Tool("small", "", {})


def test_as_many_tools_are_offered_as_fit_and_the_log_names_the_others(caplog: pytest.LogCaptureFixture) -> None:
    offer = offer_of(ManyTools([]), 1)
    assert 190 * 1024 < len(encode(offer)) < 201 * 1024
    assert [tool.name for tool in offer.tools][-2:] == ["large21", "small"]
    assert "18 tools are not offered, there is no room for them: large22, large23" in caplog.text
