"""The hold: money set aside for one request, for as long as the request lives.

A hold is an async context manager. Entering it admits the request: key, rate limit, spending limits and funds are
checked and the money is set aside in one durable step, before a byte goes upstream. Leaving it settles what is owed,
whichever way the block is left: answer, upstream failure, a break in mid-stream, the caller gone, the process told to
stop. There is no other place that settles, and nothing to forget: leaving only *posts* the settlement to the store,
which is a plain function call, so a cancelled task settles as surely as a finished one and the store's writer, not
the connection, carries it through. The last bytes of an answer wait until a kill cannot undo that (`written`).

What a hold covers. A call that answers in one piece holds its whole bound: input and output limit at the dearest
price of the plan. If that does not fit, the output limit is lowered until it does (the work fits the money, never the
other way round). A stream holds its input and a slice of output, and is extended ahead of consumption, each slice
twice the last: so a small balance serves several callers at once. When an extension is refused the stream ends where
the money does.

A request is not cut down, nor refused, merely because other calls in flight hold the money for now: it waits a moment
(`hold_wait_s`) for them to settle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from penstock.access import Caller, refusal
from penstock.catalogue import Offer
from penstock.clock import Clock
from penstock.config import LimitSettings
from penstock.db.ledger import Admission, Extension, Once, Outcome, Replay, Settlement
from penstock.db.records import KeptAnswer, UsageRecord
from penstock.db.recovery import context_of
from penstock.db.store import Store
from penstock.dialects import Wish
from penstock.errors import OutcomeUnknown, StoreUnavailable, UpstreamError, WrongState
from penstock.money.books import BOUNDLESS, Granted, Need, Refusal, Refused
from penstock.money.prices import value
from penstock.money.units import LARGEST
from penstock.ports import OnCancel
from penstock.relay.departure import Departure
from penstock.relay.ending import Ending, ending_of
from penstock.relay.meter import Meter
from penstock.relay.observe import Observer
from penstock.relay.route import Plan

LONGEST_MS = 3_600_000  # a hold older than this has been forgotten by a defect; upkeep settles it and says so
UNSERVED = frozenset(Ending) - {
    Ending.ANSWER,
    Ending.MONEY,
    Ending.CALLER_GONE,
}  # not the caller's doing: free, if nothing came
SLICE_GROWTH = 2
LARGEST_SLICE = 8_192  # tokens: what one extension sets aside at most
PATIENCE_S = 5.0  # a stream that needs more while the store is away is not cut off before: restarts take less
PAUSE_S = 0.1  # between its questions


class Holds:
    """Opens holds, and knows those open in this process: for renewal (`upkeep.py`) and for metrics."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        limits: LimitSettings,
        *,
        owner: str,
        observe: Observer,
    ) -> None:
        self.store = store
        self.clock = clock
        self.monotonic = clock.monotonic
        self.limits = limits
        self.owner = owner
        self.observe = observe
        self.open: dict[str, Hold] = {}  # granted and not settled, by request

    def __repr__(self) -> str:
        return f"Holds({len(self)} open, owner={self.owner})"

    def __len__(self) -> int:
        return len(self.open)

    def requests(self) -> set[str]:
        """The requests of every open hold."""
        return set(self.open)

    def progress(self) -> list[tuple[int, int, str]]:
        """`(owed, output tokens, request id)` of every open hold that owes something."""
        return [(owed, hold.meter.output, id) for id, hold in self.open.items() if (owed := hold.owed())]


