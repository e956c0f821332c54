"""From a plan to a first answer: try the offers in order until one begins to answer well.

Failover ends with the first byte of a good answer: a stream's first event is awaited here and a plain answer is read
whole, so a provider that breaks before that is passed over unseen. What an upstream says about the *request* (its own
4xx) goes to the caller, unless it is that the request is too long for it and there is another; what it says about *us*
(bad key, no credit there) is our fault and never the caller's (`blame.py`).

An offer whose breaker has opened since the plan was made is passed over, and so is one to whose dialect the request
cannot be carried. When all have failed and one of them asked for a short pause, it gets that pause and a second call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from operator import itemgetter

from msgspec import Struct
from msgspec.structs import replace

from penstock.catalogue import Offer
from penstock.dialects import Label, Pair, Plain, Stream, Wish, sse
from penstock.dialects.pairs import between
from penstock.dialects.refusals import Said, read_refusal
from penstock.errors import (
    BeyondAllowance,
    InvalidRequest,
    NoHealthyProvider,
    NotCarried,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from penstock.ports import Answer, Call, Provider
from penstock.relay.ask import Ask
from penstock.relay.blame import blame
from penstock.relay.ending import Ending
from penstock.relay.hold import Hold
from penstock.relay.retry import wait_s
from penstock.relay.route import Plan
from penstock.relay.tailor import cut, require_covered, require_open, without_betas
from penstock.relay.toolloop import Equipped
from penstock.routing.health import Attempt, retry_after_s
from penstock.routing.upstreams import Upstreams

LARGEST_ANSWER = 64 * 1024 * 1024  # bytes of a plain answer; embeddings of a full batch are the largest
LARGEST_ERROR = 64 * 1024
LONGEST_SECRET = 4_096
MOST_COMMENTS = 8 * 1024  # bytes of them before a stream begins that are passed on: one a second for minutes
LONGEST_WORDS = 4_000  # characters of an upstream's error that are repeated: enough to say what is wrong
TIMER_GRAIN_S = 0.002  # a timer may go off so much early, and a breaker does not open before its time
TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
BROKE = frozenset({Ending.UPSTREAM_FAILED, Ending.TIMEOUT})

_logger = logging.getLogger("penstock.relay")


class Failed(Struct, frozen=True, gc=False):
    """An offer that did not serve. NoHealthyProvider: it was not asked, its breaker is open. InvalidRequest: it was not
    asked, the request cannot be carried there."""

    offer: Offer
    error: UpstreamError | InvalidRequest


class Served(Struct, frozen=True, gc=False):
    """An answer that has begun: a plain one as a whole, or a stream. `reason` is why its offer had its place, `after`
    what did not serve before."""

    offer: Offer
    reason: str
    attempts: int
    after: tuple[Failed, ...]
    answer: Answer
    body: Plain | Begun
    attempt: Attempt

    def ended(self, ending: Ending) -> None:
        """The answer has come to an end: its own, or a break."""
        if ending in BROKE:
            self.attempt.failed(UpstreamFailed("The provider broke off an answer.", began=True))
        else:
            self.attempt.finished()

    def close(self) -> None:
        """The call is over, however it went."""
        self.answer.close()
        self.attempt.over()

    def trail(self) -> bytes:
        """Where the call went and why, for a header: words of ours and names of providers alone."""
        line = _trail(self.offer.provider, self.attempts, self.offer.provider_class, self.reason)
        if not self.after:
            return line
        after = ",".join(f"{each.offer.provider}:{_word(each.error)}" for each in self.after)
        return b"%b;after=%b" % (line, after.encode())


class Begun(Struct, frozen=True, gc=False):
    """A stream: how it is read, its first whole events, and where the rest comes from."""

    stream: Stream
    block: bytes
    pieces: AsyncIterator[bytes]
    splitter: sse.Splitter


class _Search(Struct, gc=False):
    """One call looking for somebody to serve it, and who has not."""

    plan: Plan
    ask: Ask
    wish: Wish
    hold: Hold
    label: Label
    failed: list[Failed]
    equipped: Equipped | None

    def opening(self, provider: Provider, offer: Offer, call: Call) -> Awaitable[Answer]:
        """The answer to the call, with tools where the model can call them."""
        if self.equipped is None or "tools" not in offer.capabilities:
            return provider.open(call)
        return self.equipped.open(provider, call)

    def note(self, offer: Offer, error: UpstreamError | InvalidRequest) -> None:
        """This one does not serve."""
        self.failed.append(Failed(offer, error))


class Attempts:
    """Tries offers. Redacts what it repeats of an upstream's words."""

    def __init__(self, upstreams: Upstreams, most: int, redact: Callable[[str], str]) -> None:
        self.upstreams = upstreams
        self.most = most
        self._redact = redact

    def __repr__(self) -> str:
        return f"Attempts({self.upstreams!r})"

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Who can be called, by name."""
        return self.upstreams.providers

    @providers.setter
    def providers(self, providers: Mapping[str, Provider]) -> None:
        self.upstreams.providers = providers

    def redact(self, words: str) -> str:
        """An upstream's words as they may be repeated: without secrets, and not too many."""
        if len(words) <= LONGEST_WORDS:
            return self._redact(words)
        # At the end there may be half a secret, which is not known for one; so as much as a whole one goes as well.
        return self._redact(words[: LONGEST_WORDS + LONGEST_SECRET])[:-LONGEST_SECRET]

    async def first_answer(
        self, plan: Plan, ask: Ask, wish: Wish, hold: Hold, label: Label, equipped: Equipped | None
    ) -> Served:
        """The first offer that begins to answer well; the hold is told which. The caller closes what is served.

        A call that is `equipped` with tools may take several rounds at an offer; once one has run no other is tried.
        UpstreamRefused at once; else what `_none_served` makes of the failures.
        """
        search = _Search(plan, ask, wish, hold, label, [], equipped)
        for offer, reason in zip(plan.offers, plan.reasons, strict=True):
            if hold.record.attempts == self.most:
                break
            served = await self._try(search, offer, reason)
            if served is not None:
                return served
        again = _soonest(search.failed, self.upstreams.health.settings.retry_wait_s)
        if again is not None:
            pause_s, offer = again
            await self._rest(offer, hold.account, pause_s)
            served = await self._try(search, offer, "again")
            if served is not None:
                return served
        raise self._none_served(search)

    async def _rest(self, offer: Offer, account: str, pause_s: float) -> None:
        """Give an offer the pause that it asked for, and what it has asked others for meanwhile, if that is short too:
        of many calls that it put off at once each waits for the last, and none finds it left alone."""
        await asyncio.sleep(pause_s + TIMER_GRAIN_S)
        more_s = self.upstreams.health.wait_s(offer, account)
        if 0 < more_s <= self.upstreams.health.settings.retry_wait_s:
            await asyncio.sleep(more_s + TIMER_GRAIN_S)

    async def _try(self, search: _Search, offer: Offer, reason: str) -> Served | None:
        """Call one offer. None when it does not serve, which is then noted in `search.failed`."""
        ask, wish, hold, label = search.ask, search.wish, search.hold, search.label
        provider = self.upstreams.providers.get(offer.provider)
        pair = between(ask.dialect, offer.speaks)
        if provider is None or pair is None:  # a reload has just changed the configuration
            return None
        try:
            call = _call(offer, pair, search)
        except InvalidRequest as error:
            search.note(offer, error)
            return None
        attempt = self.upstreams.health.attempt(offer, hold.account)
        if attempt is None:
            search.note(offer, NoHealthyProvider())
            return None
        if search.plan.auto:
            label = replace(label, model=offer.model_id)
        hold.calling(offer, provider.on_cancel)
        try:
            answer = await (provider.open(call) if search.equipped is None else search.opening(provider, offer, call))
            try:
                body = await (self._stream if wish.stream else self._plain)(answer, pair, wish, label)
            except BaseException:
                answer.close()
                raise
        except UpstreamError as error:
            self._failed(search, offer, attempt, error)
            return None
        except BaseException:
            attempt.over()
            raise
        finally:
            hold.answered()
        attempt.answered()
        return Served(offer, reason, hold.record.attempts, tuple(search.failed), answer, body, attempt)

    def _failed(self, search: _Search, offer: Offer, attempt: Attempt, error: UpstreamError) -> None:
        """Note that an offer did not serve. What it says about the request is raised, for all would say the same.
        CancelledError when the caller has gone meanwhile."""
        if isinstance(error, UpstreamRefused):
            attempt.answered(refused=True)
            attempt.finished()
            attempt.over()
            if not (error.elsewhere or (_is_too_long(error) and _has_more_room(search.plan, offer))):
                raise error
            if isinstance(error, BeyondAllowance):
                _logger.warning("%s did not take a request for %s: %s", offer.provider, offer.model, error.message)
        else:
            attempt.failed(error)
            attempt.over()
            search.hold.failed(error)
            _logger.warning("%s did not serve %s: %s", offer.provider, offer.model, error.message)
            if search.equipped is not None and search.equipped.used:
                raise error
        search.note(offer, error)
        search.hold.passed_over()
        if search.hold.abandoned:
            raise asyncio.CancelledError  # as if by his leaving: no further offer is called for nobody

    def _none_served(self, search: _Search) -> UpstreamError | InvalidRequest:
        """What to say when no offer has served: of a request that is too long, or cannot be carried, just that; of
        `auto` that nobody is well; of a model that was asked for by name what the last of its providers said."""
        failed, account = search.failed, search.hold.account
        errors = [each.error for each in failed]
        refused = next((each for each in errors if isinstance(each, UpstreamRefused)), None)
        if refused is not None:
            return refused
        asked = [each for each in errors if isinstance(each, UpstreamError) and not isinstance(each, NoHealthyProvider)]
        wait_s = self.upstreams.health.wait_s
        waits_s = [wait_s(each.offer, account) for each in failed if isinstance(each.error, UpstreamError)]
        nobody = NoHealthyProvider(retry_after_s=retry_after_s(waits_s))
        if not asked:
            uncarried = [each for each in errors if isinstance(each, InvalidRequest)]
            return uncarried[0] if uncarried and not waits_s else nobody
        last = asked[-1]
        if search.plan.auto and not isinstance(last, UpstreamTimeout):
            return nobody
        if last.status == NoHealthyProvider.status and last.retry_after_s is None:
            last.retry_after_s = nobody.retry_after_s
        return last

    async def _plain(self, answer: Answer, pair: Pair, wish: Wish, label: Label) -> Plain:
        if answer.status != 200:
            raise await self._refusal(answer)
        _require_plain_text(answer)
        try:
            body = await answer.read(LARGEST_ANSWER)
            return pair.answer(body, wish=wish, label=label)
        except UpstreamFailed as error:  # may be in the upstream's own words
            raise UpstreamFailed(self.redact(error.message), began=True) from None

    async def _stream(self, answer: Answer, pair: Pair, wish: Wish, label: Label) -> Begun:
        if answer.status != 200:
            raise await self._refusal(answer)
        _require_plain_text(answer)
        self._require_stream(answer)
        pieces, splitter, comments = aiter(answer), sse.Splitter(), b""
        async for piece in pieces:
            block = splitter.feed(piece)
            event = _first_with_data(block)
            if event:
                self._require_no_error(event, pair, wish, label)
                return Begun(pair.open_stream(wish=wish, label=label), comments + block, pieces, splitter)
            if len(comments) + len(block) <= MOST_COMMENTS:
                comments += block
        raise UpstreamFailed("The provider ended the stream before it began.")

    def _require_no_error(self, event: bytes, pair: Pair, wish: Wish, label: Label) -> None:
        """UpstreamFailed when a stream has only an error to report: some providers refuse under status 200."""
        if b'"error"' not in event:  # nearly always, and cheaper than reading it
            return
        error = pair.open_stream(wish=wish, label=label).feed(event).error
        if error is not None:
            raise UpstreamFailed(self.redact(error))

    async def _refusal(self, answer: Answer) -> UpstreamError:
        """What an answer that is not 200 comes to."""
        try:
            body = await answer.read(LARGEST_ERROR)
        except UpstreamFailed:  # too long, for it repeats the request, or broken off: the status is known all the same
            body = b""
        said = Said(*(each and self.redact(each) for each in read_refusal(body)))
        return blame(answer.status, said, wait_s(answer.headers, self.upstreams.health.clock.now_ms()))

    def _require_stream(self, answer: Answer) -> None:
        kind = answer.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            sent = self.redact(kind)[:100] or "no content type"
            raise UpstreamFailed(f"The provider was asked for a stream and sent {sent}.")


