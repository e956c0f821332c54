"""The input of a Responses request as chat messages.

An assistant's turn is several items there and one message here: reasoning, text and calls that follow each other come
together, or chat would not see calls made at once as such. What a tool showed besides text follows the answers of the
tools as a message, because chat has only text in them. Reasoning that only its maker can read is left to its maker;
ours (`sealed`) is opened again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from penstock.dialects import json_fields
from penstock.dialects.json_fields import plain
from penstock.dialects.openai_responses import SEAL
from penstock.dialects.pairs.responses_tools import LOCAL_SHELL, call_arguments, flat_name
from penstock.errors import InvalidRequest

Item = dict[str, Any]


def messages(instructions: str | None, input: Any) -> list[Item]:
    """The messages of a conversation. `InvalidRequest` names an item, or a part of one, that chat has nothing for."""
    conversation = _Conversation()
    if instructions:
        conversation.told("system", instructions)
    items = [{"role": "user", "content": input}] if isinstance(input, str) else input
    for place, item in enumerate(items):
        conversation.add(item, f"input[{place}]")
    return conversation.end()


def sealed(details: list[Any]) -> str:
    """What a provider wants back of a model's reasoning, as a text that a caller keeps and need not read."""
    return SEAL + base64.urlsafe_b64encode(json_fields.join(details)).decode()


def unsealed(text: Any) -> list[Any] | None:
    """What `sealed` was given; None for what somebody else has sealed."""
    if not isinstance(text, str) or not text.startswith(SEAL):
        return None
    try:
        details = plain(Raw(base64.urlsafe_b64decode(text.removeprefix(SEAL))))
    except ValueError:
        return None
    return details if isinstance(details, list) else None


class _Conversation:
    """Messages in the making. `_turn` is the assistant's that is being gathered, `_shown` what tools showed."""

    def __init__(self) -> None:
        self._messages: list[Item] = []
        self._turn: Item | None = None
        self._shown: list[Item] = []

    def __repr__(self) -> str:
        return f"_Conversation({len(self._messages)} messages)"

    def add(self, item: Item, where: str) -> None:
        """One item more."""
        kind = item.get("type") or "message"
        handle = _ITEMS.get(kind) if isinstance(kind, str) else None
        if handle is None:
            raise InvalidRequest(
                f"'{where}' is of type '{str(kind)[:50]}', which the provider of this model cannot be given.",
                param=where,
            )
        handle(self, item, where)

    def end(self) -> list[Item]:
        """All messages."""
        self._end_turn()
        self._end_outputs()
        return self._messages

    def told(self, role: str, text: str) -> None:
        """Instructions. Those at the beginning are one message: many models' templates take no more."""
        if len(self._messages) == 1 and self._messages[0]["role"] == "system":
            self._messages[0]["content"] += f"\n\n{text}"
        else:
            self._messages.append({"role": role, "content": text})

    def message(self, item: Item, where: str) -> None:
        role = item.get("role")
        if role == "assistant":
            self._assistant(item, where)
            return
        self._end_turn()
        self._end_outputs()
        if role in ("system", "developer"):
            self.told("system", "\n".join(_texts(item.get("content"), f"{where}.content")))
        elif role == "user":
            self._messages.append({"role": "user", "content": _user_content(item.get("content"), f"{where}.content")})
        else:
            raise InvalidRequest(
                f"'{where}.role' must be 'user', 'assistant', 'system' or 'developer'.", param=f"{where}.role"
            )

    def reasoning(self, item: Item, where: str) -> None:
        details = unsealed(item.get("encrypted_content"))
        texts = _reasoning_texts(item, where)
        if not details and not texts:
            return
        if self._turn is not None and "content" in self._turn and "tool_calls" not in self._turn:
            self._end_turn()
        turn = self._open_turn()
        if texts:
            turn["reasoning_content"] = "\n\n".join([*filter(None, [turn.get("reasoning_content")]), *texts])
        if details:
            turn["reasoning_details"] = [*turn.get("reasoning_details", ()), *details]

    def call(self, item: Item, where: str) -> None:
        shell = item["type"] == "local_shell_call"
        name = LOCAL_SHELL if shell else flat_name(item.get("name"), item.get("namespace"))
        call_id = _string(item, "call_id", where)
        if not name:
            raise InvalidRequest(f"'{where}.name' must be a string.", param=f"{where}.name")
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": call_arguments(item)}}
        self._open_turn().setdefault("tool_calls", []).append(call)

    def output(self, item: Item, where: str) -> None:
        call_id = _string(item, "id" if item["type"] == "local_shell_call_output" else "call_id", where)
        self._end_turn()
        texts, shown = _output(item.get("output"), f"{where}.output")
        if shown:
            self._shown += [{"type": "text", "text": f"Shown by the tool call {call_id}:"}, *shown]
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": "\n".join(texts)})

    def _assistant(self, item: Item, where: str) -> None:
        text, refusal = _said(item.get("content"), f"{where}.content")
        if self._turn is not None and "content" in self._turn and "tool_calls" not in self._turn:
            self._end_turn()
        turn = self._open_turn()
        turn["content"] = "\n\n".join(filter(None, [turn.get("content"), text]))
        if refusal:
            turn["refusal"] = refusal

    def _open_turn(self) -> Item:
        if self._turn is None:
            self._end_outputs()
            self._turn = {"role": "assistant"}
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._messages.append({"role": "assistant", "content": None} | self._turn)
            self._turn = None

    def _end_outputs(self) -> None:
        if self._shown:
            self._messages.append({"role": "user", "content": self._shown})
            self._shown = []


