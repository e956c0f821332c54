"""What command lines print, as they really print it, and what it comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import CommandOutput, ProviderSettings
from penstock.dialects.usage import TokenUsage
from penstock.errors import UpstreamFailed
from penstock.providers.cli.output import MOST_LINE_BYTES, Said, reader, usage_in_words
from penstock.providers.cli.templates import CLAUDE_CODE, CODEX, GEMINI, LLM, Output, template_of
from tests.scripted_cli import Step, claude, claude_block, claude_delta, claude_result, codex, gemini, lines


def printed(steps: list[Step]) -> bytes:
    return "".join(f"{step['out']}\n" for step in steps).encode()


def read(output: Output, *pieces: bytes) -> list[Said]:
    reading = reader(output)
    return [said for piece in pieces for said in reading.feed(piece)] + reading.rest()


def text(said: list[Said]) -> str:
    return "".join(each.text for each in said)


def own(**fields: Any) -> Output:
    """The output of a command of somebody's own."""
    settings = ProviderSettings("own", kind="cli", command=("own",), output=CommandOutput(**fields))
    return template_of(settings).output


def test_claude_code_says_its_words_once_and_counts_all_it_read() -> None:
    said = read(CLAUDE_CODE.output, printed(claude(["Hello", " there."])))
    assert [each.text for each in said if each.text] == ["Hello", " there."]
    assert said[-1].usage == TokenUsage(input=16, output=5, cached_input=3, total=21, cache_write=2)
    assert said[-1].end == "stop"


def test_codex_says_whole_messages_as_paragraphs() -> None:
    said = read(CODEX.output, printed(codex("I shall look.", "It is there.")))
    assert [each.text for each in said] == ["I shall look.", "\n\nIt is there.", ""]
    assert said[-1].usage == TokenUsage(input=20, output=6, cached_input=8, reasoning=2, total=26, cache_write=1)
    assert said[-1].end == "stop"


def test_gemini_does_not_repeat_the_question() -> None:
    said = read(GEMINI.output, printed(gemini(["Hello", " there."])))
    assert [each.text for each in said] == ["Hello", " there.", ""]
    assert (said[-1].usage, said[-1].end) == (TokenUsage(input=9, output=4, cached_input=3, total=13), "stop")


def test_llm_prints_the_answer_and_counts_on_stderr() -> None:
    assert text(read(LLM.output, "Grüezi.\n\nBye.\n".encode())) == "Grüezi.\n\nBye."
    assert usage_in_words(LLM.output, "Token usage: 1,234 input, 56 output\n") == TokenUsage(1234, 56, total=1290)
    for words in ("", "Token usage: none", f"Token usage: {10**13} input, 1 output"):
        assert usage_in_words(LLM.output, words) is None
    assert usage_in_words(CODEX.output, "Token usage: 1 input, 1 output") is None


@pytest.mark.parametrize(
    ("output", "steps", "error"),
    [
        (CLAUDE_CODE, [claude_result("API Error: 400 No.", is_error=True)], "API Error: 400 No."),
        (CODEX, [{"type": "turn.failed", "error": {"message": "No."}}], "No."),
        (GEMINI, [{"type": "result", "status": "error", "error": {"type": "x", "message": "No."}}], "No."),
    ],
)
def test_an_error_is_told_in_the_commands_words_and_ends_nothing_well(
    output: Any, steps: list[Any], error: str
) -> None:
    (said,) = read(output.output, printed(lines(*steps)))
    assert (said.error, said.end, said.usage) == (error, None, None)


@pytest.mark.parametrize(
    ("output", "step", "remark"),
    [
        (CODEX, {"type": "error", "message": "Reconnecting... 1/5"}, "Reconnecting... 1/5"),
        (GEMINI, {"type": "error", "severity": "warning", "message": "Loop detected"}, "Loop detected"),
        (CLAUDE_CODE, {"type": "result", "subtype": "error_max_turns", "is_error": False}, "error_max_turns"),
    ],
)
def test_what_may_be_got_over_is_a_remark(output: Any, step: Any, remark: str) -> None:
    (said,) = read(output.output, printed(lines(step)))
    assert (said.remark, said.error, said.end) == (remark, None, None)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
        ("new_word", "stop"),
        (None, "stop"),
    ],
)
def test_how_it_ended_is_said_in_openais_words(word: str | None, reason: str) -> None:
    said = read(CLAUDE_CODE.output, printed(lines(claude_result("Hi", stop_reason=word))))
    assert said[-1].end == reason


