"""Rounds of tool calls as transcripts: what goes upstream, what the caller sees, what is counted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from penstock.dialects import sse
from penstock.dialects.anthropic_usage import read_report
from penstock.dialects.rounds import Kept, Round, chat, messages
from penstock.dialects.usage import TokenUsage, read_usage
from penstock.errors import UpstreamFailed
from penstock.tools import Tool, ToolResult
from tests import toolcalls
from tests.toolcalls import Turn, call

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
OURS = Tool("web_search", "Searches.", SCHEMA)
ALSO_OURS = Tool("web_fetch", "Fetches.", SCHEMA)
THEIRS = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
THEIRS_IN_MESSAGES = {"name": "weather", "input_schema": SCHEMA}
HELLO = [{"role": "user", "content": "Hello!"}]
FIELDS = """choices delta index message content tool_calls id function name arguments finish_reason usage prompt_tokens
completion_tokens error type content_block input text thinking signature stop_reason input_tokens output_tokens role
tool_use_id reasoning_details"""
NAMES = st.sampled_from(FIELDS.split()) | st.text(max_size=3)
FOUND = ToolResult("Found.")

# One for each dialect: module, how its answers and streams are written, the caller's own tool.
Way = tuple[ModuleType, Any, Any, dict[str, Any]]
CHAT: Way = (chat, toolcalls.chat, toolcalls.chat_events, THEIRS)
MESSAGES: Way = (messages, toolcalls.message, toolcalls.message_events, THEIRS_IN_MESSAGES)
BOTH = pytest.mark.parametrize("way", [CHAT, MESSAGES], ids=["chat", "messages"])


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 500, "messages": HELLO, **fields}).encode()


def opened(way: Way, **fields: Any) -> Any:
    return way[0].open_rounds(body(**fields), [OURS, ALSO_OURS])


def streamed(rounds: Any, events: Iterator[bytes]) -> bytes:
    return b"".join(rounds.feed(event)[0] for event in events)


def results(round: Round, result: ToolResult = FOUND) -> dict[str, ToolResult]:
    return {each.id: result for each in round.calls}


def text_of(way: Way, answer: dict[str, Any]) -> str:
    if way is CHAT:
        return str(answer["choices"][0]["message"]["content"])
    return "|".join(block["text"] for block in answer["content"] if block["type"] == "text")


def calls_in(way: Way, answer: dict[str, Any]) -> list[str]:
    if way is CHAT:
        return [each["function"]["name"] for each in answer["choices"][0]["message"].get("tool_calls", [])]
    return [block["name"] for block in answer["content"] if block["type"] == "tool_use"]


def finish_of(way: Way, answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["finish_reason"] if way is CHAT else answer["stop_reason"])


def collected(way: Way, stream: bytes) -> dict[str, Any]:
    """A stream as the answer that a caller's SDK makes of it. Fails when it is no valid stream."""
    return _collected_chat(stream) if way is CHAT else _collected_message(stream)


