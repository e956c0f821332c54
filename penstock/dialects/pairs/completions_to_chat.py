"""Legacy completions over a chat upstream: the prompt becomes what a user says, the answer's words the text.

A chat does not continue a text, it answers; so what makes sense only for continuing (`echo`, `suffix`, a prompt in
tokens, `logprobs` of its text) is refused by name. Several prompts would be several chats, and are refused too.
Sampling fields are the same in both and pass. What a model thinks before it answers has no place in a completion: it is
counted, and not shown.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, json
from msgspec.structs import replace

from penstock.dialects import Label, Plain, Step, Wish, json_fields, openai_chat, openai_completions, sse
from penstock.dialects.openai_completions import CompletionStream
from penstock.errors import InvalidRequest, UpstreamFailed

PATH = openai_chat.PATH

# Fields that a chat has nothing for, and what they may say all the same.
_REFUSED: dict[str, tuple[Any, ...]] = {"suffix": (None, ""), "echo": (None, False), "logprobs": (None,)}


def request(wish: Wish, *, model: str, output_limit: int | None, limit_field: str, ask_usage: bool) -> bytes:
    """The body of a chat. `InvalidRequest` names the field that cannot be carried."""
    fields = dict(wish.fields)
    for name, harmless in _REFUSED.items():
        value = json_fields.plain(fields.pop(name, None))
        if not any(value is each or (type(value) is type(each) and value == each) for each in harmless):
            raise InvalidRequest(f"'{name}' cannot be had of a chat model, which is what serves here.", param=name)
    if output_limit == 0:
        raise InvalidRequest("'max_tokens' must be at least 1 where a chat model serves.", param="max_tokens")
    del fields["prompt"]
    fields["messages"] = Raw(json_fields.join([{"role": "user", "content": _prompt(wish)}]))
    chat = replace(wish, fields=fields)
    return openai_chat.request(
        chat, model=model, output_limit=output_limit, limit_field=limit_field, ask_usage=ask_usage
    )


def _prompt(wish: Wish) -> str:
    prompts = openai_completions.prompts(wish.fields)
    if len(prompts) > 1:
        raise InvalidRequest("A chat model, which is what serves here, takes one prompt a call.", param="prompt")
    prompt = prompts[0]
    if not isinstance(prompt, str):
        raise InvalidRequest("A chat model, which is what serves here, takes no tokens for a prompt.", param="prompt")
    return prompt


# What comes back.


class _Text(Struct, gc=False):
    content: str | None = None
    refusal: str | None = None

    def shown(self) -> str:
        return self.content or self.refusal or ""


class _Choice(Struct, gc=False):
    index: int = 0
    message: _Text | None = None
    delta: _Text | None = None
    finish_reason: str | None = None


class _Chat(Struct, gc=False):
    choices: list[_Choice]
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None


_CHAT = json.Decoder(_Chat)


def answer(body: bytes, *, wish: Wish, label: Label) -> Plain:
    """The completion that a chat's answer comes to. `UpstreamFailed` when it is none."""
    plain = openai_chat.answer(body, wish=wish, label=label)
    try:
        chat = _CHAT.decode(body)
    except (ValueError, RecursionError):
        raise UpstreamFailed("The provider's answer is not a chat completion.", began=True) from None
    document = _envelope(chat, label) | {"choices": [_completed(choice) for choice in chat.choices]}
    usage = json_fields.split(body).get("usage")
    if usage is not None:
        document["usage"] = usage
    return Plain(json_fields.join(document), plain.usage, plain.produced)


def _completed(choice: _Choice) -> dict[str, Any]:
    said = choice.message or choice.delta
    return {
        "text": said.shown() if said is not None else "",
        "index": choice.index,
        "logprobs": None,
        "finish_reason": choice.finish_reason,
    }


def _envelope(chat: _Chat, label: Label) -> dict[str, Any]:
    named: dict[str, Any] = {
        "id": _id(label),
        "object": "text_completion",
        "created": label.created_s if chat.created is None else chat.created,
        "model": chat.model or "" if label.model is None else label.model,
    }
    return named | ({"system_fingerprint": chat.system_fingerprint} if chat.system_fingerprint else {})


def _id(label: Label) -> str:
    return f"{label.id_prefix or 'cmpl-'}{label.id.removeprefix('req_')}"


def open_stream(*, wish: Wish, label: Label) -> CompletionsOfChat:
    """Begin reading a streamed chat."""
    return CompletionsOfChat(wish=wish, label=label)


class CompletionsOfChat(CompletionStream):
    """A streamed chat as a streamed completion. The chat is counted as one; its texts are written anew."""

    __slots__ = ("_chat", "_label")

    def __init__(self, *, wish: Wish, label: Label) -> None:
        super().__init__(wish=wish, label=label)
        self._chat = openai_chat.open_stream(wish=wish, label=label)
        self._label = label
        self._identity |= {"id": _id(label), "created": label.created_s}

    def feed(self, event: bytes) -> Step:
        """Read one raw event of the chat. Never raises: what is not understood is counted by size, and not shown."""
        step = self._chat.feed(event)
        if step.done or step.error is not None or not step.out:
            return step
        data = sse.data(event)
        return Step(event if data is None else self._written(data), step.produced, step.usage, step.finish_reason)

    def _written(self, data: bytes) -> bytes:
        try:
            chat = _CHAT.decode(data)
        except (ValueError, RecursionError):
            return b""
        usage = json_fields.split(data).get("usage")
        choices = [self._noted(choice) for choice in chat.choices if _has_news(choice)]
        reports = usage is not None and bytes(usage) != b"null"
        if not choices and not reports:
            return b""
        self._identity |= _envelope(chat, self._label)
        return openai_completions.event({**self._identity, "choices": choices} | ({"usage": usage} if reports else {}))

    def _noted(self, choice: _Choice) -> dict[str, Any]:
        (self._ended if choice.finish_reason else self._open).add(choice.index)
        return _completed(choice)


def _has_news(choice: _Choice) -> bool:
    """Whether a choice has text or ends; that an assistant is about to speak is no news in a completion."""
    return choice.finish_reason is not None or bool(choice.delta and choice.delta.shown())
