"""What a call costs: a tariff turns tokens into an amount of one asset.

Two tariffs: `UsdTariff` counts nano-USD at a model's price, `TokenTariff` counts the tokens of a contract. Both
answer the same four questions, so nothing above knows which lane pays. Every amount is rounded once, up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from penstock.money.units import MEGA, USD

UNSAID = -1  # of a part of a price that follows another one


class Tokens(Protocol):
    """Tokens reported or estimated. `input` includes `cached_input` and `cache_write`, which includes `cache_write_1h`;
    `output` includes `reasoning`."""

    @property
    def input(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def cached_input(self) -> int: ...
    @property
    def reasoning(self) -> int: ...
    @property
    def cache_write(self) -> int: ...
    @property
    def cache_write_1h(self) -> int: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per million tokens, and nano-USD per request. `version` names this price in the usage record.

    `cache_write` is for tokens that a provider wrote to its cache, `cache_write_1h` for those it keeps for an hour; the
    first costs as much as other input, and the second as the first, where nothing else is said.
    """

    input: int
    output: int
    cached_input: int
    reasoning: int
    per_request: int = 0
    version: str = ""
    cache_write: int = UNSAID
    cache_write_1h: int = UNSAID

    def __post_init__(self) -> None:
        if self.cache_write == UNSAID:
            object.__setattr__(self, "cache_write", self.input)
        if self.cache_write_1h == UNSAID:
            object.__setattr__(self, "cache_write_1h", self.cache_write)

    def cost(self, tokens: Tokens) -> int:
        """Nano-USD for these tokens: all at their side's price, and the difference for parts that have another."""
        micro = tokens.input * self.input + tokens.output * self.output
        if tokens.cached_input or tokens.cache_write:
            cached = min(tokens.cached_input, tokens.input)
            written = min(tokens.cache_write, tokens.input - cached)
            long = min(tokens.cache_write_1h, written)
            micro += (
                cached * (self.cached_input - self.input)
                + (written - long) * (self.cache_write - self.input)
                + long * (self.cache_write_1h - self.input)
            )
        if tokens.reasoning:
            micro += min(tokens.reasoning, tokens.output) * (self.reasoning - self.output)
        return self.per_request - (-micro // MEGA)  # rounded up


def dearest(prices: list[Price]) -> Price:
    """A price no lower than any of `prices` in any part: what a hold must reckon with before an offer has answered."""
    if len(prices) == 1:
        return prices[0]
    return Price(
        input=max(p.input for p in prices),
        output=max(p.output for p in prices),
        cached_input=max(p.cached_input for p in prices),
        reasoning=max(p.reasoning for p in prices),
        per_request=max(p.per_request for p in prices),
        cache_write=max(p.cache_write for p in prices),
        cache_write_1h=max(p.cache_write_1h for p in prices),
    )


class Tariff(Protocol):
    """How one lane counts one call."""

    @property
    def asset(self) -> str:
        """What lots must hold: `USD` or a contract's id."""
        ...

    @property
    def value_rate(self) -> int:
        """Nano-USD a million units of the asset are worth; spending limits are kept in nano-USD."""
        ...

    @property
    def serves_last_call(self) -> bool:
        """Whether a call whose input is not covered is served as long as one unit is left."""
        ...

    @property
    def per_request(self) -> int:
        """The most that a request costs besides its tokens, in units of the asset."""
        ...

    def bound(self, input_tokens: int, output_tokens: int) -> int:
        """The most that so many tokens can cost."""
        ...

    def output_within(self, amount: int, input_tokens: int) -> int:
        """The most output tokens that `amount` covers besides the input; negative when it does not cover the input."""
        ...


@dataclass(frozen=True, slots=True)
class UsdTariff:
    """Counts nano-USD. `price` is the dearest among the offers of the plan; the rates are the most a token can cost."""

    price: Price
    input_rate: int = field(init=False)
    output_rate: int = field(init=False)

    def __post_init__(self) -> None:
        price = self.price
        input_rate = max(price.input, price.cached_input, price.cache_write, price.cache_write_1h)
        object.__setattr__(self, "input_rate", input_rate)
        object.__setattr__(self, "output_rate", max(self.price.output, self.price.reasoning))

    asset = USD
    value_rate = MEGA
    serves_last_call = False

    @property
    def per_request(self) -> int:
        return self.price.per_request

    def bound(self, input_tokens: int, output_tokens: int) -> int:
        micro = input_tokens * self.input_rate + output_tokens * self.output_rate
        return self.price.per_request - (-micro // MEGA)  # rounded up

    def output_within(self, amount: int, input_tokens: int) -> int:
        left = (amount - self.price.per_request) * MEGA - input_tokens * self.input_rate
        if self.output_rate == 0:
            return UNLIMITED if left >= 0 else -1
        return left // self.output_rate


UNLIMITED = 2**53  # tokens; more than any call produces


@dataclass(frozen=True, slots=True)
class TokenTariff:
    """Counts the tokens of a contract, prompt and completion alike, at its locked price."""

    contract: str
    price_nano_per_mtok: int

    serves_last_call = True
    per_request = 0

    @property
    def asset(self) -> str:
        return self.contract

    @property
    def value_rate(self) -> int:
        return self.price_nano_per_mtok

    def bound(self, input_tokens: int, output_tokens: int) -> int:
        return input_tokens + output_tokens

    def output_within(self, amount: int, input_tokens: int) -> int:
        return amount - input_tokens


def charge(tariff: Tariff, price: Price, tokens: Tokens, requests: int = 1) -> int:
    """Units of the tariff's asset owed for `tokens` served in so many requests at `price` (the serving offer's, not the
    dearest)."""
    if tariff.asset != USD:
        return tokens.total
    return price.cost(tokens) + (requests - 1) * price.per_request


def value(amount: int, value_rate: int) -> int:
    """Nano-USD that `amount` units are worth, rounded up."""
    return -(-amount * value_rate // MEGA)


def units_within(value_nano: int, value_rate: int) -> int:
    """The most units whose value is within `value_nano`."""
    return value_nano * MEGA // value_rate if value_rate else UNLIMITED
