"""From a plan to a first answer: try the offers in order until one begins to answer well.

Failover ends with the first byte of a good answer: a stream's first event is awaited here and a plain answer is read
whole, so a provider that breaks before that is passed over unseen. What an upstream says about the *request* (its own
4xx) goes to the caller; what it says about *us* (bad key, no credit there) is our fault and never the caller's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping

from msgspec import Struct

from penstock.catalogue import Offer
from penstock.dialects import Label, Pair, Plain, Stream, Wish, sse
from penstock.dialects.pairs import between
from penstock.dialects.refusals import read_refusal
from penstock.errors import InvalidRequest, NoHealthyProvider, UpstreamError, UpstreamFailed, UpstreamRefused
from penstock.ports import Answer, Call, Provider
from penstock.relay.ask import Ask
from penstock.relay.hold import Hold
from penstock.relay.route import Plan
from penstock.relay.tailor import cut, require_covered
from penstock.relay.toolloop import Equipped

LARGEST_ANSWER = 64 * 1024 * 1024  # bytes of a plain answer; embeddings of a full batch are the largest
LARGEST_ERROR = 64 * 1024
LONGEST_SECRET = 4_096
LONGEST_WORDS = 4_000  # characters of an upstream's error that are repeated: enough to say what is wrong
OUR_FAULT = frozenset({401, 402, 403, 404, 407})  # credentials, credit, address: ours to mend
WORTH_ANOTHER = frozenset({408, 409, 425, 429})
# What xAI, Gemini and Anthropic say under status 400, as if it were the request's fault.
_OURS = re.compile("(?i)incorrect api key|api key (not valid|expired)|credit balance is too low")

_logger = logging.getLogger("penstock.relay")


class Served(Struct, frozen=True, gc=False):
    """An answer that has begun: a plain one as a whole, or a stream."""

    offer: Offer
    attempts: int
    answer: Answer
    body: Plain | Begun


class Begun(Struct, frozen=True, gc=False):
    """A stream: how it is read, its first whole events, and where the rest comes from."""

    stream: Stream
    block: bytes
    pieces: AsyncIterator[bytes]
    splitter: sse.Splitter


class Attempts:
    """Tries offers. Redacts what it repeats of an upstream's words."""

    def __init__(self, providers: Mapping[str, Provider], most: int, redact: Callable[[str], str]) -> None:
        self.providers = providers
        self._most = most
        self._redact = redact

    def __repr__(self) -> str:
        return f"Attempts({', '.join(self.providers)})"

    def redact(self, words: str) -> str:
        """An upstream's words as they may be repeated: without secrets, and not too many."""
        if len(words) <= LONGEST_WORDS:
            return self._redact(words)
        # At the end there may be half a secret, which is not known for one; so as much as a whole one goes as well.
        return self._redact(words[: LONGEST_WORDS + LONGEST_SECRET])[:-LONGEST_SECRET]

    async def first_answer(
        self, plan: Plan, ask: Ask, wish: Wish, hold: Hold, label: Label, equipped: Equipped | None
    ) -> Served:
        """The first offer that begins to answer well; the hold is told which. The caller closes the answer.

        A call that is `equipped` with tools may take several rounds at an offer; once one has run no other is tried.
        UpstreamRefused at once; else the last offer's UpstreamError when none answers, and InvalidRequest when none has
        anything for what is asked.
        """
        failure: UpstreamError | None = None
        unfit: InvalidRequest | None = None
        for number, offer in enumerate(plan.offers[: self._most], 1):
            provider = self.providers.get(offer.provider)
            pair = between(ask.dialect, offer.speaks)
            if provider is None or pair is None:  # a reload has just changed the configuration
                continue
            try:
                body = self._body(pair, wish, offer, hold)
            except InvalidRequest as error:  # what this offer has nothing for, another one may serve
                unfit = error
                continue
            headers = ask.headers if pair is ask.dialect else ()
            call = Call(pair.PATH, body, wish.stream, headers, sent=hold.sent, model=offer.model, account=hold.account)
            hold.calling(offer, provider.on_cancel)
            try:
                if equipped is None or "tools" not in offer.capabilities:
                    answer = await provider.open(call)
                else:
                    answer = await equipped.open(provider, call)
                try:
                    read = self._stream if wish.stream else self._plain
                    return Served(offer, number, answer, await read(answer, pair, wish, label))
                except BaseException:
                    answer.close()
                    raise
            except UpstreamRefused:
                raise
            except UpstreamError as error:
                hold.failed(error)
                _logger.warning("%s did not serve %s: %s", offer.provider, offer.model, error.message)
                if equipped is not None and equipped.used:
                    raise
                failure = error
            finally:
                hold.answered()
        raise failure or unfit or NoHealthyProvider()

    def _body(self, pair: Pair, wish: Wish, offer: Offer, hold: Hold) -> bytes:
        require_covered(wish, offer)
        body = pair.request(
            wish,
            model=offer.model,
            output_limit=hold.output_limit,
            limit_field=offer.limit_field,
            ask_usage=offer.ask_usage,
        )
        return cut(body, offer)

    async def _plain(self, answer: Answer, pair: Pair, wish: Wish, label: Label) -> Plain:
        await self._require_success(answer)
        body = await answer.read(LARGEST_ANSWER)
        try:
            return pair.answer(body, wish=wish, label=label)
        except UpstreamFailed as error:  # may be in the upstream's own words
            raise UpstreamFailed(self.redact(error.message), began=True) from None

    async def _stream(self, answer: Answer, pair: Pair, wish: Wish, label: Label) -> Begun:
        await self._require_success(answer)
        self._require_stream(answer)
        pieces, splitter = aiter(answer), sse.Splitter()
        async for piece in pieces:
            block = splitter.feed(piece)
            if block:
                self._require_no_error(block[: sse.event_end(block, 0)], pair, wish, label)
                return Begun(pair.open_stream(wish=wish, label=label), block, pieces, splitter)
        raise UpstreamFailed("The provider ended the stream before it began.")

    async def _require_success(self, answer: Answer) -> None:
        if answer.status != 200:
            raise await self._refusal(answer)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise UpstreamFailed("The provider compressed its answer, which was not asked for.")

    def _require_no_error(self, event: bytes, pair: Pair, wish: Wish, label: Label) -> None:
        """UpstreamFailed when a stream has only an error to report: some providers refuse under status 200."""
        if b'"error"' not in event:  # nearly always, and cheaper than reading it
            return
        error = pair.open_stream(wish=wish, label=label).feed(event).error
        if error is not None:
            raise UpstreamFailed(self.redact(error))

    async def _refusal(self, answer: Answer) -> UpstreamError:
        """What an answer that is not 200 comes to."""
        body = await answer.read(LARGEST_ERROR)
        message, code, param = (each and self.redact(each) for each in read_refusal(body))
        status = answer.status
        if _OURS.search(message or ""):
            return UpstreamFailed(f"The provider answered with status {status}, about our key or credit there.")
        if 400 <= status < 500 and status not in OUR_FAULT and status not in WORTH_ANOTHER:
            words = message or "The provider refused the request."
            return UpstreamRefused(words, refused_status=status, code=code, param=param)
        return UpstreamFailed(f"The provider answered with status {status}.")

    def _require_stream(self, answer: Answer) -> None:
        kind = answer.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            sent = self.redact(kind)[:100] or "no content type"
            raise UpstreamFailed(f"The provider was asked for a stream and sent {sent}.")