def _collected_chat(stream: bytes) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "", "content": ""}
    finish, usage, ids, done = None, None, set(), False
    calls: dict[int, dict[str, Any]] = {}
    for event in sse.events(stream):
        assert not done
        data = sse.data(event)
        if data == b"[DONE]":
            done = True
            continue
        chunk = json.loads(data or b"")
        ids.add(chunk["id"])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            assert finish is None
            delta = choice["delta"]
            message["role"] += delta.get("role") or ""
            message["content"] += delta.get("content") or ""
            for piece in delta.get("tool_calls", []):
                assert piece["index"] <= len(calls)  # no gaps
                known = calls.setdefault(
                    piece["index"], {"id": piece.get("id"), "function": {"name": "", "arguments": ""}}
                )
                for name, text in piece["function"].items():
                    known["function"][name] += text
            finish = choice["finish_reason"]
    assert done
    assert len(ids) == 1
    assert message["role"] == "assistant"
    if calls:
        message["tool_calls"] = list(calls.values())
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _collected_message(stream: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    open_blocks: set[int] = set()
    for event in sse.events(stream):
        fields = json.loads(sse.data(event) or b"")
        match fields["type"]:
            case "message_start":
                assert not answer
                answer = fields["message"]
            case "content_block_start":
                assert fields["index"] == len(answer["content"])  # in order, no gaps
                open_blocks.add(fields["index"])
                answer["content"].append({**fields["content_block"], "json": ""})
            case "content_block_delta":
                assert fields["index"] in open_blocks
                block, delta = answer["content"][fields["index"]], fields["delta"]
                block["text"] = block.get("text", "") + delta.get("text", "")
                block["json"] += delta.get("partial_json", "")
            case "content_block_stop":
                open_blocks.remove(fields["index"])
            case "message_delta":
                assert not open_blocks
                answer |= fields["delta"]
                answer["usage"] |= fields["usage"]
            case "message_stop":
                answer["stopped"] = True
    assert answer.pop("stopped")
    return answer


def went_through(way: Way, turns: list[Turn], *, stream: bool, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """Go through these turns, all calls of ours answered; the rounds, and what the caller got."""
    rounds = opened(way, **fields)
    out = b""
    for turn in turns:
        if stream:
            out += streamed(rounds, way[2](turn))
            round = rounds.ended()
        else:
            round = rounds.read(way[1](turn).body)
        if not round.calls:
            break
        rounds.answered(results(round))
        if round.theirs:
            break
    if stream:
        return rounds, collected(way, out + rounds.closing())
    return rounds, json.loads(rounds.whole())


STREAM = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


@BOTH
def test_definitions_of_ours_follow_the_callers(way: Way) -> None:
    theirs = way[3]
    request = json.loads(opened(way, tools=[theirs]).request(output_limit=None, last=False))
    assert request["tools"][0] == theirs
    named = [tool.get("name") or tool["function"]["name"] for tool in request["tools"]]
    assert named == ["weather", "web_search", "web_fetch"]
    assert request["messages"] == HELLO
    assert request["max_tokens"] == 500


@BOTH
def test_a_tool_that_the_caller_declares_stays_the_callers(way: Way) -> None:
    mine = {"name": "web_search", "parameters": SCHEMA, "input_schema": SCHEMA}
    declared = mine if way is MESSAGES else {"type": "function", "function": mine}
    assert opened(way, tools=[declared]).names == {"web_fetch"}


@pytest.mark.parametrize(
    ("way", "fields"),
    [
        (CHAT, {"n": 2}),
        (CHAT, {"tool_choice": "none"}),
        (CHAT, {"tool_choice": "required"}),
        (CHAT, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (CHAT, {"functions": [{"name": "weather"}]}),
        (CHAT, {"tools": "nonsense"}),
        (MESSAGES, {"tool_choice": {"type": "none"}}),
        (MESSAGES, {"tool_choice": {"type": "any"}}),
        (MESSAGES, {"tool_choice": {"type": "tool", "name": "weather"}}),
    ],
)
def test_a_caller_that_says_how_tools_are_called_gets_none_of_ours(way: Way, fields: dict[str, Any]) -> None:
    assert opened(way, **fields).names == frozenset()


@BOTH
def test_without_a_call_everything_passes_byte_for_byte(way: Way) -> None:
    turn = Turn("Just text.", calls=(call("weather"),))
    plain = way[1](turn).body
    rounds = opened(way)
    assert rounds.read(plain).calls == ()
    assert rounds.whole() == plain
    rounds, events = opened(way), list(way[2](turn))
    assert b"".join(rounds.feed(event)[0] for event in events) + rounds.closing() == b"".join(events)
    assert rounds.ended().calls == ()


@BOTH
@STREAM
def test_the_text_of_all_rounds_is_one_answer_and_their_usage_one_sum(way: Way, stream: bool) -> None:
    turns = [
        Turn("Let me look.", (call("web_search", {"q": "x"}),), prompt=10, output=5),
        Turn("", (call("web_fetch", {"q": "y"}),), prompt=20, output=6),
        Turn("It is so.", prompt=30, output=7),
    ]
    rounds, answer = went_through(way, turns, stream=stream)
    assert text_of(way, answer) == ("Let me look.\n\nIt is so." if way is CHAT else "Let me look.|It is so.")
    assert calls_in(way, answer) == []
    assert finish_of(way, answer) == ("stop" if way is CHAT else "end_turn")
    names = ("prompt_tokens", "completion_tokens") if way is CHAT else ("input_tokens", "output_tokens")
    assert [answer["usage"][name] for name in names] == [60, 18]
    assert rounds.so_far == TokenUsage(30, 11, total=41)


@STREAM
def test_what_rounds_of_a_message_wrote_to_a_cache_thought_and_did_beside_is_in_their_sum(stream: bool) -> None:
    rounds = opened(MESSAGES)
    out = b""
    before = {
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 4,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    }
    after = {
        "output_tokens_details": {"thinking_tokens": 2},
        "iterations": [{"type": "compaction", "input_tokens": 100, "output_tokens": 50}],
    }
    for turn in (Turn("", (call("web_search"),), prompt=10, output=5), Turn("So.", prompt=20, output=7)):
        if stream:
            for event in toolcalls.message_events(turn):
                fields = json.loads(sse.data(event) or b"")
                if fields["type"] == "message_start":
                    fields["message"]["usage"] |= before
                if fields["type"] == "message_delta":
                    fields["usage"] |= after
                out += rounds.feed(b"data: " + json.dumps(fields).encode() + b"\n\n")[0]
            round = rounds.ended()
        else:
            plain = json.loads(toolcalls.message(turn).body)
            round = rounds.read(json.dumps({**plain, "usage": plain["usage"] | before | after}).encode())
        if round.calls:
            rounds.answered(results(round))
    answer = collected(MESSAGES, out + rounds.closing()) if stream else json.loads(rounds.whole())
    told = read_report(Raw(json.dumps(answer["usage"]).encode())).counted()
    assert told == TokenUsage(298, 112, 8, 4, 410, 60, 20)  # in all, of two rounds with a compaction each


@STREAM
def test_what_rounds_of_a_chat_wrote_to_a_cache_is_in_their_sum(stream: bool) -> None:
    rounds = opened(CHAT)
    out = b""
    written = b'"prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 3}, "prompt_tokens":'
    for turn in (Turn("", (call("web_search"),), prompt=10, output=5), Turn("So.", prompt=20, output=7)):
        if stream:
            events = [each.replace(b'"prompt_tokens":', written) for each in toolcalls.chat_events(turn)]
            out += streamed(rounds, iter(events))
            round = rounds.ended()
        else:
            round = rounds.read(toolcalls.chat(turn).body.replace(b'"prompt_tokens":', written))
        if round.calls:
            rounds.answered(results(round))
    answer = collected(CHAT, out + rounds.closing()) if stream else json.loads(rounds.whole())
    told = read_usage(Raw(json.dumps(answer["usage"]).encode()))
    assert told == TokenUsage(30, 12, cached_input=2, total=42, cache_write=6)


@STREAM
def test_the_next_request_has_the_turn_and_the_results_in_chat(stream: bool) -> None:
    rounds = opened(CHAT)
    turn = Turn("Hm.", (call("web_search", {"q": "x"}, "a"), call("web_fetch", {"q": "y"}, "b")))
    if stream:
        streamed(rounds, toolcalls.chat_events(turn))
        round = rounds.ended()
    else:
        round = rounds.read(toolcalls.chat(turn).body)
    assert [(each.id, each.name, each.arguments) for each in round.calls] == [
        ("a", "web_search", {"q": "x"}),
        ("b", "web_fetch", {"q": "y"}),
    ]
    rounds.answered({"a": FOUND, "b": ToolResult("No.", failed=True)})
    request = json.loads(rounds.request(output_limit=77, last=False))
    assert request["max_tokens"] == 77
    assert request["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": "Hm.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "web_search", "arguments": '{"q": "x"}'}},
                {"id": "b", "type": "function", "function": {"name": "web_fetch", "arguments": '{"q": "y"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "Found."},
        {"role": "tool", "tool_call_id": "b", "content": "Error: No."},
    ]


@STREAM
def test_the_next_request_has_the_turn_and_the_results_in_messages(stream: bool) -> None:
    rounds = opened(MESSAGES)
    turn = Turn("Hm.", (call("web_search", {"q": "x"}, "a"), call("web_fetch", {"q": "y"}, "b")))
    if stream:
        streamed(rounds, toolcalls.message_events(turn))
        round = rounds.ended()
    else:
        round = rounds.read(toolcalls.message(turn).body)
    rounds.answered({"a": FOUND, "b": ToolResult("No.", failed=True)})
    assert [each.arguments for each in round.calls] == [{"q": "x"}, {"q": "y"}]
    request = json.loads(rounds.request(output_limit=77, last=False))
    assert request["max_tokens"] == 77
    assert request["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Hm."},
                {"type": "tool_use", "id": "a", "name": "web_search", "input": {"q": "x"}},
                {"type": "tool_use", "id": "b", "name": "web_fetch", "input": {"q": "y"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "Found."},
                {"type": "tool_result", "tool_use_id": "b", "content": "No.", "is_error": True},
            ],
        },
    ]


def test_what_is_thought_goes_back_with_its_signature() -> None:
    rounds = opened(MESSAGES, thinking={"type": "enabled", "budget_tokens": 400})
    thinking = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
        {"type": "content_block_stop", "index": 0},
    ]
    events = list(toolcalls.message_events(Turn("", (call("web_search", {}, "a"),))))
    shifted = [event.replace(b'"index":0', b'"index":1') for event in events[1:]]
    thoughts = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in thinking]
    for event in (events[0], *thoughts, *shifted):
        rounds.feed(event)
    rounds.answered(results(rounds.ended()))
    request = json.loads(rounds.request(output_limit=300, last=False))
    assert request["messages"][1]["content"][0] == {"type": "thinking", "thinking": "Hm", "signature": "sig"}
    assert request["thinking"] == {"type": "disabled"}  # its budget does not fit below what is left


@BOTH
@STREAM
def test_in_a_mixed_round_the_caller_sees_its_own_calls_and_gets_the_rest_back(way: Way, stream: bool) -> None:
    turns = [
        Turn("First.", (call("web_search", {"q": "x"}, "a"),)),
        Turn("Then.", (call("web_fetch", {}, "b"), call("weather", {"q": "Rome"}, "c"), call("weather", {}, "d"))),
    ]
    rounds, answer = went_through(way, turns, stream=stream, tools=[way[3]])
    assert calls_in(way, answer) == ["weather", "weather"]
    assert finish_of(way, answer) == ("tool_calls" if way is CHAT else "tool_use")
    digest, kept = rounds.kept("acc_1")
    follow_up = answered_by_caller(way, ["c", "d"])
    assert way[0].digests(follow_up, "acc_1") == (digest,)
    assert way[0].digests(follow_up, "acc_2") != (digest,)
    restored = json.loads(way[0].restored(follow_up, "acc_1", {digest: kept}))["messages"]
    if way is CHAT:
        assert [message["role"] for message in restored] == [
            "user", "assistant", "tool", "assistant", "tool", "tool", "tool", "user",
        ]  # fmt: skip
        asked = [each["id"] for message in restored for each in message.get("tool_calls", [])]
        given = [message["tool_call_id"] for message in restored if message["role"] == "tool"]
    else:
        assert [message["role"] for message in restored] == ["user", "assistant", "user", "assistant", "user"]
        blocks = [block for message in restored[1:] for block in message["content"]]
        asked = [block["id"] for block in blocks if block["type"] == "tool_use"]
        given = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert blocks[-1] == {"type": "text", "text": "Well?"}
    assert sorted(asked) == sorted(given) == ["a", "b", "c", "d"]
    assert given.index("b") < given.index("c")


def answered_by_caller(way: Way, ids: list[str]) -> bytes:
    """The caller's next request: the conversation as it has seen it, and its results."""
    arguments = {"c": '{ "q":"Rome" }', "d": "{}"}  # written by another hand
    if way is CHAT:
        calls = [
            {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments[id]}} for id in ids
        ]
        turn = {"role": "assistant", "content": "First.\n\nThen.", "tool_calls": calls}
        given: list[Any] = [{"role": "tool", "tool_call_id": id, "content": "sunny"} for id in ids]
        return body(tools=[THEIRS], messages=[*HELLO, turn, *given, {"role": "user", "content": "Well?"}])
    blocks = [{"type": "tool_use", "id": id, "name": "weather", "input": json.loads(arguments[id])} for id in ids]
    cached = [{"role": "user", "content": [{"type": "text", "text": "Hello!", "cache_control": {"type": "ephemeral"}}]}]
    answers = [{"type": "tool_result", "tool_use_id": id, "content": "sunny"} for id in ids]
    follow = {"role": "user", "content": [*answers, {"type": "text", "text": "Well?"}]}
    turn = {"role": "assistant", "content": [{"type": "text", "text": "First."}, *blocks]}
    return body(tools=[THEIRS_IN_MESSAGES], messages=[*cached, turn, follow])


