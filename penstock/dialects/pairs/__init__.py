"""Between two dialects: a module for each pair that can be translated, named caller first (`messages_to_chat`).

There is no neutral form between them: a pair knows its two dialects and what each has that the other lacks. What cannot
be carried over is refused by name, never left out in silence.
"""

from __future__ import annotations

from types import MappingProxyType

from penstock.dialects import Dialect, Pair
from penstock.dialects.pairs import (
    chat_to_messages,
    completions_to_chat,
    messages_to_chat,
    responses_to_chat,
    responses_to_messages,
)

# The pairs there are: the caller's dialect, then those of upstreams, the one that carries more first.
PAIRS: MappingProxyType[str, tuple[tuple[str, Pair], ...]] = MappingProxyType(
    {
        "anthropic_messages": (("openai_chat", messages_to_chat),),
        "openai_chat": (("anthropic_messages", chat_to_messages),),
        "openai_completions": (("openai_chat", completions_to_chat),),
        "openai_responses": (("anthropic_messages", responses_to_messages), ("openai_chat", responses_to_chat)),
    }
)


def between(dialect: Dialect, speaks: tuple[str, ...]) -> Pair | None:
    """How a caller of `dialect` reaches an upstream that `speaks` these; None when there is no way."""
    if dialect.NAME in speaks:
        return dialect
    return next((pair for name, pair in PAIRS.get(dialect.NAME, ()) if name in speaks), None)
