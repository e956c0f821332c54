"""The tool loop: a completion in rounds, because the model calls tools that the gateway runs.

A `ToolLoop` is an `Answer`. It stands around the upstream's answers, below translation and metering: whoever reads it
sees one plain answer or one stream, with the usage of all rounds added up. Round by round it

    reads what the upstream says, keeping calls of our tools back        (dialects/rounds)
    runs them, side by side, within the account's rules                  (tools.py)
    has the hold cover the prompt that grew by what they found           (hold.py)
    asks the same provider again

until the model calls none of ours, the caller has calls of its own to answer, the rounds are used up (then comes a last
one without tools), or the money is. A tool that fails is a result for the model. When the caller leaves, the task is
cancelled wherever it waits, the tool included.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from penstock.dialects import sse
from penstock.dialects.rounds import Module, Round, Rounds, ToolCall, chat, messages, summed
from penstock.dialects.usage import TokenUsage
from penstock.errors import InvalidRequest, PenstockError, UpstreamFailed, UpstreamRefused
from penstock.money.units import ceil_div
from penstock.ports import Answer, Call, Provider
from penstock.relay.ending import Ending
from penstock.relay.hold import Hold
from penstock.relay.route import ESTIMATED_BYTES_PER_TOKEN, Plan
from penstock.relay.tools import Bench, Note, Tools, as_result
from penstock.tools import ToolResult

MODULES: Mapping[str, Module] = MappingProxyType({chat.PATH: chat, messages.PATH: messages})
UNTAKEN = frozenset({400, 404, 422})  # what providers say to tools that a model of theirs cannot call
# What providers say to a prompt that is not theirs to answer: what tools have found may be of any length.
ABOUT_REQUEST = frozenset({400, 413, 422})
NO_MORE = ToolResult("No further tools are run for this answer.", failed=True)

_logger = logging.getLogger("penstock.tools")


class Equipped:
    """A call that may use tools: which ones, who runs them, and what became of it so far."""

    def __init__(self, tools: Tools, bench: Bench, plan: Plan, hold: Hold) -> None:
        self.tools = tools
        self.bench = bench
        self.hold = hold
        self.used = False  # a tool has run: from here on no other provider starts from the beginning
        self._model = plan.model
        self._plan = plan
        self._notes: list[Note] = []

    def __repr__(self) -> str:
        return f"Equipped({len(self.bench.tools)} tools, {len(self._notes)} calls)"

    async def open(self, provider: Provider, call: Call) -> Answer:
        """`provider.open`, with tools where the dialect and the request have room for them. The same errors."""
        rounds = await self._rounds(call)
        if rounds is not None:
            loop = ToolLoop(self, provider, call, rounds)
            if await loop.begin():
                return loop
        return await provider.open(call)

    async def _rounds(self, call: Call) -> Rounds | None:
        """The rounds that the call may take, with the turns in its conversation that the caller has not seen."""
        module, account = MODULES.get(call.path), self.bench.account
        if module is None:
            return None
        try:
            rounds = module.open_rounds(call.body, self.bench.tools)
            digests = module.digests(call.body, account) if rounds.names else ()
            if digests and (kept := await self.tools.kept(digests)):
                rounds = module.open_rounds(module.restored(call.body, account, kept), self.bench.tools)
        except (ValueError, RecursionError):  # nested too deep to be taken apart; what it comes to is for the upstream
            return None
        return rounds if rounds.names else None

    def input_of(self, growth_bytes: int) -> tuple[int, int]:
        """`(bound, estimate)` of the tokens in a prompt that is so much larger than what was held for."""
        growth_bytes = max(0, growth_bytes - self.bench.size)
        bound = self._plan.input_bound + ceil_div(growth_bytes, self._model.input_bytes_per_token)
        return bound, self._plan.input_estimate + ceil_div(growth_bytes, ESTIMATED_BYTES_PER_TOKEN)

    async def run(self, calls: tuple[ToolCall, ...], number: int) -> dict[str, ToolResult]:
        """The results of a round's calls, side by side, by their ids."""
        self.used = True
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {call.id: group.create_task(self._one(call, number)) for call in calls}
        finally:  # also when the caller leaves; and once for all of them, for a round may have thousands
            if self._notes:
                self.hold.record.tools = msgspec.json.encode(self._notes).decode()
        return {id: task.result() for id, task in tasks.items()}

    async def _one(self, call: ToolCall, number: int) -> ToolResult:
        clock = self.tools.clock
        started_s = clock.monotonic()
        result = await self._result(call)
        ms = int((clock.monotonic() - started_s) * 1000)
        self._notes.append(Note(call.name, number, ms, not result.failed, len(result.text.encode("utf-8", "replace"))))
        return result

    async def _result(self, call: ToolCall) -> ToolResult:
        if call.arguments is None:
            return ToolResult("", failed=True)  # the round tells the model what is wrong with them
        try:
            return await self.tools.run(self.bench.account, self.bench.policy, call.name, call.arguments)
        except PenstockError as error:
            return as_result(error)
        except Exception:
            _logger.exception("the tool %s could not be run", call.name)
            return ToolResult("The tool could not be run.", failed=True)