@BOTH
def test_calls_of_the_caller_alone_are_kept_only_after_rounds_of_ours(way: Way) -> None:
    alone, _ = went_through(way, [Turn("", (call("weather", {}, "c"),))], stream=True, tools=[way[3]])
    assert alone.kept("acc_1") is None
    turns = [Turn("", (call("web_search", {}, "a"),)), Turn("", (call("weather", {}, "c"),))]
    rounds, answer = went_through(way, turns, stream=True, tools=[way[3]])
    assert calls_in(way, answer) == ["weather"]
    kept = rounds.kept("acc_1")
    assert kept is not None
    assert len(kept[1].turns) == 3
    assert kept[1].pending == []


@BOTH
def test_a_conversation_in_another_dialect_is_left_as_it_is(way: Way) -> None:
    request = answered_by_caller(way, ["c"])
    (digest,) = way[0].digests(request, "acc_1")
    foreign = Kept("another", [], [])
    restored = way[0].restored(request, "acc_1", {digest: foreign})
    assert json.loads(restored) == json.loads(request)


@BOTH
def test_a_message_that_is_repeated_repeats_nothing_that_was_kept(way: Way) -> None:
    once = json.loads(answered_by_caller(way, ["c"]))
    request = json.dumps({**once, "messages": once["messages"] * 50}).encode()
    kept = Kept(way[0].NAME, [Raw(b'{"role":"assistant","content":"kept"}')])
    (name,) = set(way[0].digests(request, "acc_1"))
    assert way[0].restored(request, "acc_1", {name: kept}).count(b'"kept"') == 1


