"""What a call has used so far: an estimate that grows with the stream, replaced by the upstream's count when it comes.

An upstream's count of zero stays zero; what is produced after a count is estimated on top of it. While a stream runs,
no count takes back what has come: some servers fill their events with zeros, or with counts of each event alone. What
is said at the end stands, lower than the estimate or not.
"""

from __future__ import annotations

from msgspec.structs import replace

from penstock.dialects.usage import TokenUsage
from penstock.money.prices import Price, Tariff, charge

# Tokens that may come without the upstream's running count growing; when more do, it is none. Servers that count once
# in a while do so sooner.
MOST_UNCOUNTED = 16


class Meter:
    """Counts one call. `output` is in tokens over all choices, whoever counted them."""

    __slots__ = (
        "_assumed",
        "_before",
        "_counted",
        "_highest",
        "_input_estimate",
        "_owed",
        "_requests",
        "_running",
        "_since",
        "_tariff",
        "_uncounted",
        "_unsent",
        "_without",
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
        self._begin(0)
        self._assumed = False  # a part of the last count is our own guess
        self._requests = 1
        self._unsent: int | None = None  # about so many tokens has the prompt of a further request that is not sent yet
        self._without: tuple[TokenUsage, int] | None = None  # the count before it was sent, and it
        self._owed: tuple[Price, int] | None = None  # as last asked for; None when something has come since
        self.dispatched = False  # an upstream has the request and may bill its prompt
        self.guessed = False  # a part of what was counted is a guess of ours after all

    def _begin(self, output: int) -> None:
        """So much has been produced before what is counted now."""
        self._before = output  # produced before the last count, by our estimate
        self._running: TokenUsage | None = None  # the last count while the stream went on
        self._highest = 0  # of running counts
        self._uncounted = 0  # tokens by estimate that have come since it grew

    def begin_round(self, used: TokenUsage, *, input_estimate: int) -> None:
        """The completion needs a further request: `used` in those before, and about so much is its prompt. That is owed
        from when it is sent."""
        self._unsent = input_estimate
        self._only(used)

    def sent(self) -> None:
        """A request is on its way, for the first time or, over another connection, once more."""
        self.dispatched = True
        if self._unsent is not None and self._counted is not None:
            self._owed = None
            self._requests += 1
            self._without = self._counted, self._unsent
            self._counted, self._assumed = _with_prompt(self._counted, self._unsent), True
            self._unsent = None

    def returned(self) -> None:
        """Whoever had the request has given it back before anything came of it: until it is sent again, nobody may bill
        its prompt."""
        self.dispatched = False
        if self._without is not None:
            self._owed = None
            self._requests -= 1
            (self._counted, self._unsent), self._assumed = self._without, False
            self._without = None

    def abandon_round(self, used: TokenUsage) -> None:
        """That request did not come about: `used` in those before is all."""
        if self._unsent is None:
            self._requests -= 1
        self._unsent = None
        self._only(used)

    def _only(self, used: TokenUsage) -> None:
        """So much, which a request before has come to, is all that is owed by now."""
        self._owed = self._without = None
        counted = self._whole(used)
        self._counted, self._since, self._assumed, self.output = counted, 0, False, counted.output
        self._begin(counted.output)

    def feed(self, produced: int, usage: TokenUsage | None) -> None:
        """One piece more: `produced` tokens by estimate, and the upstream's count of all if it gave one."""
        if usage is None:
            self._owed = None
            self._since += produced
            self.output += produced
        elif self._is_count(self._whole(usage)):
            self._settle(self._whole(usage))
        else:
            self.follow(produced, usage)

    def follow(self, produced: int, usage: TokenUsage) -> None:
        """One piece more of a stream that goes on, with a running count: no less than what has come by our estimate. A
        prompt of nothing has not been counted."""
        self._owed = None
        self._running = counted = self._whole(usage)
        if counted.output > self._highest:
            self._highest, self._uncounted = counted.output, 0
        elif produced:
            self._uncounted += self._since + produced
        self._before += self._since + produced
        output, input = max(counted.output, self._before), counted.input or self._input_estimate
        self._assumed = output > counted.output or input > counted.input
        if self._assumed:
            more = output - counted.output + input - counted.input
            counted = replace(counted, input=input, output=output, total=counted.total + more)
        self._counted, self._since, self.output = counted, 0, output

    def after(self, produced: int, usage: TokenUsage | None) -> int:
        """What `output` would be with this piece more of a stream that goes on."""
        if usage is None:
            return self.output + produced
        return max(self._whole(usage).output, self._before + self._since + produced)

    def end(self) -> None:
        """The stream has ended well: its last count, if it came with the last of its text, is that of all."""
        if self._running is not None and not self._since and self._is_count(self._running):
            self._settle(self._running)

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

    def _settle(self, counted: TokenUsage) -> None:
        """So much it is, however much has come by our estimate."""
        self._owed, self._running = None, None
        self._counted, self._since, self._assumed, self.output = counted, 0, False, counted.output
        self._before = counted.output

    def _is_count(self, counted: TokenUsage) -> bool:
        """Whether this is more than what has been said all along while the text grew."""
        return self._uncounted <= MOST_UNCOUNTED or counted.output > self._highest

    def _whole(self, usage: TokenUsage) -> TokenUsage:
        return _with_thinking(usage) if self.thinking_in_total else usage


def _with_prompt(used: TokenUsage, input_estimate: int) -> TokenUsage:
    return replace(used, input=used.input + input_estimate, total=used.total + input_estimate)


def _with_thinking(usage: TokenUsage) -> TokenUsage:
    """The count with what its total has beyond input and output, which is thinking."""
    hidden = max(usage.total - usage.input - usage.output, 0)
    return replace(usage, output=usage.output + hidden, reasoning=usage.reasoning + hidden)
