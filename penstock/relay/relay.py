"""One inference call, from credential to settlement. This is the story; each of its words is a file beside this one.

    access   who asks, for which account                   route    what is meant, who may serve it, which money pays
    hold     money set aside; leaving it settles           attempt  the first offer that begins to answer
    meter    what has been used so far                     stream   the answer passes, metered
    memory   what a call continues, and leaves to others
    ending   how a call can end                            departure  what if the caller leaves
    tools    what connected workers offer the account      toolloop   an answer in rounds, because the model calls them

The answer's bytes pass through. The last of them, a plain answer as a whole or a stream's terminator, go out when what
they cost is written down where it outlives the process: whoever has a complete answer has been charged for it.
"""

from __future__ import annotations

from penstock.access import Access, Caller
from penstock.catalogue import Catalogue
from penstock.clock import Clock
from penstock.config import LimitSettings
from penstock.db.records import UsageRecord
from penstock.dialects import Label, Plain, Wish
from penstock.errors import Forbidden
from penstock.money.units import dollars
from penstock.relay.ask import Ask, once_of
from penstock.relay.attempt import Attempts, Begun, Served
from penstock.relay.departure import Departure, Drains
from penstock.relay.ending import Ending
from penstock.relay.hold import Hold, Holds
from penstock.relay.reply import Copied, Headers, Reply, replay
from penstock.relay.route import Plan, route, with_definitions
from penstock.relay.stream import LiveStream
from penstock.relay.toolloop import Equipped
from penstock.relay.tools import Bench, Tools, notes_of

NAMED_TOOLS = 64  # in the header of an answer; the usage record has all
LARGEST_KEPT = 1024 * 1024  # bytes of an answer kept for its idempotency key
COMPLETE = frozenset({Ending.ANSWER, Ending.MONEY})  # a stream that broke may be asked for again
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON: Headers = [(b"content-type", b"application/json")]