@BOTH
@STREAM
def test_a_call_that_was_cut_off_is_not_run(way: Way, stream: bool) -> None:
    cut = "length" if way is CHAT else "max_tokens"
    turn = Turn("Hm.", (call("web_search", {"q": "x"}),), finish=cut)
    rounds, answer = went_through(way, [turn], stream=stream)
    assert finish_of(way, answer) == cut
    assert calls_in(way, answer) == []
    assert rounds.so_far == TokenUsage(0, 0)


@pytest.mark.parametrize("arguments", ['{"q": ', "[1]", '"text"', "nonsense"])
def test_broken_arguments_are_an_error_for_the_model_and_valid_json_for_the_upstream(arguments: str) -> None:
    rounds = opened(CHAT)
    streamed(rounds, toolcalls.chat_events(Turn("", (call("web_search", arguments, "a"),))))
    round = rounds.ended()
    assert round.calls[0].arguments is None
    rounds.answered(results(round))
    turn, result = json.loads(rounds.request(output_limit=None, last=False))["messages"][1:]
    assert turn["tool_calls"][0]["function"]["arguments"] == "{}"
    assert result["content"] == "Error: The arguments were not a JSON object."


@BOTH
def test_the_last_round_offers_nothing_of_ours(way: Way) -> None:
    with_own = json.loads(opened(way, tools=[way[3]]).request(output_limit=None, last=True))
    assert with_own["tools"] == [way[3]]
    without = json.loads(
        opened(way, **({"tool_choice": "auto"} if way is CHAT else {})).request(output_limit=None, last=True)
    )
    if way is CHAT:
        assert without.keys() == {"model", "max_tokens", "messages"}
    else:
        assert without["tool_choice"] == {"type": "none"}
        assert len(without["tools"]) == 2