@lru_cache(maxsize=1024)
def _trail(provider: str, attempts: int, provider_class: str, reason: str) -> bytes:
    return f"{provider};attempts={attempts};class={provider_class};why={reason}".encode()


def _require_plain_text(answer: Answer) -> None:
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise UpstreamFailed("The provider compressed its answer, which was not asked for.")


def _first_with_data(block: bytes) -> bytes:
    """The first event of a block that says anything; empty when there are only comments, as a sign of life."""
    start = 0
    while start < len(block):
        end = sse.event_end(block, start)
        event = block[start:end]
        if event.startswith(b"data:") or sse.data(event) is not None:
            return event
        start = end
    return b""


def _call(offer: Offer, pair: Pair, search: _Search) -> Call:
    """The call that asks an offer. InvalidRequest when the request cannot be carried to its dialect, or asks for what
    its price does not cover."""
    wish, ask, hold = search.wish, search.ask, search.hold
    if wish.stored is not None:
        require_open(wish.stored, offer)
    if offer.tailored:
        require_covered(wish, offer)
    headers = ask.said.headers if pair is ask.dialect else ()
    if headers and offer.dropped_betas:
        headers = without_betas(headers, offer.dropped_betas)
    limit, most = hold.output_limit, offer.max_output_tokens
    body = pair.request(
        wish,
        model=offer.model,
        output_limit=limit if limit is None or most is None else min(limit, most),
        limit_field=offer.limit_field,
        ask_usage=offer.ask_usage,
    )
    return Call(
        pair.PATH,
        cut(body, offer) if offer.tailored else body,
        wish.stream,
        headers,
        sent=hold.sent,
        returned=hold.returned,
        model=offer.model,
        account=hold.account,
    )