class Relay:
    """Carries calls. `catalogue` may be swapped at any time; a call keeps the one it began with."""

    def __init__(
        self,
        *,
        access: Access,
        holds: Holds,
        attempts: Attempts,
        catalogue: Catalogue,
        tools: Tools,
        clock: Clock,
        limits: LimitSettings,
    ) -> None:
        self.catalogue = catalogue
        self.attempts = attempts
        self.tools = tools
        self.drains = Drains(limits)
        self.streams: set[LiveStream] = set()
        self._access = access
        self._holds = holds
        self._clock = clock
        self._limits = limits

    def __repr__(self) -> str:
        return f"Relay({self._holds!r}, {len(self.streams)} streams, {self.drains!r})"

    def set_limits(self, limits: LimitSettings) -> None:
        """What calls that begin from now on are held to."""
        self._limits = self._holds.limits = limits
        self.attempts.most = limits.attempts
        self.drains.most, self.drains.longest_s = limits.draining_calls, limits.drain_s
        self._access.requests_per_minute = limits.requests_per_minute

    async def call(self, ask: Ask, reply: Reply) -> None:
        """Serve one call. PenstockError while nothing has been sent; a stream that has begun ends in its own words."""
        who = (ask.said.authorization, ask.said.trust, ask.surface)
        caller = self._access.remembered(*who) or await self._access.admit(*who)
        if "inference" not in caller.scopes:
            raise Forbidden("This key has no scope for inference.")
        body = await ask.body()
        whole = body if ask.memory is None else await ask.memory.recall(caller, body)
        wish = ask.dialect.peek(whole, max_output_tokens=self._limits.max_output_tokens)
        attempts = self.attempts
        plan = route(wish, ask, caller, self.catalogue, attempts.upstreams, most=attempts.most)
        bench = None
        if ask.surface.tools and ask.kind == "chat" and self.tools.on_offer(caller.account):
            bench = await self.tools.bench(caller.account)
            plan = plan if bench is None else with_definitions(plan, bench.size)
        departure = Departure(self.drains)
        reply.when_gone(departure)
        once = once_of(ask, caller, body)
        hold = Hold(self._holds, caller, plan, wish, self._record(ask, caller, wish, plan), once, departure)
        try:
            async with hold:
                if hold.replayed is not None:
                    last = replay(hold.replayed, reply)
                elif once is not None:
                    copied = Copied(reply, LARGEST_KEPT)
                    last = await self._answer(ask, wish, plan, hold, copied, bench)
                    if hold.ending in COMPLETE:
                        hold.keep = copied.kept(last)
                else:
                    last = await self._answer(ask, wish, plan, hold, reply, bench)
            await hold.written()
            if ask.memory is not None and hold.ending in COMPLETE and hold.replayed is None:
                await ask.memory.keep(caller, last)
            reply.finish(last)
        finally:
            departure.over()

    async def _answer(self, ask: Ask, wish: Wish, plan: Plan, hold: Hold, reply: Reply, bench: Bench | None) -> bytes:
        """Have the call answered, all but the last bytes, which are returned."""
        label = Label(wish.model, ask.surface.id_prefix, ask.id, hold.record.created_ms // 1000)
        equipped = None if bench is None else Equipped(self.tools, bench, plan, hold)
        served = await self.attempts.first_answer(plan, ask, wish, hold, label, equipped)
        try:
            if isinstance(served.body, Plain):
                last = self._plain(served.body, served, hold, reply)
            else:
                last = await self._stream(wish, served.body, served, hold, reply)
            served.ended(hold.ending)
            return last
        finally:
            served.close()

    def _plain(self, answer: Plain, served: Served, hold: Hold, reply: Reply) -> bytes:
        hold.meter.feed(answer.produced, answer.usage)
        hold.first_byte()
        cost = (b"x-penstock-cost", dollars(hold.cost_nano()).encode())
        headers = [*JSON, *_trail(served, hold), cost]
        if hold.record.tools:
            headers.append(_used(hold.record.tools))
        reply.start(200, headers)
        return answer.body

    async def _stream(self, wish: Wish, begun: Begun, served: Served, hold: Hold, reply: Reply) -> bytes:
        live = LiveStream(
            begun.stream, hold, reply, self._clock, self.attempts.redact, include_usage=wish.include_usage
        )
        self.streams.add(live)
        try:
            reply.start(200, [*EVENT_STREAM, *_trail(served, hold)])
            return await live.relay(begun, served.answer)
        finally:
            self.streams.discard(live)

    def _record(self, ask: Ask, caller: Caller, wish: Wish, plan: Plan) -> UsageRecord:
        """The usage record as far as it is known before the call; `Hold` completes it."""
        return UsageRecord(
            ask.id,
            caller.account,
            caller.keys[0],
            ask.surface.name,
            ask.dialect.NAME,
            plan.model.id,
            plan.offers[0].provider,
            attempts=0,
            lane=plan.lane,
            asset=plan.tariff.asset,
            price_version=plan.offers[0].price.version,
            input_tokens=plan.input_estimate,
            streamed=int(wish.stream),
            created_ms=self._clock.now_ms(),
        )


def _used(tools: str) -> tuple[bytes, bytes]:
    """A header that names the tools that were run; of very many the first, for callers take no header of any size."""
    names = [note.name for note in notes_of(tools)]
    more = [f"and {len(names) - NAMED_TOOLS} more"] if len(names) > NAMED_TOOLS else []
    return b"x-penstock-tools", ", ".join([*names[:NAMED_TOOLS], *more]).encode()


def _trail(served: Served, hold: Hold) -> Headers:
    """Headers that say where a call went and how long we held it up."""
    added_ms, upstream_ms = hold.added_s() * 1000, hold.upstream_s * 1000
    timing = b"penstock;dur=%.2f, upstream;dur=%.2f" % (added_ms, upstream_ms)
    return [(b"x-penstock-route", served.trail()), (b"server-timing", timing)]