_ITEMS: dict[str, Callable[[_Conversation, Item, str], None]] = {
    "message": _Conversation.message,
    "reasoning": _Conversation.reasoning,
    "function_call": _Conversation.call,
    "custom_tool_call": _Conversation.call,
    "local_shell_call": _Conversation.call,
    "function_call_output": _Conversation.output,
    "custom_tool_call_output": _Conversation.output,
    "local_shell_call_output": _Conversation.output,
}


# Contents.


def _parts(content: Any, where: str) -> list[Item]:
    """The parts of a content, which may be a text."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(f"'{where}' must be a string or a list of parts.", param=where)
    return content


def _user_content(content: Any, where: str) -> str | list[Item]:
    parts = _parts(content, where)
    carried = [_part(part, f"{where}[{place}]") for place, part in enumerate(parts)]
    if len(carried) == 1 and carried[0].keys() == {"type", "text"}:
        return str(carried[0]["text"])
    return carried


def _texts(content: Any, where: str) -> list[str]:
    """The texts of a content that may be nothing else."""
    texts = []
    for place, part in enumerate(_parts(content, where)):
        carried = _part(part, f"{where}[{place}]")
        if carried["type"] != "text":
            raise InvalidRequest(f"'{where}[{place}]' must be text.", param=f"{where}[{place}]")
        texts.append(str(carried["text"]))
    return texts


def _said(content: Any, where: str) -> tuple[str, str]:
    """`(text, refusal)` of what an assistant said."""
    said, refused = [], []
    for place, part in enumerate(_parts(content, where)):
        at = f"{where}[{place}]"
        if part.get("type") == "refusal":
            refused.append(_string(part, "refusal", at))
        elif part.get("type") in ("output_text", "input_text", "text"):
            said.append(_string(part, "text", at))
        else:
            raise _unfit(part, at)
    return "".join(said), "".join(refused)


def _output(output: Any, where: str) -> tuple[list[str], list[Item]]:
    """`(texts, other parts)` of a tool's output."""
    texts, shown = [], []
    for place, part in enumerate(_parts(output, where)):
        carried = _part(part, f"{where}[{place}]")
        if carried["type"] == "text":
            texts.append(str(carried["text"]))
        else:
            shown.append(carried)
    return texts, shown


def _part(part: Item, where: str) -> Item:
    """A part of a message as chat has it, a mark for the cache with it."""
    mark = part.get("prompt_cache_breakpoint")
    return _content(part, where) | ({"prompt_cache_breakpoint": mark} if mark is not None else {})


def _content(part: Item, where: str) -> Item:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": _string(part, "text", where)}
        case "input_image":
            _refuse(part, "file_id", where)
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": _string(part, "image_url", where), **detail}}
        case "input_file":
            _refuse(part, "file_id", where)
            _refuse(part, "file_url", where)
            name = {"filename": part["filename"]} if part.get("filename") else {}
            return {"type": "file", "file": {**name, "file_data": _string(part, "file_data", where)}}
        case "input_audio" if isinstance(part.get("input_audio"), dict):
            return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise _unfit(part, where)


def _reasoning_texts(item: Item, where: str) -> list[str]:
    """What reasoning can be read of an item: itself, else its summary."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts:
            return [_string(part, "text", f"{where}.{name}") for part in _parts(parts, f"{where}.{name}")]
    return []


def _string(value: Item, name: str, where: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise InvalidRequest(f"'{where}.{name}' must be a string.", param=f"{where}.{name}")
    return text


def _refuse(part: Item, name: str, where: str) -> None:
    if part.get(name) is not None:
        raise InvalidRequest(
            f"'{where}.{name}' cannot be carried to the provider of this model; send the data itself.",
            param=f"{where}.{name}",
        )


def _unfit(part: Item, where: str) -> InvalidRequest:
    kind = str(part.get("type"))[:50]
    return InvalidRequest(f"'{where}' is of type '{kind}', which cannot be carried here.", param=where)
