"""The ledger against a simple model, in any order of events: grants, expiry, holds, extensions, settlements (also
twice, also late), groups, crashes, forgotten holds, clocks that jump both ways, child keys with limits, idempotency.

The model is the rules of money written down once more, on plain dictionaries and one event at a time. After every step
the database must say what the model says, and the books must balance.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from penstock.db.credentials import revoke
from penstock.db.journal import GRACE_MS, expire_lots, verify
from penstock.db.ledger import Admission, Extension, Once, Outcome, Replay, Settlement, forget_answers
from penstock.db.program import Program
from penstock.db.records import KeptAnswer
from penstock.db.recovery import bury, renew, requests_of, settle_forgotten, settle_overdue
from penstock.db.schema import credentials, holds, lots, transfers, usage_records
from penstock.db.sqlite import SqliteStore
from penstock.money.books import Granted, Need, Refused, Settled
from tests.ledger import (
    HOUR_MS,
    HandClock,
    admission,
    extension,
    furnish,
    key,
    lot,
    need,
    rows_of,
    settlement,
)

TICK_MS = HOUR_MS // 3  # instants are whole ticks, so that "just expired" comes up often
DAY_TICKS = 72
RATES = {"USD": 1_000_000, "TOK": 333_333}
FAMILIES = (("free",), ("parent",), ("child", "parent"), ("doomed",))
LIMITS = {"free": None, "parent": 160, "child": 70, "doomed": None}
OWNERS = ("own_1", "own_2")
ANSWER = KeptAnswer(200, "[]", b"hello")


@dataclass(frozen=True, slots=True)
class Ask:
    family: tuple[str, ...]
    asset: str
    want: int
    least: int
    patient: bool
    owner: str
    once: Once | None


@dataclass(frozen=True, slots=True)
class Extend:
    pick: int
    want: int
    least: int
    progress: int


@dataclass(frozen=True, slots=True)
class Settle:
    pick: int
    owed: int
    kept: bool


amounts = st.integers(1, 120)
families = st.sampled_from(FAMILIES)
assets = st.sampled_from(sorted(RATES))
onces = st.none() | st.builds(Once, st.sampled_from(["i", "j"]), st.sampled_from(["d", "e"]))
asks = st.builds(
    Ask, families, assets, st.integers(0, 120), st.integers(1, 40), st.booleans(), st.sampled_from(OWNERS), onces
)
extends = st.builds(Extend, st.integers(0, 9), amounts, st.integers(1, 40), st.integers(0, 30))
settles = st.builds(Settle, st.integers(0, 9), st.integers(0, 200), st.booleans())


@dataclass(slots=True)
class Request:
    """A request that was let in. `parts` is what it holds of each lot; None once it has been settled."""

    need: Need
    owner: str
    once: bool
    ends_ms: int
    parts: dict[str, int] | None
    drawn: int
    value: int
    progress: int = 0


@dataclass(slots=True)
class Model:
    """What the books should say."""

    now: int
    lots: dict[str, dict[str, Any]] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0))
    owners: set[str] = field(default_factory=lambda: set(OWNERS))
    revoked: set[str] = field(default_factory=set)
    requests: dict[str, Request] = field(default_factory=dict)
    records: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # state, collected, uncollected
    answers: dict[tuple[str, str], tuple[str, str, KeptAnswer | None, int]] = field(default_factory=dict)

    def held_by_key(self, id: str) -> int:
        return sum(r.value for r in self.requests.values() if r.parts is not None and id in r.need.keys)

    def held_of_lot(self, id: str) -> int:
        return sum(r.parts.get(id, 0) for r in self.requests.values() if r.parts is not None)

    def purse(self, asset: str) -> list[str]:
        ends = {id: each["ends"] or 2**63 for id, each in self.lots.items() if each["asset"] == asset}
        return sorted((id for id in ends if self.now < ends[id]), key=lambda id: (ends[id], id))

    def units(self, wants: Need, *, held: bool) -> int:
        """Units that the limits of the keys still allow, with or without what open holds may spend."""
        rooms = [
            max(0, limit - self.spent[id] - (self.held_by_key(id) if held else 0))
            for id in wants.keys
            if (limit := LIMITS[id]) is not None
        ]
        return min(rooms) * 1_000_000 // wants.value_rate if rooms else 2**62

    def draw(self, asset: str, amount: int) -> dict[str, int]:
        drawn: dict[str, int] = {}
        for id in self.purse(asset):
            free = min(self.lots[id]["remaining"] - self.held_of_lot(id), amount)
            if free > 0:
                drawn[id] = free
                amount -= free
        return drawn

    def set_aside(self, wants: Need) -> dict[str, int] | str:
        """What is taken of which lot, or why nothing is."""
        owned = sum(self.lots[id]["remaining"] for id in self.purse(wants.asset))
        free = min(sum(self.draw(wants.asset, 2**62).values()), self.units(wants, held=True))
        allowed = self.units(wants, held=False)
        if wants.patient and free < wants.want <= min(owned, allowed):
            return "held"
        if free < wants.least:
            return "key_limit" if allowed < wants.least else "held" if owned >= wants.least else "no_funds"
        return self.draw(wants.asset, min(wants.want, free))

    def settle(self, id: str, owed: int, *, state: str = "final") -> tuple[int, int]:
        """`(collected now, uncollected)`."""
        before, already, _ = self.records.get(id, ("", 0, 0))
        if before == "final":
            return 0, 0
        request = self.requests[id]
        due, parts = max(0, owed - already), request.parts or {}
        request.parts = None
        charges = dict.fromkeys(parts, 0)
        for part, amount in parts.items():
            charges[part] = min(amount, due - sum(charges.values()))
        for part, amount in charges.items():
            self.lots[part]["remaining"] -= amount
        collected = sum(charges.values())
        room = max(0, self.units(request.need, held=True) - collected)
        for part, amount in self.draw(request.need.asset, min(due - collected, room)).items():
            self.lots[part]["remaining"] -= amount
            collected += amount
        for each in request.need.keys:
            self.spent[each] += -(-collected * request.need.value_rate // 1_000_000)
        self.records[id] = (state, already + collected, due - collected)
        return collected, due - collected

    def keep(self, id: str, answer: KeptAnswer | None) -> None:
        for place, (request, digest, _, until) in list(self.answers.items()):
            if request == id and answer is None:
                del self.answers[place]
            elif request == id:
                self.answers[place] = (request, digest, answer, until)

    def last_words(self, ids: list[str]) -> int:
        for id in ids:
            self.settle(id, self.requests[id].progress, state="review")
            self.keep(id, None)
        return len(ids)


class LedgerMachine(RuleBasedStateMachine):
    """Does everything twice, in the store and in the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = HandClock(1_000_000 * TICK_MS)
        self.model = Model(self.clock.now)
        self.store = self.runner.run(self.open())
        self.granted = dict.fromkeys(RATES, 0)
        self.made = 0
        for asset in RATES:  # several small lots, so that most holds draw on more than one
            for ticks in (3, None, 9, None):
                self.enter_lot(asset, 25, ticks)

    async def open(self) -> SqliteStore:
        store = SqliteStore(None, clock=self.clock)
        parents = {"child": "parent"}
        await store.write(
            furnish([key(id, limit=limit, parent=parents.get(id)) for id, limit in LIMITS.items()], OWNERS)
        )
        return store

    def teardown(self) -> None:
        self.runner.run(self.store.close())
        self.runner.close()

    def write(self, program: Program[Any]) -> Any:
        return self.runner.run(self.store.write(program))

    def new_id(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}_{self.made:04}"

    @rule(asset=assets, amount=amounts, ticks=st.none() | st.integers(-1, 12))
    def grant(self, asset: str, amount: int, ticks: int | None) -> None:
        self.enter_lot(asset, amount, ticks)

    def enter_lot(self, asset: str, amount: int, ticks: int | None) -> None:
        id, ends = self.new_id("lot"), None if ticks is None else self.clock.now + ticks * TICK_MS
        assert self.write(lot(id, amount, asset=asset, expires_ms=ends, now_ms=self.clock.now))
        self.model.lots[id] = {"asset": asset, "remaining": amount, "ends": ends}
        self.granted[asset] += amount

    @rule(wishes=st.lists(asks | extends | settles, min_size=1, max_size=6))
    def commit(self, wishes: list[Ask | Extend | Settle]) -> None:
        """One group. Settlements come first in it, and what they end has ended for the others."""
        pairs = [(wish, made) for wish in wishes if (made := self.operation(wish))]
        last = {
            made.request_id: made for wish, made in pairs if isinstance(wish, Extend)
        }  # a hold extends once at a time
        pairs = [(wish, made) for wish, made in pairs if not isinstance(wish, Extend) or last[made.request_id] is made]
        outcomes = self.runner.run(self.submit([made for _, made in pairs]))
        kept: dict[str, KeptAnswer | None] = {}
        answers: dict[Any, Any] = {}
        for settling in (True, False):
            for (wish, made), outcome in zip(pairs, outcomes, strict=True):
                if isinstance(wish, Settle) is settling:
                    assert summary(outcome) == self.expect(wish, made.request_id, made.need, answers, kept), (
                        wish,
                        outcome,
                    )
            for id, answer in kept.items():
                self.model.keep(id, answer)
            kept.clear()
            answers = {place: known for place, known in self.model.answers.items() if known[3] > self.clock.now}

    async def submit(self, operations: list[Admission | Extension | Settlement]) -> list[Outcome]:
        return list(await asyncio.gather(*(self.store.commit(each) for each in operations)))

    def operation(self, wish: Ask | Extend | Settle) -> Admission | Extension | Settlement | None:
        if isinstance(wish, Ask):
            wants = need(
                wish.want, min(wish.least, wish.want), keys=wish.family, asset=wish.asset, rate=RATES[wish.asset],
                patient=wish.patient, again=True,
            )  # fmt: skip
            ends_ms = self.clock.now + HOUR_MS
            return admission(self.new_id("req"), wants, owner=wish.owner, expires_ms=ends_ms, once=wish.once)
        if not self.model.requests:
            return None
        id = list(self.model.requests)[-1 - wish.pick % len(self.model.requests)]
        request = self.model.requests[id]
        if isinstance(wish, Settle):
            return settlement(id, request.need, wish.owed, kept=ANSWER if wish.kept else None, once=request.once)
        wants = structs.replace(request.need, want=wish.want, least=min(wish.least, wish.want), patient=False)
        return extension(
            id, wants, progress=request.progress + wish.progress, position=request.drawn, owner=request.owner,
            expires_ms=request.ends_ms,
        )  # fmt: skip

    def expect(self, wish: Any, id: str, wants: Need, answers: Any, kept: dict[str, KeptAnswer | None]) -> Any:
        if isinstance(wish, Settle):
            return self.expect_settled(wish, id, kept)
        if isinstance(wish, Extend):
            return self.expect_extended(wish, id, wants)
        return self.expect_admitted(wish, id, wants, answers)

    def expect_settled(self, wish: Settle, id: str, kept: dict[str, KeptAnswer | None]) -> Any:
        if self.model.requests[id].once and self.model.records.get(id, ("",))[0] != "final":
            kept[id] = ANSWER if wish.kept else None
        return self.model.settle(id, wish.owed)

    def expect_extended(self, wish: Extend, id: str, wants: Need) -> Any:
        request = self.model.requests[id]
        drawn = "gone" if request.parts is None else self.model.set_aside(wants)
        if isinstance(drawn, str):
            return drawn
        assert request.parts is not None
        for part, amount in drawn.items():
            request.parts[part] = request.parts.get(part, 0) + amount
        request.drawn += len(drawn)
        request.value += -(-sum(drawn.values()) * wants.value_rate // 1_000_000)
        request.progress += wish.progress
        return sum(drawn.values())

    def expect_admitted(self, wish: Ask, id: str, wants: Need, answers: Any) -> Any:
        if self.model.revoked & set(wish.family):
            return "key_invalid"
        place = (wish.family[0], wish.once.key) if wish.once else None
        if place in answers:
            _, digest, answer, _ = answers[place]
            return digest, answer
        drawn = self.model.set_aside(wants)
        if isinstance(drawn, str):
            return drawn
        worth = -(-sum(drawn.values()) * wants.value_rate // 1_000_000)
        self.model.requests[id] = Request(
            wants, wish.owner, wish.once is not None, self.clock.now + HOUR_MS, drawn, max(1, len(drawn)), worth
        )
        if wish.once and place:
            until = self.clock.now + DAY_TICKS * TICK_MS
            answers[place] = self.model.answers[place] = (id, wish.once.body_digest, None, until)
        return sum(drawn.values())

    @rule(owner=st.sampled_from(OWNERS), more=st.integers(0, 40))
    def note_progress(self, owner: str, more: int) -> None:
        open_here = {id: r for id, r in self.model.requests.items() if r.parts is not None and r.owner == owner}
        for request in open_here.values():
            request.progress += more
        self.model.owners.add(owner)
        self.write(renew(owner, [(r.progress, 1, id) for id, r in open_here.items()], self.clock.now))

    @rule(owner=st.sampled_from(OWNERS), more=st.integers(0, 40))
    def crash(self, owner: str, more: int) -> None:
        self.note_progress(owner, more)
        self.model.owners.remove(owner)
        left = sorted(id for id, r in self.model.requests.items() if r.parts is not None and r.owner == owner)
        assert self.write(bury(owner, self.clock.now)) == self.model.last_words(left)

    @rule(pick=st.integers(0, 9), owed=st.integers(0, 200))
    def settle_late(self, pick: int, owed: int) -> None:
        """A process that was taken for dead settles after all."""
        ages = [
            n for n, id in enumerate(reversed(self.model.requests)) if self.model.records.get(id, ("",))[0] == "review"
        ]
        if ages:
            self.commit([Settle(ages[pick % len(ages)], owed, kept=True)])

    @rule()
    def settle_holds_of_nobody(self) -> None:
        now, known = self.clock.now, self.model.owners
        left = sorted(id for id, r in self.model.requests.items() if r.parts is not None and r.owner not in known)
        late = [id for id in left if self.model.requests[id].ends_ms <= now]
        assert self.write(settle_overdue(now)) == self.model.last_words(late)

    @rule(owner=st.sampled_from(OWNERS), every=st.integers(1, 3))
    def settle_forgotten_holds(self, owner: str, every: int) -> None:
        """Every so-manieth of a process's holds was granted to nobody."""
        left = sorted(id for id, r in self.model.requests.items() if r.parts is not None and r.owner == owner)
        assert self.write(requests_of(owner)) == set(left)
        assert self.write(settle_forgotten(left[::every], self.clock.now)) == self.model.last_words(left[::every])

    @rule(ticks=st.integers(-3, 4) | st.sampled_from([-DAY_TICKS, DAY_TICKS]))
    def jump(self, ticks: int) -> None:
        self.clock.now += ticks * TICK_MS
        self.model.now = self.clock.now

    @rule()
    def empty_expired_lots(self) -> None:
        emptied = 0
        for id, each in self.model.lots.items():
            over = each["ends"] is not None and each["ends"] + GRACE_MS <= self.clock.now
            if over and each["remaining"] and not self.model.held_of_lot(id):
                each["remaining"], emptied = 0, emptied + 1
        assert self.write(expire_lots(self.clock.now)) == emptied

    @rule()
    def forget_old_answers(self) -> None:
        self.write(forget_answers(self.clock.now))
        self.model.answers = {p: kept for p, kept in self.model.answers.items() if kept[3] > self.clock.now}

    @rule()
    def revoke_a_key(self) -> None:
        self.write(revoke(["doomed"], self.clock.now))
        self.model.revoked.add("doomed")

    @invariant()
    def nothing_is_out_of_balance(self) -> None:
        found, tables = self.write(everything())
        assert found == []
        assert {row["id"]: row["remaining"] for row in tables["lots"]} == {
            id: each["remaining"] for id, each in self.model.lots.items()
        }
        assert all(0 <= row["held"] == self.model.held_of_lot(row["id"]) <= row["remaining"] for row in tables["lots"])
        assert {(row["id"], row["spent_nano"], row["held_nano"]) for row in tables["credentials"]} == {
            (id, self.model.spent[id], self.model.held_by_key(id)) for id in LIMITS
        }
        self.limits_are_kept()
        self.requests_are_accounted_for(tables)
        self.journal_sums_to_zero(tables)

    def limits_are_kept(self) -> None:
        for id, limit in LIMITS.items():
            assert limit is None or self.model.spent[id] + self.model.held_by_key(id) <= limit

    def requests_are_accounted_for(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        """A request is either open or has one usage record, which says what the journal says it was charged."""
        charged = dict.fromkeys(self.model.requests, 0)
        for row in tables["transfers"]:
            if row["kind"] == "charge":
                charged[row["reference"]] += row["amount"]
        recorded = {
            row["request_id"]: (row["state"], row["amount"], row["uncollected"]) for row in tables["usage_records"]
        }
        assert recorded == self.model.records
        assert {id: amount for id, (_, amount, _) in recorded.items()} == {id: charged[id] for id in recorded}
        assert {row["request_id"] for row in tables["holds"]} == self.model.requests.keys() - recorded.keys()

    def journal_sums_to_zero(self, tables: dict[str, list[dict[str, Any]]]) -> None:
        """What was granted is in a lot, or was charged, or has expired."""
        for asset, granted in self.granted.items():
            flows = [row for row in tables["transfers"] if row["asset"] == asset]
            out = sum(row["amount"] for row in flows if row["target"] in ("revenue", "expired"))
            left = sum(row["remaining"] for row in tables["lots"] if row["asset"] == asset)
            assert granted == out + left == sum(row["amount"] for row in flows if row["source"] == "grants")


def everything() -> Program[Any]:
    """The differences found, and the tables, on one snapshot."""
    found = yield from verify()
    tables = {}
    for table in (lots, credentials, holds, usage_records, transfers):
        tables[table.name] = yield from rows_of(table)
    return found, tables


def summary(outcome: Outcome) -> Any:
    """An outcome as the model puts it."""
    if isinstance(outcome, Granted):
        assert outcome.amount == sum(part.amount for part in outcome.parts)
        return outcome.amount
    if isinstance(outcome, Refused):
        return str(outcome.why)
    if isinstance(outcome, Replay):
        return outcome.body_digest, outcome.kept
    assert isinstance(outcome, Settled)
    return sum(part.amount for part in outcome.charges), outcome.uncollected


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=30)
