"""What a call used, in Anthropic's words: read from an upstream that speaks Messages, written for a caller who does.

Anthropic tells the prompt in three parts that do not overlap: read from a cache, written to one, and the rest. Ours is
their sum (`usage.TokenUsage`). In a stream the counts come in two events, and the later ones are totals.
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct, json

from penstock.dialects.json_fields import split
from penstock.dialects.usage import Count, TokenUsage


class OutputDetails(Struct, gc=False):
    """`usage.output_tokens_details`."""

    thinking_tokens: Count | None = None


class CacheCreation(Struct, gc=False):
    """`usage.cache_creation`: what was written to a cache, by how long it is kept."""

    ephemeral_1h_input_tokens: Count | None = None


class UsageReport(Struct, gc=False):
    """The `usage` object of the wire."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    output_tokens_details: OutputDetails | None = None
    cache_creation: CacheCreation | None = None

    def after(self, earlier: UsageReport) -> UsageReport:
        """This report with what only an earlier one of the same stream said."""
        names = self.__struct_fields__
        later = ((getattr(self, name), getattr(earlier, name)) for name in names)
        return UsageReport(*(ours if ours is not None else theirs for ours, theirs in later))

    def counted(self) -> TokenUsage | None:
        """The tokens reported, or None when the report does not say how many went in and came out."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        details = self.output_tokens_details
        thinking = (details.thinking_tokens if details is not None else None) or 0
        hour = (self.cache_creation.ephemeral_1h_input_tokens if self.cache_creation is not None else None) or 0
        input = self.input_tokens + read + written
        return TokenUsage(
            input,
            self.output_tokens,
            cached_input=read,
            reasoning=min(thinking, self.output_tokens),
            total=input + self.output_tokens,
            cache_write=written,
            cache_write_1h=min(hour, written),
        )


_REPORT = json.Decoder(UsageReport)
_COUNT = json.Decoder(Count)


def read_report(raw: Raw | None) -> UsageReport:
    """The report in a raw JSON value. A field of the wrong type counts as absent."""
    if not raw:
        return UsageReport()
    try:
        return _REPORT.decode(raw)
    except (ValueError, RecursionError):
        return _salvage(raw)


def _salvage(raw: Raw) -> UsageReport:
    """The fields of a report that are counts."""
    kept = {}
    try:
        for name, value in split(raw).items():
            if name in UsageReport.__struct_fields__:
                kept[name] = _count(value)
    except (ValueError, RecursionError):
        return UsageReport()
    return UsageReport(**{name: value for name, value in kept.items() if value is not None})


def _count(raw: Raw) -> Any:
    try:
        return _COUNT.decode(raw)
    except (ValueError, RecursionError):
        return None


def write_report(usage: TokenUsage) -> dict[str, Any]:
    """The `usage` object that says this."""
    report: dict[str, Any] = {
        "input_tokens": max(usage.input - usage.cached_input - usage.cache_write, 0),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached_input,
        "output_tokens": usage.output,
    }
    if usage.cache_write:
        minutes = usage.cache_write - usage.cache_write_1h
        kept = {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": usage.cache_write_1h}
        report["cache_creation"] = kept
    if usage.reasoning:
        report["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return report
