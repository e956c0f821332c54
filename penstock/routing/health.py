"""Who is well: a circuit breaker and a few figures for each provider, and a breaker for each offer that failed alone.

    closed ── failures in a row, a grave one, or a failed check ──▶ open ◀─┐
      ▲                                                              │     │ the trial fails: a pause twice as long
      └───────────── the trial answers ───────────── half open ◀─────┘ ────┘
                                                     (one trial at a time, and a further one a pause later)

Who asks to be left alone (Retry-After) is open for just that long and then closed again: it has not failed.

It is told what happens (`relay/attempt.py`, `pulse.py`) and asked who may be called; it calls nobody, and has no task
and no timer: a breaker whose pause is over is half open because the clock says so. What it knows is this process's own.

Whose failure it is: a provider's, unless it is about one model there (404: it has no such model; 429: too many calls
of it). What a provider says about the request itself is no failure at all. Where a provider is whoever has dialled in,
each account has its own: what an account's workers do takes nothing from anybody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from math import ceil, inf
from typing import Literal, NamedTuple, get_args

from penstock.catalogue import Offer
from penstock.clock import Clock
from penstock.config import HealthSettings
from penstock.errors import ModelAbsent, UpstreamBusy, UpstreamError, UpstreamRefused, UpstreamTimeout

State = Literal["closed", "open", "half_open"]
STATES: tuple[State, ...] = get_args(State)

PAUSE_GROWTH = 2
KEPT_ERRORS = 5
LONGEST_MESSAGE = 300
LONGEST_WAIT_S = 3_600.0  # of what a provider asks for in Retry-After: it may have meant milliseconds
LATENCY_WEIGHT = 0.2  # of the newest answer in the running mean: about the last ten count
GRAVE = 1_000_000  # failures that one counts for which does not mend by itself
OUR_CREDENTIALS = frozenset({401, 402, 407})  # a bad key, no credit; a 403 may be a firewall's, about one prompt
ABOUT_ONE_MODEL = frozenset({404, 429})


class Breaker:
    """The state machine, as values and the time. `key` is in `out` for as long as it is not closed."""

    __slots__ = ("answered_s", "by_check", "failures", "key", "out", "pause_s", "trial_until_s", "until_s")

    def __init__(self, key: str, out: set[str]) -> None:
        self.key = key
        self.out = out
        self.failures = 0  # in a row
        self.until_s: float | None = None  # None is closed
        self.pause_s = 0.0  # none when it has not failed and only asked to be left alone
        self.trial_until_s = 0.0  # until then nobody else calls: the one that finds out is under way
        self.by_check = False
        self.answered_s: dict[str, float] = {}  # when a call of a model was last answered

    def __repr__(self) -> str:
        return f"Breaker({self.key}, failures={self.failures}, until_s={self.until_s}, pause_s={self.pause_s})"

    def state(self, now_s: float) -> State:
        """Half open is whoever has failed and its pause is over."""
        if self.until_s is None:
            return "closed"
        if now_s < self.until_s:
            return "open"
        return "half_open" if self.pause_s else "closed"

    def admits(self, now_s: float) -> bool:
        """Whether a call could begin now."""
        state = self.state(now_s)
        return state == "closed" or (state == "half_open" and now_s >= self.trial_until_s)

    def begin(self, now_s: float) -> bool:
        """A call begins; whether it is the trial. A trial that takes longer than the pause is not waited for: it may be
        a long answer from one that is well."""
        if self.until_s is None:
            return False
        if not self.pause_s:
            self._close()
            return False
        self.trial_until_s = now_s + self.pause_s
        return True

    def succeed(self) -> None:
        """It has answered: closed, whoever asked."""
        self.failures = 0
        self._close()

    def fail(self, now_s: float, settings: HealthSettings, *, weight: int = 1, on_trial: bool = False) -> None:
        """It has failed. Calls that began before it opened, and fail now, say nothing new."""
        self.failures += weight
        if self.state(now_s) == "closed":
            if 0 < settings.failures <= self.failures:
                self._open(now_s, settings.pause_s)
        elif on_trial:
            pause_s = max(self.pause_s * PAUSE_GROWTH, settings.pause_s)  # none yet in a `rest`
            self._open(now_s, min(pause_s, settings.longest_pause_s))

    def rest(self, now_s: float, wait_s: float) -> None:
        """It asked to be left alone for so long: no failure, and no longer pause the next time."""
        self.until_s = max(self.until_s or 0.0, now_s + min(wait_s, LONGEST_WAIT_S))
        self.out.add(self.key)

    def left(self) -> None:
        """The trial is over. When it had no outcome (its caller has gone, it failed for another reason) the next call
        is the trial."""
        self.trial_until_s = 0.0

    def _open(self, now_s: float, pause_s: float) -> None:
        self.pause_s = pause_s
        self.until_s = now_s + pause_s
        self.out.add(self.key)

    def _close(self) -> None:
        self.until_s, self.pause_s, self.trial_until_s, self.by_check = None, 0.0, 0.0, False
        self.out.discard(self.key)


class Trouble(NamedTuple):
    """A failure as it is remembered; `message` is redacted."""

    at_ms: int
    kind: str
    model: str | None
    message: str


class Condition:
    """What is known of one provider. `latency_s` is a running mean until an answer began; None before the first."""

    __slots__ = ("breaker", "checked_s", "errors", "latency_s", "models", "outstanding", "succeeded_ms")

    def __init__(self, name: str, out: set[str]) -> None:
        self.breaker = Breaker(name, out)
        self.outstanding = 0
        self.latency_s: float | None = None
        self.succeeded_ms: int | None = None
        self.checked_s: float | None = None
        self.models: tuple[str, ...] | None = None  # that it listed when it was last checked
        self.errors: deque[Trouble] = deque(maxlen=KEPT_ERRORS)

    def __repr__(self) -> str:
        return f"Condition({self.breaker!r}, {self.outstanding} outstanding)"


class Attempt:
    """One call at an offer, as far as health goes: it is `answered` or has `failed` or neither, and `over` once."""

    __slots__ = (
        "_account",
        "_began_s",
        "_breaker",
        "_condition",
        "_health",
        "_offer",
        "_own",
        "_trial",
        "_trial_of_own",
    )

    def __init__(
        self,
        health: Health,
        offer: Offer,
        account: str,
        condition: Condition,
        breaker: Breaker,
        own: Breaker | None,
    ) -> None:
        self._health = health
        self._offer = offer
        self._account = account
        self._condition = condition
        self._breaker = breaker
        self._own = own  # the offer's breaker, if it has one
        self._began_s = now_s = health.clock.monotonic()
        self._trial = breaker.until_s is not None and breaker.begin(now_s)
        self._trial_of_own = own is not None and own.begin(now_s)
        condition.outstanding += 1

    def __repr__(self) -> str:
        return f"Attempt({self._offer.provider}, {self._offer.model})"

    def answered(self, *, refused: bool = False) -> None:
        """It has begun to answer, or `refused` this request in good order, which a model may leave to who stands before
        it."""
        condition, now_s = self._condition, self._health.clock.monotonic()
        took_s = now_s - self._began_s
        if not refused:
            self._breaker.answered_s[self._offer.model] = now_s
        if self._breaker.until_s is not None:
            self._breaker.succeed()
        if self._own is not None and self._own.until_s is not None:
            self._own.succeed()
        last_s = condition.latency_s
        condition.latency_s = took_s if last_s is None else last_s + LATENCY_WEIGHT * (took_s - last_s)
        self._trial = self._trial_of_own = False

    def finished(self) -> None:
        """The answer has come to its end: the row of failures, if there was one, is over."""
        self._breaker.failures = 0
        if self._own is not None:
            self._own.failures = 0
        self._condition.succeeded_ms = self._health.clock.now_ms()

    def failed(self, error: UpstreamError) -> None:
        """It did not answer, or broke off. One that is merely busy is as well as before. So is one that answered others
        while it took too long over this call, and one that answered for other models has failed with this one only."""
        if isinstance(error, UpstreamBusy):
            return
        answered_s, own = self._breaker.answered_s, False
        if isinstance(error, UpstreamTimeout):
            if answered_s.get(self._offer.model, -inf) > self._began_s:
                self._health.remember(self._offer, error)
                return
            own = self._trial_of_own or any(each > self._began_s for each in answered_s.values())
        trials = {"on_trial": self._trial, "on_trial_of_own": self._trial_of_own}
        self._health.note(self._offer, error, self._account, own=own, **trials)

    def over(self) -> None:
        """The call is over, however it went; so are its trials, of which a failure has settled one at most."""
        self._condition.outstanding -= 1
        if self._trial:
            self._breaker.left()
        if self._trial_of_own and self._own is not None:
            self._own.left()


class Health:
    """The conditions of all providers, by name, as this process has met them."""

    def __init__(self, settings: HealthSettings, clock: Clock, redact: Callable[[str], str]) -> None:
        self.settings = settings
        self.clock = clock
        self.conditions: dict[str, Condition] = {}
        self.offers: dict[tuple[str, str], Breaker] = {}
        self._apart: dict[tuple[str, str], Breaker] = {}  # of providers that are others for each account
        self.out: set[str] = set()  # what is not closed; empty is the usual case, and cheap to see
        self._redact = redact

    def __repr__(self) -> str:
        return f"Health({len(self.conditions)} providers, out: {', '.join(sorted(self.out)) or 'none'})"

    def of(self, provider: str) -> Condition:
        """The condition of a provider; that of a new one is good."""
        condition = self.conditions.get(provider)
        if condition is None:
            condition = self.conditions[provider] = Condition(provider, self.out)
        return condition

    def forget(self, provider: str) -> None:
        """A provider has been configured anew: what was known is of another."""
        self.conditions.pop(provider, None)
        self.out.discard(provider)
        for breakers in (self.offers, self._apart):
            for key in [key for key in breakers if key[0].partition(" ")[0] == provider]:
                self.out.discard(breakers.pop(key).key)

    def keep(self, offers: Collection[tuple[str, str]]) -> None:
        """Only these offers, by provider and model there, exist any more."""
        for key in [key for key in self.offers if key not in offers]:
            self.out.discard(self.offers.pop(key).key)

    def attempt(self, offer: Offer, account: str = "") -> Attempt | None:
        """Begin a call of an account's at an offer; None when a breaker does not let it."""
        if self.out:
            now_s = self.clock.monotonic()
            if not all(each.admits(now_s) for each in self._breakers(offer, account)):
                return None
        own = self.offers.get(_own_key(offer, account)) if self.offers else None
        condition = self.conditions.get(offer.provider) or self.of(offer.provider)
        breaker = self._breaker(offer, account) if offer.per_account else condition.breaker
        return Attempt(self, offer, account, condition, breaker, own)

    def wait_s(self, offer: Offer, account: str = "") -> float:
        """How long until an offer may be tried; zero when it may be now, or is being tried by another call."""
        until_s = max(each.until_s or 0.0 for each in self._breakers(offer, account))
        return max(0.0, until_s - self.clock.monotonic())

    def state(self, offer: Offer, account: str = "") -> State:
        """The worst of its provider's and its own."""
        if not self.out:
            return "closed"
        now_s = self.clock.monotonic()
        found = self._breakers(offer, account)
        if not all(each.admits(now_s) for each in found):
            return "open"
        return "half_open" if any(each.state(now_s) == "half_open" for each in found) else "closed"

    def note(
        self,
        offer: Offer,
        error: UpstreamError,
        account: str = "",
        *,
        own: bool = False,
        on_trial: bool = False,
        on_trial_of_own: bool = False,
    ) -> None:
        """A call at an offer has failed; with `own` for a reason that is the model's alone. UpstreamRefused is about
        the request, and nobody's failure."""
        if isinstance(error, UpstreamRefused):
            return
        self.remember(offer, error)
        now_s, status = self.clock.monotonic(), error.upstream_status
        own = own or status in ABOUT_ONE_MODEL
        breaker = self._own_breaker(offer, account) if own else self._breaker(offer, account)
        if error.wait_s is not None and self.settings.failures:
            breaker.rest(now_s, error.wait_s)
            return
        grave = status in OUR_CREDENTIALS or isinstance(error, ModelAbsent)
        breaker.fail(now_s, self.settings, weight=GRAVE if grave else 1, on_trial=on_trial_of_own if own else on_trial)

    def remember(self, offer: Offer, error: UpstreamError) -> None:
        """Keep a failure to be shown."""
        self.of(offer.provider).errors.append(self.trouble(error, offer.model))

    def checked(self, provider: str, models: tuple[str, ...]) -> None:
        """A health check went well. It closes what a check has opened; what calls have opened, calls must close."""
        condition = self.of(provider)
        condition.checked_s, condition.models = self.clock.monotonic(), models
        if condition.breaker.by_check:
            condition.breaker.succeed()

    def check_failed(self, provider: str, error: UpstreamError) -> None:
        """A health check failed: out at once, and again at every further one. One that did not get through, because our
        own calls keep it busy, says nothing."""
        condition, now_s = self.of(provider), self.clock.monotonic()
        condition.checked_s = now_s
        if isinstance(error, UpstreamBusy):
            return
        condition.errors.append(self.trouble(error, None))
        was_closed = condition.breaker.state(now_s) == "closed"
        condition.breaker.fail(now_s, self.settings, weight=GRAVE, on_trial=not was_closed)
        condition.breaker.by_check = condition.breaker.by_check or was_closed

    def trouble(self, error: UpstreamError, model: str | None) -> Trouble:
        """A failure as it may be kept and shown."""
        return Trouble(self.clock.now_ms(), error.kind, model, self._redact(error.message)[:LONGEST_MESSAGE])

    def _breakers(self, offer: Offer, account: str) -> list[Breaker]:
        """All that a call there must pass: what health checks say counts for everybody."""
        checked, own = self.of(offer.provider).breaker, self.offers.get(_own_key(offer, account))
        apart = [self._breaker(offer, account)] if offer.per_account else []
        return [checked, *apart, *([] if own is None else [own])]

    def _breaker(self, offer: Offer, account: str) -> Breaker:
        if not offer.per_account:
            return self.of(offer.provider).breaker
        return self._kept(self._apart, (offer.provider, account))

    def _own_breaker(self, offer: Offer, account: str) -> Breaker:
        return self._kept(self.offers, _own_key(offer, account))

    def _kept(self, breakers: dict[tuple[str, str], Breaker], key: tuple[str, str]) -> Breaker:
        breaker = breakers.get(key)
        if breaker is None:
            breaker = breakers[key] = Breaker("/".join(key), self.out)
        return breaker


def _own_key(offer: Offer, account: str) -> tuple[str, str]:
    return f"{offer.provider} {account}" if offer.per_account else offer.provider, offer.model


def retry_after_s(waits_s: list[float]) -> int:
    """What to tell a caller when nobody can be asked: whole seconds, 1 to 60, until the first may be."""
    return min(60, max(1, ceil(min(waits_s, default=1.0))))
