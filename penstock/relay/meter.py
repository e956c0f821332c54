"""What a call has used so far: an estimate that grows with the stream, replaced by the upstream's count when it comes.

An upstream's count of zero stays zero; what is produced after a count is estimated on top of it.
"""

from __future__ import annotations

from msgspec.structs import replace

from penstock.dialects.usage import TokenUsage
from penstock.money.prices import Price, Tariff, charge


class Meter:
    """Counts one call. `output` is in tokens over all choices, whoever counted them."""

    __slots__ = (
        "_assumed",
        "_counted",
        "_input_estimate",
        "_owed",
        "_requests",
        "_since",
        "_tariff",
        "dispatched",
        "guessed",
        "output",
        "thinking_in_total",
    )

    def __init__(self, tariff: Tariff, input_estimate: int) -> None:
        self._tariff = tariff
        self._input_estimate = input_estimate
        self.thinking_in_total = False  # its count of output leaves thinking out; the total has it
        self.restart()

    def __repr__(self) -> str:
        return f"Meter({self._counted} and {self._since} since, dispatched={self.dispatched})"

    def restart(self) -> None:
        """Nothing has been used: what came before was an attempt that failed, and not the caller's to pay."""
        self._counted: TokenUsage | None = None
        self._since = 0  # tokens estimated since the last count
        self.output = 0
        self._assumed = False  # a part of the last count is our own guess
        self._requests = 1
        self._owed: tuple[Price, int] | None = None  # as last asked for; None when something has come since
        self.dispatched = False  # an upstream has the request and may bill its prompt
        self.guessed = False  # a part of what was counted is a guess of ours after all

    def begin_round(self, used: TokenUsage, *, input_estimate: int) -> None:
        """The completion needs a further request: `used` in those before, and about so much is its prompt."""
        self._owed = None
        self._requests += 1
        counted = _with_prompt(self._whole(used), input_estimate)
        self._counted, self._since, self._assumed, self.output = counted, 0, True, counted.output

    def abandon_round(self, used: TokenUsage) -> None:
        """That request did not come about: `used` in those before is all."""
        self._owed = None
        self._requests -= 1
        counted = self._whole(used)
        self._counted, self._since, self._assumed, self.output = counted, 0, False, counted.output

    def feed(self, produced: int, usage: TokenUsage | None) -> None:
        """One piece more: `produced` tokens by estimate, and the upstream's running count if it gave one."""
        self._owed = None
        if usage is None:
            self._since += produced
            self.output += produced
        else:
            self._counted = _with_thinking(usage) if self.thinking_in_total else usage
            self._since, self._assumed, self.output = 0, False, self._counted.output

    @property
    def estimated(self) -> bool:
        """Whether any part of `tokens` is our own guess."""
        return self._since > 0 or self._assumed or self.guessed or (self._counted is None and self.dispatched)

    def tokens(self) -> TokenUsage:
        """The upstream's count, else the estimate; nothing at all for a call that never reached an upstream."""
        counted, since = self._counted, self._since
        if counted is not None:
            if not since:
                return counted
            return replace(counted, output=counted.output + since, total=counted.total + since)
        input_tokens = self._input_estimate if self.dispatched else 0
        return TokenUsage(input=input_tokens, output=since, total=input_tokens + since)

    def owed(self, price: Price) -> int:
        """Units owed now, at the price of the offer that serves. A call never sent owes nothing."""
        if self._counted is None and not self.dispatched:
            return 0
        if self._owed is None or self._owed[0] is not price:
            self._owed = price, charge(self._tariff, price, self.tokens(), self._requests)
        return self._owed[1]

    def _whole(self, usage: TokenUsage) -> TokenUsage:
        return _with_thinking(usage) if self.thinking_in_total else usage


def _with_prompt(used: TokenUsage, input_estimate: int) -> TokenUsage:
    return replace(used, input=used.input + input_estimate, total=used.total + input_estimate)


def _with_thinking(usage: TokenUsage) -> TokenUsage:
    """The count with what its total has beyond input and output, which is thinking."""
    hidden = max(usage.total - usage.input - usage.output, 0)
    return replace(usage, output=usage.output + hidden, reasoning=usage.reasoning + hidden)