class Hold:
    """One request's money, and its usage record in the making. `output_limit` (tokens a choice) goes upstream."""

    __slots__ = (
        "_amount",
        "_asked_s",
        "_choices",
        "_departure",
        "_exhausted",
        "_extending",
        "_further",
        "_holds",
        "_input_estimate",
        "_need",
        "_once",
        "_parts",
        "_plan",
        "_price",
        "_settling",
        "_slice",
        "_started_s",
        "_streamed",
        "account",
        "covered_output",
        "ending",
        "input_bound",
        "keep",
        "meter",
        "output_limit",
        "record",
        "replayed",
        "runs_low_at",
        "status",
        "upstream_s",
    )

    def __init__(
        self,
        holds: Holds,
        caller: Caller,
        plan: Plan,
        wish: Wish,
        record: UsageRecord,
        once: Once | None,
        departure: Departure,
    ) -> None:
        self._holds = holds
        self._plan = plan
        self._once = once
        self._departure = departure
        self._slice = holds.limits.stream_slice_tokens
        self._streamed = wish.stream
        self._choices = wish.choices
        self._amount = 0
        self._parts = 0
        self._extending: asyncio.Future[Outcome] | None = None
        self._exhausted = False
        self._started_s = holds.monotonic()
        self.record = record
        self.account = caller.account
        self.meter = Meter(plan.tariff, plan.input_estimate)
        self._price = plan.offers[0].price
        self.input_bound = plan.input_bound  # of all requests that the call needs
        self._input_estimate = plan.input_estimate
        self._further = 0  # units for what further requests cost besides their tokens
        self._asked_s = 0.0
        self.upstream_s = 0.0  # time spent waiting for upstreams to begin
        self.output_limit = _output_limit(wish, plan)
        self.covered_output = 0  # tokens that the hold pays for besides the input
        self.runs_low_at = 0  # tokens of output beyond which a stream should have it extended ahead
        self.ending = Ending.ANSWER
        self.status = 200
        self._settling: asyncio.Future[Any] | None = None
        self.replayed: KeptAnswer | None = None  # the answer that this idempotency key has had before
        self.keep: KeptAnswer | None = None  # the answer to keep for it
        self._need = self._first_need(caller)

    def __repr__(self) -> str:
        return f"Hold({self.record.request_id}, amount={self._amount}, {self.meter!r})"

    # Entering.

    async def __aenter__(self) -> Hold:
        """Admit the request. AuthInvalid, RateLimited, PaymentRequired, WrongState (idempotency), StoreUnavailable."""
        holds = self._holds
        outcome = await self._ask(self._need)
        if _is_held(outcome):
            outcome = await self._ask_again()
        holds.observe.admitted(holds.monotonic() - self._started_s)
        if isinstance(outcome, Granted):
            self._add(outcome)
            if self._amount < self._need.want:
                self._fit()
            holds.open[self.record.request_id] = self
        elif isinstance(outcome, Replay):
            self.replayed = _replay(outcome, self._once)
        elif isinstance(outcome, Refused):
            raise refusal(outcome)
        return self

    def _first_need(self, caller: Caller) -> Need:
        plan, choices, output = self._plan, self._choices, self.output_limit
        tariff, bound = plan.tariff, plan.input_bound
        if output is None or (self._streamed and output > self._slice):
            output = self._slice
        return Need(
            account=caller.account,
            keys=caller.keys,
            lane=plan.lane,
            asset=tariff.asset,
            value_rate=tariff.value_rate,
            want=tariff.bound(bound, output * choices),
            least=1 if tariff.serves_last_call else tariff.bound(bound, choices if output else 0),
            patient=self._holds.limits.hold_wait_s > 0,
        )

    async def _ask_again(self) -> Outcome:
        """For a moment ask again, while other calls are about to free the money that is needed."""
        for pause_s in _pauses(self._holds.limits.hold_wait_s):
            await asyncio.sleep(pause_s)
            outcome = await self._ask(replace(self._need, again=True))
            if not _is_held(outcome):
                return outcome
        return await self._ask(replace(self._need, again=True, patient=False))

    async def _ask(self, need: Need) -> Outcome:
        holds, record = self._holds, self.record
        future = holds.store.commit(
            Admission(
                record.request_id,
                need,
                holds.owner,
                expires_ms=record.created_ms + LONGEST_MS,
                context=context_of(need, record),
                once=self._once,
            )
        )
        try:
            return await future
        except OutcomeUnknown as error:  # give back what may have been granted: settling twice is impossible
            self.ending, self.status = ending_of(error, caller_gone=self._departure.gone)
            self._close()
            raise
        except asyncio.CancelledError:  # by now the store has decided, or given up (`store.Decision`): likewise
            if _may_be_granted(future):
                self.ending, self.status = ending_of(asyncio.CancelledError(), caller_gone=self._departure.gone)
                self._close()
            raise

    def _add(self, granted: Granted) -> None:
        """Count what was granted. The last call on a contract is served even where only its estimate is covered."""
        self._amount += granted.amount
        self._parts += len(granted.parts) or 1
        self._count_covered()
        if self._plan.tariff.serves_last_call:
            within = self._plan.tariff.output_within
            self.covered_output = max(self._choices, self.covered_output, within(self._amount, self._input_estimate))
            self.runs_low_at = self.covered_output - self._slice // 2

    def _count_covered(self) -> None:
        self.covered_output = self._plan.tariff.output_within(self._amount - self._further, self.input_bound)
        self.runs_low_at = self.covered_output - self._slice // 2

    def _bound(self, output: int) -> int:
        """The most that the call costs with so many tokens of output."""
        return self._plan.tariff.bound(self.input_bound, output) + self._further

    def _fit(self) -> None:
        """Lower the output limit to what was granted."""
        if self.output_limit != 0:
            self.output_limit = max(1, self.covered_output // self._choices)

    # While the work goes on.

    def calling(self, offer: Offer, on_cancel: OnCancel) -> None:
        """From now on an offer is asked: its price counts."""
        record, meter = self.record, self.meter
        self._price = offer.price
        # An answer that is kept for its idempotency key is worth finishing: the caller will come back for it.
        self._departure.on_cancel = "drain" if on_cancel == "stop" and self._once else on_cancel
        if record.attempts:  # it goes on from a provider that did not serve to the next, or to the same once more
            self._holds.observe.failed_over(record.provider, offer.provider)
            meter.restart()
        record.provider, record.model = offer.provider, offer.model_id
        record.attempts += 1
        meter.thinking_in_total = offer.thinking_in_total
        self._asked_s = self._holds.monotonic()

    def sent(self) -> None:
        """The request is on its way to the offer, which may bill the prompt should the caller leave now."""
        self.meter.sent()

    def returned(self) -> None:
        """Whoever had the request at the offer has not served, and for the time being nobody there may bill it."""
        self.meter.returned()

    def answered(self) -> None:
        """The offer has begun to answer, or failed to."""
        self.upstream_s += self._holds.monotonic() - self._asked_s

    def failed(self, error: UpstreamError) -> None:
        """The offer did not serve."""
        self._holds.observe.failed_upstream(self.record.provider, error.kind)

    def passed_over(self) -> None:
        """The offer did not serve, and is not the caller's to pay. Until another is called nobody is at work for him:
        should he leave now, there is nothing to read to its end."""
        self.meter.restart()
        self._departure.on_cancel = "drain" if self._once else "stop"

    def added_s(self) -> float:
        """Seconds that the call has spent here and not waiting for an upstream."""
        return self._holds.monotonic() - self._started_s - self.upstream_s

    def first_byte(self) -> None:
        """The first byte of the answer is about to leave."""
        if self.record.first_byte_us is None:
            self.record.first_byte_us = int((self._holds.monotonic() - self._started_s) * 1e6)

    @property
    def caller_gone(self) -> bool:
        return self._departure.gone

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the answer, nor will come back for it: no further work is begun."""
        return self._departure.gone and self._once is None

    def owed(self) -> int:
        """Units owed now."""
        return self.meter.owed(self._price)

    def cost_nano(self) -> int:
        """What is owed now is worth in nano-USD."""
        return value(self.owed(), self._plan.tariff.value_rate)

    async def cover(self, output: int) -> bool:
        """Whether the hold pays for `output` tokens, extending it if need be. False when the money has ended.

        A store that is away is asked again for a while. StoreUnavailable, also when it has closed the hold.
        """
        give_up_s = self._holds.monotonic() + PATIENCE_S
        while output > self.covered_output:
            extending = self._extending or self._extend()
            try:
                outcome = await extending
            except StoreUnavailable as error:
                self._extended(extending)
                if self._holds.monotonic() >= give_up_s:
                    raise StoreUnavailable("The ledger cannot be reached; what came so far is charged.") from error
                await asyncio.sleep(PAUSE_S)
                continue
            self._extended(extending)  # waiting for what is done lets nothing else run, not even its own callback
            if isinstance(outcome, Refused):
                if outcome.why is Refusal.GONE:
                    raise StoreUnavailable("This process was taken for dead, and the call has been settled.")
                return False
        return True

    async def cover_input(self, input_bound: int, *, requests: int) -> bool:
        """Whether the hold pays for the prompt of a further request and for output to follow, extending it if need be:
        `input_bound` tokens in all `requests` of the call. False when the money has ended. Errors as of `cover`."""
        before = self.input_bound, self._input_estimate, self._further
        self.input_bound = self._input_estimate = max(input_bound, self.input_bound)
        self._further = (requests - 1) * self._plan.tariff.per_request
        self._count_covered()
        if not self._streamed and self.output_limit is not None:
            await self.cover(self.output_limit * self._choices)
        if await self.cover(self.meter.output + 1):
            return True
        self.input_bound, self._input_estimate, self._further = before
        self._count_covered()
        return False

    def output_left(self) -> int | None:
        """Tokens that a further request may produce; None when only money limits a stream, as it goes."""
        if self.output_limit is None:
            return None
        limit = self.output_limit * self._choices
        return (limit if self._streamed else min(limit, self.covered_output)) - self.meter.output

    def extend_ahead(self) -> None:
        """Begin to extend when less than half a slice is left, so that the stream need not wait for the store."""
        if self.meter.output <= self.runs_low_at or self._extending or self._exhausted:
            return
        if self.output_limit is None or self.covered_output < self.output_limit * self._choices:
            self._extend()

    def _extend(self) -> asyncio.Future[Outcome]:
        covered = max(self.covered_output, 0)  # less than nothing when not even the prompt is covered
        helps = 1 if self._plan.tariff.serves_last_call else self._bound(covered + 1) - self._amount
        future = self._holds.store.commit(
            Extension(
                request_id=self.record.request_id,
                need=replace(
                    self._need,
                    want=self._bound(self._next_output()) - self._amount,
                    least=max(1, helps),
                    patient=False,
                ),
                owner_id=self._holds.owner,
                expires_ms=self.record.created_ms + LONGEST_MS,
                position=self._parts,
                progress=self.owed(),
                progress_tokens=self.meter.output,
            )
        )
        future.add_done_callback(self._extended)
        self._extending = future
        return future

    def _next_output(self) -> int:
        """Output tokens that the next extension is to cover: a slice twice the last, and no more than may come."""
        step = self._next_slice()
        covered = max(self.covered_output, self.meter.output)
        most = BOUNDLESS if self.output_limit is None else self.output_limit * self._choices
        return min(covered + step, most) if covered < most else covered + step

    def _extended(self, future: asyncio.Future[Outcome]) -> None:
        """Count what an extension has brought, once."""
        if future is not self._extending:
            return
        self._extending = None
        if future.exception():  # whoever waits for it is told; whoever does not asks again
            return
        outcome = future.result()
        if isinstance(outcome, Granted):
            self._add(outcome)
            self._slice = self._next_slice()
            self.runs_low_at = self.covered_output - self._slice // 2
        else:
            self._exhausted = True

    def _next_slice(self) -> int:
        return min(self._slice * SLICE_GROWTH, LARGEST_SLICE)

    # Leaving.

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.replayed is not None:
            return
        if error is not None:
            self.ending, self.status = ending_of(error, caller_gone=self._departure.gone)
        elif self._departure.gone:  # drained to its end for nobody
            self.ending, self.status = Ending.CALLER_GONE, 499
        self._close()

    def _close(self) -> None:
        """Post the settlement: the one place where a call ends."""
        holds, meter, record = self._holds, self.meter, self.record
        if self.ending in UNSERVED and not meter.output:
            meter.restart()
        owed = meter.owed(self._price)
        if self.ending is Ending.CALLER_GONE and self._departure.on_cancel == "full" and meter.estimated:
            owed = max(owed, self._amount)
        owed = min(owed, LARGEST)  # an upstream may count anything; what there is to collect is less anyway
        took_s = holds.monotonic() - self._started_s
        self._complete(record, owed, took_s)
        holds.open.pop(record.request_id, None)
        self._settling = holds.store.post(
            Settlement(record.request_id, self._need, owed, record, self.keep, self._once is not None)
        )
        holds.observe.closed(record, took_s - self.upstream_s)

    async def written(self) -> None:
        """Wait until the settlement outlives this process, but not for ever (`Store.post`)."""
        if self._settling is None:
            return
        try:
            await self._settling
        except asyncio.CancelledError:
            return  # the caller has gone, or the process is to stop: all that is left to do is to send what is there

    def _complete(self, record: UsageRecord, owed: int, took_s: float) -> None:
        tokens = self.meter.tokens()
        record.input_tokens, record.output_tokens, record.total_tokens = tokens.input, tokens.output, tokens.total
        record.cached_tokens, record.reasoning_tokens = tokens.cached_input, tokens.reasoning
        record.estimated = int(self.meter.estimated)
        record.ended, record.status = str(self.ending), self.status  # a plain text, which drivers take as it is
        record.price_version = self._price.version
        record.amount, record.cost_nano = owed, min(value(owed, self._plan.tariff.value_rate), LARGEST)
        record.total_us = int(took_s * 1e6)
        if self.ending is Ending.TIMEOUT and not owed:
            record.state = "review"  # nobody knows whether the upstream did the work


def _output_limit(wish: Wish, plan: Plan) -> int | None:
    """Tokens a choice: what the caller wants, else what is usual for the model, and at most what it gives."""
    limit, most = wish.output_limit, plan.max_output_tokens
    if limit is None and not wish.stream:
        limit = plan.default_output_tokens
    return most if limit is not None and most is not None and most < limit else limit


def _is_held(outcome: Outcome) -> bool:
    return isinstance(outcome, Refused) and outcome.why is Refusal.HELD


def _may_be_granted(decided: asyncio.Future[Outcome]) -> bool:
    error = decided.exception()
    return isinstance(error, OutcomeUnknown) if error else isinstance(decided.result(), Granted)


def _pauses(most_s: float) -> Iterator[float]:
    """Pauses that double up to 160 ms, until they add up to `most_s`."""
    pause_s, total_s = 0.005, 0.0
    while total_s < most_s:
        yield pause_s
        total_s += pause_s
        pause_s = min(pause_s * 2, 0.16)


def _replay(seen: Replay, once: Once | None) -> KeptAnswer:
    if once is None or seen.body_digest != once.body_digest:
        raise WrongState("This Idempotency-Key was used with a different request body.", code="idempotency_mismatch")
    if seen.kept is None:
        raise WrongState("A request with this Idempotency-Key is still running.", code="idempotency_in_progress")
    if seen.kept.body is None:
        raise WrongState("The answer for this Idempotency-Key was too large to keep.", code="idempotency_not_kept")
    return seen.kept