def _soonest(failed: list[Failed], most_s: float) -> tuple[float, Offer] | None:
    """Who asked for the shortest pause, if that is short enough to wait for, and the pause."""
    pauses = [(each.error.wait_s, each.offer) for each in failed if isinstance(each.error, UpstreamError)]
    short = [(pause_s, offer) for pause_s, offer in pauses if pause_s is not None and pause_s <= most_s]
    return min(short, key=itemgetter(0), default=None)


def _is_too_long(refused: UpstreamRefused) -> bool:
    """Whether the request is only too long for this one. Anthropic has no code for it."""
    return refused.code in TOO_LONG or refused.message.startswith("prompt is too long")


def _has_more_room(plan: Plan, offer: Offer) -> bool:
    """Whether an offer after this one may take a longer request: of another model, or known to."""
    rest = plan.offers[plan.offers.index(offer) + 1 :]
    return any(
        each.model_id != offer.model_id or (each.context_length or 0) > (offer.context_length or 0) for each in rest
    )


def _word(error: UpstreamError | InvalidRequest) -> str:
    """A failure in a word, for a header."""
    if isinstance(error, NotCarried | InvalidRequest):
        return "not_carried"
    return "too_long" if isinstance(error, UpstreamRefused) else error.kind.removeprefix("upstream_")