class ToolLoop:
    """One completion in rounds, as `ports.Answer`. `begin` opens the first."""

    status: int
    headers: Mapping[str, str]

    def __init__(self, equipped: Equipped, provider: Provider, call: Call, rounds: Rounds) -> None:
        self._equipped = equipped
        self._bench = equipped.bench
        self._hold = equipped.hold
        self._provider = provider
        self._call = call
        self._rounds = rounds
        self._number = 1
        self._over = False
        self._answer: Answer | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._splitter = sse.Splitter()
        self._events: deque[bytes] = deque()
        self._hidden = 0  # tokens of the last event that the caller does not see, and that are not paid yet
        self._ended = False  # the round's stream

    def __repr__(self) -> str:
        return f"ToolLoop({self._rounds!r}, over={self._over})"

    async def begin(self) -> bool:
        """Open the first round; False when the money does not cover what our tools add to it, or the provider does not
        take them: the caller has not asked for them and is served without. Errors as of `open`."""
        body = self._rounds.request(output_limit=None, last=False)
        bound, _ = self._equipped.input_of(len(body) - len(self._call.body))
        if bound > self._hold.input_bound and not await self._hold.cover_input(bound, requests=1):
            return False
        try:
            self._answer = await self._provider.open(replace(self._call, body=body))
        except InvalidRequest:
            return False
        if self._answer.status in UNTAKEN:
            self.close()
            return False
        self.status, self.headers = self._answer.status, self._answer.headers
        return True

    def close(self) -> None:
        self._over = True
        self._close_round()

    # A plain answer.

    async def read(self, limit: int) -> bytes:
        """The whole answer. A refusal is the upstream's own; a later round that fails is nobody's to pay."""
        assert self._answer is not None
        if self.status != 200:
            return await self._answer.read(limit)
        try:
            while True:
                round = self._rounds.read(await self._answer.read(limit))
                if not await self._another(round):
                    return self._rounds.whole()
        except PenstockError:
            self._hold.meter.restart()
            raise

    # A stream.

    def __aiter__(self) -> ToolLoop:
        return self

    async def __anext__(self) -> bytes:
        """What can go on to the caller now; it is out before a tool is run or anything else takes time."""
        while not self._over:
            if self._events or self._hidden:
                out = await self._passed()
            elif self._ended:
                self._ended = False
                out = await self._round_over()
            else:
                await self._take()
                continue
            if out:
                return out
        raise StopAsyncIteration

    async def _take(self) -> None:
        """The next events of the round, or its end."""
        assert self._answer is not None
        if self._pieces is None:
            self._pieces, self._splitter = aiter(self._answer), sse.Splitter()
        piece = None if self._rounds.done else await anext(self._pieces, None)
        if piece is None:
            self._ended = True
        else:
            self._events.extend(sse.events(self._splitter.feed(piece)))

    async def _passed(self) -> bytes:
        """What of the events goes on to the caller. What does not has to be paid as well: here, and in its turn."""
        if self._hidden and not await self._paid():
            return self._out_of_money()
        out: list[bytes] = []
        while self._events and not self._hidden:
            passing, self._hidden = self._rounds.feed(self._events.popleft())
            out.append(passing)
        return b"".join(out)

    async def _paid(self) -> bool:
        """Whether what the caller does not see is covered."""
        meter = self._hold.meter
        meter.feed(self._hidden, None)
        self._hidden = 0
        if meter.output > self._hold.covered_output and not await self._hold.cover(meter.output):
            return False
        self._hold.extend_ahead()
        return True

    async def _round_over(self) -> bytes:
        """The events that end the stream; none when another round has begun, or the upstream broke off."""
        round = self._rounds.ended()
        if round.calls and not round.finished:
            raise UpstreamFailed("The provider broke off the stream.", began=True)
        if await self._another(round):
            self._pieces = None
            return b""
        self._over = True
        return self._rounds.closing()

    def _out_of_money(self) -> bytes:
        self.close()
        self._hold.ending = Ending.MONEY
        self._rounds.cut("insufficient_balance")
        return self._rounds.closing()

    # From round to round.

    async def _another(self, round: Round) -> bool:
        """Run what the round asks for, and open the next; False when there is none. UpstreamError when it fails,
        StoreUnavailable."""
        if round.calls or self._number > 1:
            self._count(round)
        if self._hold.abandoned:
            return False
        if round.calls and self._number <= self._bench.policy.rounds:
            self._rounds.answered(await self._equipped.run(round.calls, self._number))
        elif round.calls and round.theirs:
            self._rounds.answered({call.id: NO_MORE for call in round.calls})
        if round.theirs:
            kept = self._rounds.kept(self._bench.account)
            if kept is not None:
                await self._equipped.tools.keep(*kept)
        if not round.calls or round.theirs or self._number > self._bench.policy.rounds:
            return False
        return await self._next()

    def _count(self, round: Round) -> None:
        """Tell the meter what the round used: the caller may leave while tools are run."""
        if round.usage is not None:
            self._hold.meter.feed(0, summed([self._rounds.so_far, round.usage]))
            return
        self._hold.meter.guessed = True
        if not self._call.stream:
            self._hold.meter.feed(round.produced, None)

    async def _next(self) -> bool:
        """Open the next round, when money and the caller's limit have room for it."""
        hold, used = self._hold, self._rounds.so_far
        last = self._number + 1 > self._bench.policy.rounds
        body = self._rounds.request(output_limit=None, last=last)
        bound, estimate = self._equipped.input_of(len(body) - len(self._call.body))
        hold.meter.begin_round(used, input_estimate=estimate)
        covered = await hold.cover_input(used.input + bound, requests=self._number + 1)
        left = hold.output_left()
        if not covered or (left is not None and left < 1):
            hold.meter.abandon_round(used)
            self._end_early(covered=covered)
            return False
        if left is not None:
            body = self._rounds.request(output_limit=left, last=last)
        self._number += 1
        await self._open(body, used)
        return True

    def _end_early(self, *, covered: bool) -> None:
        if covered:
            self._rounds.cut("output_limit")
        else:
            self._hold.ending = Ending.MONEY
            self._rounds.cut("insufficient_balance")

    async def _open(self, body: bytes, used: TokenUsage) -> None:
        self._close_round()
        try:
            self._answer = await self._provider.open(replace(self._call, body=body))
            if self._answer.status in ABOUT_REQUEST:
                words = f"The provider refused a further round with status {self._answer.status}."
                raise UpstreamRefused(words, refused_status=self._answer.status)
            if self._answer.status != 200:
                raise UpstreamFailed(f"The provider answered a further round with status {self._answer.status}.")
            kind = self._answer.headers.get("content-type", "")
            if self._call.stream and not kind.startswith("text/event-stream"):
                raise UpstreamFailed("The provider was asked for a stream and sent something else.")
        except PenstockError:
            self._hold.meter.abandon_round(used)
            raise

    def _close_round(self) -> None:
        """Let go of the round's answer, which has been read."""
        if self._answer is not None:
            self._answer.close()