def test_an_answer_that_came_in_no_pieces_is_taken_whole() -> None:
    (said,) = read(CLAUDE_CODE.output, printed(lines(claude_result("Hello."))))
    assert (said.text, said.end) == ("Hello.", "stop")


def test_paragraphs_stay_apart_and_a_helpers_words_stay_out() -> None:
    said = lines(
        claude_block(),
        claude_delta("First."),
        claude_delta("Aside.", parent_tool_use_id="toolu_1"),
        claude_block(),
        claude_delta("Then."),
        claude_result("Then."),
    )
    assert text(read(CLAUDE_CODE.output, printed(said))) == "First.\n\nThen."


def test_noise_is_passed_over() -> None:
    noise = b"Update available!\n\n[1,2]\n\x1b[0m\n{}\n" + b'{"type":"from the future","text":"x"}\n'
    assert text(read(CLAUDE_CODE.output, noise + printed(claude(["Hi"])))) == "Hi"


@pytest.mark.parametrize("line", [b"{", b'{"type":', b"{not json}", b'{"a":' * 100_000])
def test_a_broken_line_is_a_failure_since_words_may_be_lost(line: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="not JSON") as failure:
        read(CLAUDE_CODE.output, line + b"\n")
    assert not failure.value.began
    with pytest.raises(UpstreamFailed) as failure:
        read(CLAUDE_CODE.output, printed(lines(claude_delta("Hi"))), line)
    assert failure.value.began


def test_a_line_without_end_fills_no_memory() -> None:
    with pytest.raises(UpstreamFailed, match="too long"):
        read(CLAUDE_CODE.output, b"{" + b" " * MOST_LINE_BYTES, b" ")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    line = printed(lines(claude_delta("X"))).replace(b"X", b"a\xff\xfeb")
    assert text(read(CLAUDE_CODE.output, line)) == "a\ufffd\ufffdb"
    assert text(read(LLM.output, b"a\xffb")) == "a\ufffdb"
    half = printed(lines(claude_delta("X"))).replace(b"X", rb"a\ud83d")  # as JavaScript writes half a character
    text(read(CLAUDE_CODE.output, half)).encode()


@given(st.lists(st.text(), max_size=5), st.integers(0, 3000), st.integers(0, 3000), st.sampled_from(["jsonl", "text"]))
def test_where_the_pipe_cuts_makes_no_difference(words: list[str], first: int, second: int, form: str) -> None:
    output = CLAUDE_CODE.output if form == "jsonl" else LLM.output
    whole = printed(claude(words)) if form == "jsonl" else "".join(words).encode("utf-8", "replace")
    cuts = sorted((first, second))
    pieces = [whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :]]
    assert text(read(output, *pieces)) == text(read(output, whole))


def test_a_command_of_somebodys_own_is_read_by_paths() -> None:
    output = own(text="delta.0.text", error="error", end="done", input_tokens="usage.in", output_tokens="usage.out")
    said = read(
        output,
        printed(
            lines(
                {"delta": [{"text": "Hello"}], "error": None, "done": False},
                {"delta": [], "error": "", "usage": {"in": 3, "out": True}},
                {"done": "length", "usage": {"in": 3, "out": 4}},
            )
        ),
    )
    assert [(each.text, each.usage, each.end, each.error) for each in said] == [
        ("Hello", None, None, None),
        ("", None, None, None),
        ("", TokenUsage(3, 4, total=7), "length", None),
    ]
    (said_wrong,) = read(output, printed(lines({"error": {"code": 5}})))
    assert json.loads(said_wrong.error or "") == {"code": 5}
    assert own(text="x").says_its_end is False
    assert text(read(own(format="text"), b"plain\n")) == "plain"


def test_settings_change_a_template_where_they_say_so() -> None:
    settings = ProviderSettings(
        "own", kind="cli", template="codex", command=("my-codex", "--json"), model_option="-m", prompt="argument"
    )
    template = template_of(settings)
    assert (template.command, template.model_option, template.prompt) == (("my-codex", "--json"), "-m", "argument")
    assert template.output is CODEX.output
    assert template_of(ProviderSettings("own", kind="cli", template="codex")) == CODEX
