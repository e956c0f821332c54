"""What a call used, in tokens: as an upstream reports it, and as we estimate it when no upstream did.

The report is OpenAI's `usage` object with the additions other servers make to it. Prices are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json

from penstock.dialects.json_fields import plain

MOST_TOKENS = 10**12  # far beyond any context; a larger report is noise and would overflow a ledger
SHORT_DELTA_BYTES = 16  # engines send a token an event, and the longest words in their vocabularies are about this long
BYTES_PER_TOKEN = 4  # of English text, for which it is a little high or low by a quarter

Count = Annotated[int, Meta(ge=0, le=MOST_TOKENS)]


class TokenUsage(Struct, frozen=True, gc=False):
    """Tokens of one call. `cached_input` and `cache_write` (read from a prompt cache, and written to one) are parts of
    `input`, `cache_write_1h` (kept there for an hour) is a part of `cache_write`, `reasoning` a part of `output`.

    `total` is what the upstream called the total, else the sum of input and output.
    """

    input: int
    output: int
    cached_input: int = 0
    reasoning: int = 0
    total: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0


class PromptDetails(Struct, gc=False):
    """`usage.prompt_tokens_details`."""

    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class CompletionDetails(Struct, gc=False):
    """`usage.completion_tokens_details`."""

    reasoning_tokens: Count | None = None


class UsageReport(Struct, gc=False):
    """The `usage` object of the wire."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: Count | None = None  # DeepSeek's name for the cached part

    def counted(self) -> TokenUsage | None:
        """The tokens reported, or None when the report does not say how many went in and came out. Zero is a number."""
        input, output, total = self.prompt_tokens, self.completion_tokens, self.total_tokens
        if input is None:
            return None
        if output is None:
            if total is None:
                return None
            output = max(total - input, 0)
        cached, written, reasoning = self.prompt_cache_hit_tokens or 0, 0, 0
        if self.completion_tokens_details is not None:
            reasoning = self.completion_tokens_details.reasoning_tokens or 0
            if reasoning and total == input + output + reasoning:
                output += reasoning  # xAI reports thinking beside the completion, everyone else inside it
            reasoning = min(reasoning, output)
        if self.prompt_tokens_details is not None:
            prompt = self.prompt_tokens_details
            cached = cached if prompt.cached_tokens is None else prompt.cached_tokens
            written = min(prompt.cache_write_tokens or 0, max(input - cached, 0))
        cached = cached and min(cached, input)
        return TokenUsage(input, output, cached, reasoning, input + output if total is None else total, written)


_REPORT = json.Decoder(UsageReport)


def read_usage(raw: Raw | None) -> TokenUsage | None:
    """The usage in a raw JSON value. A field of the wrong type counts as absent; None when too little is left."""
    if raw is None:
        return None
    try:
        return _REPORT.decode(raw).counted()
    except (ValueError, RecursionError):
        return _salvage(plain(raw))


def _salvage(value: Any) -> TokenUsage | None:
    """Keep the fields of a report that are counts and drop the rest."""
    if not isinstance(value, dict):
        return None
    return UsageReport(
        _count(value, "prompt_tokens"),
        _count(value, "completion_tokens"),
        _count(value, "total_tokens"),
        PromptDetails(
            _count(value.get("prompt_tokens_details"), "cached_tokens"),
            _count(value.get("prompt_tokens_details"), "cache_write_tokens"),
        ),
        CompletionDetails(_count(value.get("completion_tokens_details"), "reasoning_tokens")),
        _count(value, "prompt_cache_hit_tokens"),
    ).counted()


def _count(report: Any, name: str) -> int | None:
    return count_of(report.get(name)) if isinstance(report, dict) else None


def count_of(value: Any) -> int | None:
    """A count of tokens; a float such as 12.0 is one, 12.5, true and "12" are not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def estimate_tokens(size_bytes: int) -> int:
    """Tokens in so many bytes of UTF-8 text, rounded up."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def estimate_delta_tokens(size_bytes: int) -> int:
    """Tokens in one stream event's worth of text: none, one when it is short, else as for any text."""
    if size_bytes <= SHORT_DELTA_BYTES:
        return 1 if size_bytes else 0
    return estimate_tokens(size_bytes)


def estimate_deltas(texts: Sequence[bytes]) -> int:
    """`estimate_delta_tokens` of each text's size, added up."""
    sizes = list(map(len, texts))
    if max(sizes) <= SHORT_DELTA_BYTES:  # nearly always
        return len(sizes) - sizes.count(0)
    return sum(map(estimate_delta_tokens, sizes))
