"""What a call has used so far: an estimate that grows with the stream, replaced by the upstream's count when it comes.

An upstream's count of zero stays zero; what is produced after a count is estimated on top of it.
"""

from __future__ import annotations

from penstock.dialects.usage import TokenUsage
from penstock.money.prices import Price, Tariff, charge


class Meter:
    """Counts one call. `output` is in tokens over all choices, whoever counted them."""

    __slots__ = ("_counted", "_input_estimate", "_owed", "_since", "_tariff", "dispatched")

    def __init__(self, tariff: Tariff, input_estimate: int) -> None:
        self._tariff = tariff
        self._input_estimate = input_estimate
        self._counted: TokenUsage | None = None
        self._since = 0  # tokens estimated since the last count
        self._owed: tuple[Price, int] | None = None  # as last asked for; None when something has come since
        self.dispatched = False  # an upstream has the request and may bill its prompt

    def __repr__(self) -> str:
        return f"Meter({self._counted} and {self._since} since, dispatched={self.dispatched})"

    def feed(self, produced: int, usage: TokenUsage | None) -> None:
        """One piece more: `produced` tokens by estimate, and the upstream's running count if it gave one."""
        self._owed = None
        if usage is not None:
            self._counted = usage
            self._since = 0
        else:
            self._since += produced

    @property
    def output(self) -> int:
        return self._since if self._counted is None else self._counted.output + self._since

    @property
    def estimated(self) -> bool:
        """Whether any part of `tokens` is our own guess."""
        return self._since > 0 or (self._counted is None and self.dispatched)

    def tokens(self) -> TokenUsage:
        """The upstream's count, else the estimate; nothing at all for a call that never reached an upstream."""
        counted, since = self._counted, self._since
        if counted is not None:
            if not since:
                return counted
            return TokenUsage(
                input=counted.input,
                output=counted.output + since,
                cached_input=counted.cached_input,
                reasoning=counted.reasoning,
                total=counted.total + since,
                cache_write=counted.cache_write,
            )
        input_tokens = self._input_estimate if self.dispatched else 0
        return TokenUsage(input=input_tokens, output=since, total=input_tokens + since)

    def owed(self, price: Price) -> int:
        """Units owed now, at the price of the offer that serves. A call never sent owes nothing."""
        if self._counted is None and not self.dispatched:
            return 0
        if self._owed is None or self._owed[0] is not price:
            self._owed = price, charge(self._tariff, price, self.tokens())
        return self._owed[1]
