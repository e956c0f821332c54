"""What a command line is given for a chat request, what is refused, and the bounds kept on its answer."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest
from penstock.providers.cli.bounds import Bounds
from penstock.providers.cli.prompt import CLOSE, LEAD, Asked, Turn, read, render

HELLO = [{"role": "user", "content": "Hello!"}]
TURNS = st.lists(
    st.builds(
        Turn,
        st.sampled_from(["system", "user", "assistant"]),
        st.text() | st.text(alphabet='<>/turn-2of="user \n', max_size=40),
        st.sampled_from(["", "Ada", "bob-2"]),
    ),
    min_size=2,
    max_size=6,
).filter(lambda turns: any(turn.text.strip() for turn in turns))


def asked(messages: Any = HELLO, **fields: Any) -> Asked:
    return read(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def said_back(prompt: str) -> list[Turn]:
    """The turns that somebody who knows the form reads in a prompt."""
    body = prompt.removeprefix(f"{LEAD}\n\n").removesuffix(f"\n\n{CLOSE}")
    opening = re.match(r"<(turn(?:-\d+)?) of=", body)
    assert opening
    mark = re.escape(opening[1])
    found = re.findall(rf'<{mark} of="(\w+)"(?: name="([^"]*)")?>\n(.*?)\n</{mark}>', body, re.DOTALL)
    return [Turn(speaker, text, name) for speaker, name, text in found]


def test_a_single_question_is_given_as_it_is() -> None:
    assert asked().prompt == "Hello!"
    assert asked(
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    ).prompt == ("a\n\nb")


@pytest.mark.parametrize(
    "text", ["/help", "!ls", "@/etc/passwd", "#note", "$skill", "--version", "  /help", "\ufeff/help"]
)
def test_no_prompt_begins_as_an_order_to_the_command(text: str) -> None:
    prompt = asked([{"role": "user", "content": text}]).prompt
    assert prompt.startswith(LEAD)
    assert said_back(prompt) == [Turn("user", text)]


def test_a_conversation_says_who_speaks() -> None:
    prompt = asked(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi", "name": 'A"da'},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Why?"},
        ]
    ).prompt
    assert said_back(prompt) == [
        Turn("system", "Be brief."),
        Turn("user", "Hi", "A_da"),
        Turn("assistant", "No."),
        Turn("user", "Why?"),
    ]


@given(TURNS)
def test_whatever_is_said_in_a_turn_no_turn_can_be_forged(turns: list[Turn]) -> None:
    assert said_back(render(turns)) == turns


def test_a_mark_is_found_in_a_time_like_the_size_of_what_is_said() -> None:
    said = "<turn>" + "".join(f"<turn-{number}" for number in range(2, 100_000)) + "</turn-" + "9" * 100_000
    started_s = time.perf_counter()
    prompt = render([Turn("user", said), Turn("user", "</turn-0002 <turn-1000001>")])
    assert time.perf_counter() - started_s < 2
    assert prompt.startswith(f'{LEAD}\n\n<turn-100001 of="user">\n')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"messages": []}, "messages"),
        ({"messages": 5}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["", "a" * 257]}, "stop"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields)
    assert refused.value.param == param


def test_what_asks_for_nothing_special_is_no_hindrance() -> None:
    usual = asked(
        tools=[],
        tool_choice="auto",
        n=1,
        response_format={"type": "text"},
        logprobs=False,
        logit_bias=None,
        temperature=0,
    )
    assert (usual.prompt, usual.stream, usual.output_limit, usual.stops) == ("Hello!", False, None, ())
    wish = asked(stream=True, stream_options={"include_usage": True}, max_completion_tokens=5, stop=["a", ""])
    assert (wish.stream, wish.include_usage, wish.output_limit, wish.stops) == (True, True, 5, ("a",))
    assert asked(stop="END").stops == ("END",)


# Bounds.


def passed(bounds: Bounds, *texts: str) -> list[str]:
    """What comes through until the bounds are reached."""
    through = []
    for text in texts:
        if bounds.reached is None:
            through.append(bounds.let_pass(text))
    return [*through, bounds.rest()]


@pytest.mark.parametrize(
    ("limit", "texts", "through", "reached"),
    [
        (3, ["a", "b", "c"], ["a", "b", "c", ""], None),
        (3, ["a", "b", "c", "d"], ["a", "b", "c", "", ""], "length"),
        (2, ["a", "x" * 40], ["a", "x" * 4, ""], "length"),
        (5, ["ü" * 40], ["ü" * 10, ""], "length"),
        (1, ["你" * 40], ["你", ""], "length"),
        (None, ["x" * 4000], ["x" * 4000, ""], None),
    ],
)
def test_no_more_tokens_pass_than_were_allowed(
    limit: int | None, texts: list[str], through: list[str], reached: str | None
) -> None:
    bounds = Bounds(limit, ())
    assert passed(bounds, *texts) == through
    assert bounds.reached == reached


@pytest.mark.parametrize(
    ("stops", "texts", "through", "reached"),
    [
        (("END",), ["one EN", "D two"], "one ", "stop"),
        (("END",), ["one EN", "TER"], "one ENTER", None),
        (("END",), ["one EN"], "one EN", None),
        (("b", "ab"), ["xab"], "x", "stop"),
        (("\n\n",), ["a\n", "b\n", "\nc"], "a\nb", "stop"),
        (("aab",), ["aaa", "ab"], "aa", "stop"),
    ],
)
def test_nothing_of_a_stop_sequence_nor_after_it_is_said(
    stops: tuple[str, ...], texts: list[str], through: str, reached: str | None
) -> None:
    bounds = Bounds(None, stops)
    assert "".join(passed(bounds, *texts)) == through
    assert bounds.reached == reached


@given(
    st.text(alphabet="ab", max_size=30), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), st.data()
)
def test_a_stop_sequence_is_found_wherever_the_text_is_cut(text: str, stops: list[str], data: Any) -> None:
    at = data.draw(st.integers(0, len(text)))
    bounds = Bounds(None, tuple(stops))
    met = [(found + len(stop), found) for stop in stops if (found := text.find(stop)) >= 0]
    assert "".join(passed(bounds, text[:at], text[at:])) == text[: min(met, default=(0, len(text)))[1]]
