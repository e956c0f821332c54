"""A chat conversation carried to Messages and back, and a chat answer likewise: nothing of what is meant is lost."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import Label, anthropic_messages, openai_chat
from penstock.dialects.pairs import chat_to_messages, messages_to_chat

LABEL = Label("mine", None, "req_7", 9)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
texts = words.map(lambda text: {"type": "text", "text": text})
images = st.sampled_from(["https://x.test/a.png", "data:image/png;base64,iVBORw0KGgo="]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
values = st.dictionaries(
    words, st.integers(-9, 9) | words | st.none() | st.lists(st.booleans(), max_size=2), max_size=2
)


@st.composite
def rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Some turns: a user's, the model's with calls, their results, and the user's again."""
    conversation: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            conversation.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(words)})
        conversation.append({"role": "user", "content": draw(words | st.lists(texts | images, min_size=1, max_size=3))})
        said = draw(st.none() | words)
        called = draw(st.lists(st.tuples(names, values), max_size=2))
        if said is None and not called:
            continue
        ids = [f"call_{len(conversation)}_{number}" for number in range(len(called))]
        conversation.append({"role": "assistant", "content": said})
        if called:
            conversation[-1]["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
                for id, (name, given) in zip(ids, called, strict=True)
            ]
        conversation += [{"role": "tool", "tool_call_id": id, "content": draw(words)} for id in ids]
    return [*conversation, {"role": "user", "content": draw(words)}]


def meaning(messages: list[dict[str, Any]]) -> list[Any]:
    """What is said, by whom, in which order: instructions first, and neighbours of one mouth as one."""
    system: list[Any] = [each["content"] for each in messages if each["role"] in ("system", "developer")]
    found: list[Any] = [("system", "".join(text for each in system for text in listed(each)))]
    for message in messages:
        if message["role"] in ("system", "developer"):
            continue
        said: list[Any] = listed(message.get("content"))
        if message["role"] == "tool":
            said = [(message["tool_call_id"], *said)]
        for call in message.get("tool_calls") or ():
            function = call["function"]
            said.append((call["id"], function["name"], json.loads(function["arguments"])))
        if found[-1][0] == message["role"]:
            found[-1][1].extend(said)
        else:
            found.append((message["role"], said))
    return found


def listed(content: Any) -> list[Any]:
    """Texts and addresses of images."""
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    return [part["text"] if part["type"] == "text" else ("image", part["image_url"]["url"]) for part in parts]


def there_and_back(fields: dict[str, Any]) -> dict[str, Any]:
    """The chat request that comes out of a chat request by way of Messages."""
    limits: Any = {"output_limit": 5_000, "limit_field": "max_tokens", "ask_usage": False}
    chat = openai_chat.peek(json.dumps({"model": "m", **fields}).encode(), max_output_tokens=9_999)
    between = chat_to_messages.request(chat, model="claude-opus-4-8", **limits)
    message = anthropic_messages.peek(between, max_output_tokens=9_999)
    found: dict[str, Any] = json.loads(messages_to_chat.request(message, model="m", **limits))
    return found


@given(rounds())
def test_a_conversation_keeps_its_meaning(messages: list[dict[str, Any]]) -> None:
    assert meaning(there_and_back({"messages": messages})["messages"]) == meaning(messages)


schemas = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(words, st.just({"type": "string"}), max_size=2)}
)
tools = st.lists(
    st.builds(
        lambda name, words, schema: {
            "type": "function",
            "function": {"name": name, "description": words, "parameters": schema},
        },
        names,
        words,
        schemas,
    ),
    min_size=1,
    max_size=3,
)


@given(tools, st.sampled_from(["auto", "none", "required", "named", None]), st.booleans())
def test_tools_and_their_choice_keep_theirs(defined: list[dict[str, Any]], choice: str | None, alone: bool) -> None:
    named = {"type": "function", "function": {"name": defined[0]["function"]["name"]}}
    asked: dict[str, Any] = {"tools": defined}
    if choice is not None:
        asked["tool_choice"] = named if choice == "named" else choice
    if alone and choice not in (None, "none"):
        asked["parallel_tool_calls"] = False
    found = there_and_back({"messages": [{"role": "user", "content": "x"}], **asked})
    assert {name: found[name] for name in ("tools", "tool_choice", "parallel_tool_calls") if name in found} == asked


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0, 0.5]),
            "top_p": st.sampled_from([0.1, 0.9]),
            "stop": st.lists(words.filter(str.strip), min_size=1, max_size=3),
            "reasoning_effort": st.sampled_from(["low", "medium", "high", "xhigh", "max"]),
            "user": st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
        },
    )
)
def test_what_is_asked_besides_keeps_its_value(asked: dict[str, Any]) -> None:
    found = there_and_back({"messages": [{"role": "user", "content": "x"}], **asked})
    assert {name: found.get(name) for name in asked} == asked


@given(
    st.none() | words,
    st.lists(st.tuples(names, values), max_size=2),
    st.sampled_from(["stop", "length", "content_filter"]),
    st.integers(0, 99),
    st.integers(0, 9),
)
def test_an_answer_keeps_its_words_its_calls_and_its_count(
    said: str | None, called: list[tuple[str, Any]], finish: str, cached: int, thought: int
) -> None:
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for number, (name, given) in enumerate(called)
    ]
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }
    message = {"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})}
    finish = "tool_calls" if calls else finish
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage}
    body = json.dumps(answer | {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    as_message = messages_to_chat.answer(
        body, wish=anthropic_messages.peek(json.dumps(asked).encode(), max_output_tokens=99), label=LABEL
    )
    chat = openai_chat.peek(json.dumps(asked).encode(), max_output_tokens=99)
    back = chat_to_messages.answer(as_message.body, wish=chat, label=LABEL)
    choice = json.loads(back.body)["choices"][0]
    assert (choice["message"]["content"] or "", choice["finish_reason"]) == (said or "", finish)
    assert meaning([choice["message"]]) == meaning([{**message, "content": choice["message"]["content"]}])
    assert json.loads(back.body)["usage"] == usage
    assert back.usage == as_message.usage