@BOTH
@STREAM
def test_an_answer_that_is_cut_for_money_says_so_and_is_valid(way: Way, stream: bool) -> None:
    rounds = opened(way)
    turn = Turn("Let me look.", (call("web_search", {"q": "x"}),), prompt=10, output=5)
    out = streamed(rounds, way[2](turn)) if stream else b""
    round = rounds.ended() if stream else rounds.read(way[1](turn).body)
    rounds.answered(results(round))
    rounds.cut("insufficient_balance")
    final = out + rounds.closing() if stream else rounds.whole()
    answer = collected(way, final) if stream else json.loads(final)
    assert text_of(way, answer) == "Let me look."
    assert calls_in(way, answer) == []
    assert finish_of(way, answer) == ("length" if way is CHAT else "max_tokens")
    assert b'"reason":"insufficient_balance"' in final
    assert (answer["usage"]["prompt_tokens" if way is CHAT else "input_tokens"]) == 10


def test_calls_without_ids_or_with_one_index_for_all_are_told_apart() -> None:
    """Some servers send every call whole, each under index 0."""
    pieces = [
        {"index": 0, "id": "x", "function": {"name": "web_search", "arguments": '{"q":"1"}'}},
        {"index": 0, "id": "y", "function": {"name": "weather", "arguments": "{}"}},
        {"index": 0, "id": "z", "function": {"name": "web_search", "arguments": '{"q":"2"}'}},
    ]
    rounds = opened(CHAT)
    out = b""
    for piece in pieces:
        choice = {"index": 0, "delta": {"role": "assistant", "tool_calls": [piece]}, "finish_reason": None}
        out += rounds.feed(b"data: " + json.dumps({"id": "i", "choices": [choice]}).encode() + b"\n\n")[0]
    done = {"id": "i", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    out += rounds.feed(b"data: " + json.dumps(done).encode() + b"\n\n")[0]
    round = rounds.ended()
    assert [(each.id, each.arguments) for each in round.calls] == [("x", {"q": "1"}), ("z", {"q": "2"})]
    assert round.theirs
    assert b'"id":"y"' in out
    assert b"web_search" not in out


def test_calls_that_all_have_one_id_are_told_apart() -> None:
    same = call("web_search", {"q": "1"}, "call_0"), call("web_fetch", {"q": "2"}, "call_0")
    rounds = opened(CHAT)
    round = rounds.read(toolcalls.chat(Turn("", same)).body)
    assert len({each.id for each in round.calls}) == 2
    rounds.answered({each.id: ToolResult(each.name) for each in round.calls})
    _, turn, *given = json.loads(rounds.request(output_limit=None, last=False))["messages"]
    asked = {each["id"]: each["function"]["name"] for each in turn["tool_calls"]}
    assert {each["tool_call_id"]: each["content"] for each in given} == asked


def test_hidden_pieces_are_counted_so_that_they_can_be_paid() -> None:
    rounds = opened(CHAT)
    long = json.dumps({"q": "x" * 4_000})
    hidden = sum(rounds.feed(event)[1] for event in toolcalls.chat_events(Turn("", (call("web_search", long),))))
    assert hidden >= 1_000


def streamed_call(way: Way, id: str = "a", name: str = "web_search") -> list[bytes]:
    """The events of a stream up to a call's first piece."""
    events = list(way[2](Turn("", (call(name, {}, id),))))
    return events[:2]


def chat_delta(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"id": "i", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def message_delta(type: str, **fields: Any) -> bytes:
    document = {"type": "content_block_delta", "index": 0, "delta": {"type": type, **fields}}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def pieces_of_a_call(function: dict[str, str]) -> bytes:
    return chat_delta(tool_calls=[{"index": 0, "function": function}])


LONG = "0123456789abcdef" * 16
MANY = 60_000
ENDLESS: dict[str, tuple[Way, bytes]] = {
    "text": (CHAT, chat_delta(content=LONG)),
    "details of reasoning": (CHAT, chat_delta(reasoning=" t", reasoning_details=[{"text": " t", "index": 0}])),
    "arguments": (CHAT, pieces_of_a_call({"arguments": LONG})),
    "a name": (CHAT, pieces_of_a_call({"name": LONG})),
    "text of a block": (MESSAGES, message_delta("text_delta", text=LONG)),
    "thinking": (MESSAGES, message_delta("thinking_delta", thinking=LONG)),
    "an input": (MESSAGES, message_delta("input_json_delta", partial_json=LONG)),
    "citations": (MESSAGES, message_delta("citations_delta", citation={"cited_text": "t"})),
}


@pytest.mark.parametrize("of", ENDLESS)
def test_a_round_takes_a_time_like_its_length(of: str) -> None:
    way, event = ENDLESS[of]
    rounds = opened(way)
    began_s = time.process_time()
    for each in (*streamed_call(way), *[event] * MANY):
        rounds.feed(each)
    rounds.ended()
    assert time.process_time() - began_s < 8  # a second at most; when each event copied the rest, half a minute


def calls_at_once(number: int) -> Iterator[bytes]:
    for start in range(0, number, 1_000):
        pieces = [
            {"index": index, "id": f"c{index}", "function": {"name": "weather", "arguments": ""}}
            for index in range(start, start + 1_000)
        ]
        yield chat_delta(tool_calls=pieces)


def test_many_calls_are_numbered_and_counted_in_a_time_like_their_number() -> None:
    rounds = opened(CHAT, tools=[THEIRS])
    counted = b'data: {"id":"i","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
    began_s = time.process_time()
    out = streamed(rounds, calls_at_once(20_000))
    for _ in range(5_000):  # as from a server that counts after each event
        rounds.feed(counted)
    assert time.process_time() - began_s < 8
    assert b'"index":19999' in out
    assert rounds.ended().theirs


def test_a_second_round_reads_the_head_of_the_first_once() -> None:
    rounds = opened(CHAT)
    head = {"id": "i", "image": "x" * 1_000_000, "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    rounds.feed(b"data: " + json.dumps(head).encode() + b"\n\n")
    streamed(rounds, toolcalls.chat_events(Turn("", (call("web_search", {}, "a"),))))
    rounds.answered(results(rounds.ended()))
    began_s = time.process_time()
    out = b"".join(rounds.feed(chat_delta(content="a"))[0] for _ in range(30_000))
    assert time.process_time() - began_s < 8
    assert out.count(b'"id":"i"') == 30_000


# Whatever an upstream sends.

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False)
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=8
)


@BOTH
@given(documents=st.lists(ANYTHING, max_size=6), answer=ANYTHING)
@settings(max_examples=60, deadline=None)
def test_nonsense_of_an_upstream_is_an_error_by_name_or_passes(way: Way, documents: list[Any], answer: Any) -> None:
    rounds = opened(way, tools=[way[3]])
    usual = list(way[2](Turn("Hm.", (call("web_search", {"q": "x"}, "a"),))))
    for document in [None, *documents]:
        rounds.feed(b"data: " + json.dumps(document).encode() + b"\n\n")
        for event in usual[:-1]:
            rounds.feed(event)
    round = rounds.ended()
    if round.calls:
        rounds.answered(results(round))
        rounds.request(output_limit=10, last=False)
    rounds.closing()
    rounds.kept("acc_1")
    rounds = opened(way)
    with suppress(UpstreamFailed):
        round = rounds.read(json.dumps(answer).encode())
        if round.calls:
            rounds.answered(results(round))
        rounds.whole()


DAMAGED = {
    "no UTF-8": b'"h\xff"',
    "half a character": b'"\\ud800"',
    "a number beyond all": b"1e400",
    "an integer beyond all": b"9" * 5_000,
    "nested too deep": b"[" * 5_000 + b"]" * 5_000,
}


@BOTH
@pytest.mark.parametrize("what", DAMAGED)
def test_an_answer_that_cannot_be_read_is_the_upstreams_failure(way: Way, what: str) -> None:
    whole = way[1](Turn("Hm.", (call("web_search", {}, "a"),))).body
    for place in (b'"a"', b'"Hm."'):
        with pytest.raises(UpstreamFailed):
            opened(way).read(whole.replace(place, DAMAGED[what]))


@BOTH
@pytest.mark.parametrize("usage", [[1], "x", 7, True, {"prompt_tokens": 10**30, "input_tokens": 10**30}])
@STREAM
def test_a_count_that_is_none_is_as_if_there_were_none(way: Way, stream: bool, usage: Any) -> None:
    turns = [Turn("Hm.", (call("web_search", {}, "a"),)), Turn("So.")]
    rounds = opened(way)
    for turn in turns:
        if stream:
            for event in way[2](turn):
                rounds.feed(with_usage(event, usage))
            round = rounds.ended()
        else:
            document = {**json.loads(way[1](turn).body), "usage": usage}
            round = rounds.read(json.dumps(document).encode())
        assert round.usage is None
        if round.calls:
            rounds.answered(results(round))
    answered = rounds.closing() if stream else rounds.whole()
    if not stream:
        assert 0 < json.loads(answered)["usage"]["prompt_tokens" if way is CHAT else "input_tokens"] < 1_000


def with_usage(event: bytes, usage: Any) -> bytes:
    """A stream's event with another count."""
    data = sse.data(event) or b""
    if b'"usage"' not in data:
        return event
    document = json.loads(data)
    document.get("message", document)["usage"] = usage
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize("odd", [[], ["web_search"], {}, {"a": 1}, 7, True])
@STREAM
def test_names_and_reasons_that_are_no_words_belong_to_nobody(stream: bool, odd: Any) -> None:
    for own in (Turn("Hm.", (call("web_search", {}, "a"),)), Turn("Hm.", (call("web_search", {}, "a"),), finish="odd")):
        rounds = opened(MESSAGES)
        old = b'"odd"' if own.finish else b'"web_search"'
        if stream:
            for event in toolcalls.message_events(own):
                rounds.feed(event.replace(old, json.dumps(odd).encode()))
            round = rounds.ended()
        else:
            round = rounds.read(toolcalls.message(own).body.replace(old, json.dumps(odd).encode()))
        assert len(round.calls) == (own.finish is not None)
        assert round.theirs == (own.finish is None)


def test_citations_that_are_no_list_give_way_to_those_that_come() -> None:
    rounds = opened(MESSAGES)
    block = {"type": "text", "text": "", "citations": 7}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    rounds.feed(b"data: " + json.dumps(start).encode() + b"\n\n")
    rounds.feed(message_delta("citations_delta", citation={"cited_text": "t"}))
    events = [event.replace(b'"index":0', b'"index":1') for event in MESSAGES[2](Turn("", (call("web_search", {}),)))]
    for event in events:
        rounds.feed(event)
    rounds.answered(results(rounds.ended()))
    turn = json.loads(rounds.request(output_limit=None, last=False))["messages"][1]
    assert turn["content"] == [turn["content"][-1]]  # it has no text


@BOTH
@STREAM
def test_what_can_just_be_read_and_not_be_written_again_is_the_upstreams_failure(way: Way, stream: bool) -> None:
    for depth in range(sys.getrecursionlimit() - 100, sys.getrecursionlimit()):
        rounds = opened(way)
        nested = b'{"deep":' + b"[" * depth + b"]" * depth + b","
        turn = Turn("Hm.", (call("web_search", {}, "a"),))
        with suppress(UpstreamFailed):
            if stream:
                for event in way[2](turn):
                    rounds.feed(event.replace(b"{", nested, 1))
                    rounds.feed(event.replace(b'"arguments"', nested[1:] + b'"arguments"'))
                    rounds.feed(event.replace(b'"tool_use"', b'"tool_use",' + nested[1:-1]))
                round = rounds.ended()
            else:
                round = rounds.read(way[1](turn).body.replace(b'"function": {', b'"function": ' + nested))
            if round.calls:
                rounds.answered(results(round))
                rounds.request(output_limit=None, last=False)
            _ = rounds.closing() if stream else rounds.whole()


@BOTH
@given(messages=st.lists(st.dictionaries(NAMES, ANYTHING, max_size=5), max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_conversation_is_looked_through_and_comes_out_as_it_was(way: Way, messages: list[Any]) -> None:
    request = body(messages=messages, more='"tool_calls" "tool_use"')
    digests = way[0].digests(request, "acc_1")
    assert json.loads(way[0].restored(request, "acc_1", {})) == json.loads(request)
    assert all(len(digest) == 64 for digest in digests)
