"""What the ledger may do, decided on values: the rules of holds, limits and settlement.

Books are the rows one transaction has loaded and locked: keys and lots. Decisions change them in memory, one after
the other, in the order in which requests came; the transaction then writes what changed. So "never check, then act"
holds for any number of requests in a group and any number of processes: nobody else can see or change these rows in
between. The schema's CHECK constraints (0 <= held <= remaining) stand behind as a second line.

    ask     -> Granted | Refused     a request wants money set aside
    more    -> Granted | Refused     a stream wants its hold extended
    settle  -> Settled               work has ended: collect what is owed, free the rest
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct

from penstock.money.limits import arrive
from penstock.money.prices import units_within, value

BOUNDLESS = 2**62
NO_LOTS: Sequence[Lot] = ()


class Refusal(StrEnum):
    """Why the ledger says no. Closed: every door renders each of these."""

    KEY_INVALID = "key_invalid"
    RATE_LIMITED = "rate_limited"
    KEY_LIMIT = "key_limit"
    NO_FUNDS = "no_funds"
    HELD = "held"
    GONE = "gone"


@dataclass(slots=True)
class Key:
    """What admission must know about a credential, fresh from its row."""

    id: str
    revoked: bool
    expires_ms: int | None
    per_minute: int
    limit_nano: int | None
    spent_nano: int
    held_nano: int
    tat_us: int
    changed: bool = False

    def alive(self, now_ms: int) -> bool:
        return not self.revoked and (self.expires_ms is None or now_ms < self.expires_ms)


@dataclass(slots=True)
class Lot:
    """An amount of one asset. `held` is the part that open holds have set aside.

    `changed` when either differs from the row, `spent` when `remaining` does.
    """

    id: str
    account: str
    lane: str
    asset: str
    remaining: int
    held: int
    expires_ms: int | None
    changed: bool = False
    spent: bool = False


class Part(Struct, frozen=True, gc=False):
    """The part of a hold, or of a charge, that one lot bears. `value` is in nano-USD."""

    lot: str
    amount: int
    value: int = 0


class Need(Struct, frozen=True, gc=False, array_like=True):
    """Who wants how much of what. `want` is the bound; `least` is the smallest amount that is of any use.

    A patient need is not cut down while other calls hold the money that would cover it in full: it is refused with
    HELD, to ask `again` once they have settled; that is still the same request and counts once against the rate limit.
    """

    account: str
    keys: tuple[str, ...]
    lane: str
    asset: str
    value_rate: int
    want: int
    least: int
    patient: bool = False
    again: bool = False


class Granted(Struct, frozen=True, gc=False):
    """Money set aside: at least `least`, at most `want`."""

    parts: tuple[Part, ...]
    amount: int


class Refused(Struct, frozen=True, gc=False):
    """Not a unit set aside. `wait_us` says when asking again may help; `available` is what could be had."""

    why: Refusal
    available: int = 0
    wait_us: int = 0


class Settled(Struct, frozen=True, gc=False):
    """What was collected, lot by lot, and what could not be."""

    charges: tuple[Part, ...]
    value: int
    uncollected: int


@dataclass(slots=True)
class Family:
    """A credential and those above it, as far as they were found. `whole` when all of them are there and alive."""

    keys: list[Key]
    whole: bool
    limited: bool

    def allowance(self, value_rate: int) -> tuple[int, int]:
        """Units that the spending limits allow, and those they allow besides what open holds may spend."""
        allowed = room = BOUNDLESS
        if self.limited:
            for key in self.keys:
                if key.limit_nano is not None:
                    unspent = key.limit_nano - key.spent_nano
                    allowed = min(allowed, units_within(max(0, unspent), value_rate))
                    room = min(room, units_within(max(0, unspent - key.held_nano), value_rate))
        return allowed, room


@dataclass(slots=True)
class Books:
    """The keys and lots of one transaction. A purse lists its lots in burn order: nearest expiry first, then oldest.

    Many needs of a group are of one credential or one account, so families and purses are put together once.
    """

    now_ms: int
    keys: dict[str, Key] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)
    purses: dict[tuple[str, str, str], list[Lot]] = field(default_factory=dict)
    families: dict[tuple[str, ...], Family] = field(default_factory=dict)

    def add(self, lot: Lot) -> None:
        """Enter a lot; call it in burn order. One whose time is over is no money any more."""
        self.lots[lot.id] = lot
        if lot.expires_ms is None or self.now_ms < lot.expires_ms:
            self.purses.setdefault((lot.account, lot.lane, lot.asset), []).append(lot)

    def ask(self, need: Need) -> Granted | Refused:
        """Set money aside for a new request, counting it against the rate limit of each of its keys."""
        return self.enter(need) or self.more(need)

    def enter(self, need: Need) -> Refused | None:
        """Check the keys of a new request and count it against their rate limits; the refusal, if there is one."""
        family = self.families.get(need.keys) or self._family(need.keys)
        if not family.whole:
            return Refused(Refusal.KEY_INVALID)
        if need.again:
            return None
        wait_us = self._arrive(family.keys)
        return Refused(Refusal.RATE_LIMITED, wait_us=wait_us) if wait_us else None

    def more(self, need: Need) -> Granted | Refused:
        """Set money aside, for a request under way too. A key revoked meanwhile does not cut that off; money does."""
        family = self.families.get(need.keys) or self._family(need.keys)
        lots = self.purses.get((need.account, need.lane, need.asset), NO_LOTS)
        allowed, room = family.allowance(need.value_rate) if family.limited else (BOUNDLESS, BOUNDLESS)
        owned = available = 0
        for lot in lots:
            owned += lot.remaining
            available += lot.remaining - lot.held
        amount, available = need.want, available if available < room else room
        if available < amount:
            if need.patient and amount <= owned and amount <= allowed:
                return Refused(Refusal.HELD, available)
            if available < need.least:
                return Refused(_shortage(need, allowed=allowed, owned=owned), available)
            amount = available
        return _set_aside(amount, need.value_rate, family.keys, lots)

    def settle(self, need: Need, parts: Iterable[Part], owed: int) -> Settled:
        """Collect `owed` units from the hold's `parts`, then from what is free, and never below zero.

        `need` says whose lots and keys they are; its amounts play no role.
        """
        family = self.families.get(need.keys) or self._family(need.keys)
        charges: dict[str, int] = {}
        collected = freed = 0
        for part in parts:
            freed += part.value
            if not part.amount:  # the empty part of a free call
                continue
            lot, due = self.lots[part.lot], owed - collected
            spent = part.amount if part.amount < due else due
            lot.held -= part.amount
            lot.remaining -= spent
            lot.changed = lot.spent = True
            charges[part.lot] = charges.get(part.lot, 0) + spent
            collected += spent
        for key in family.keys:
            key.held_nano -= freed
        if collected < owed:
            room = max(0, family.allowance(need.value_rate)[1] - collected)
            lots = self.purses.get((need.account, need.lane, need.asset), NO_LOTS)
            for lot, taken in _draw(lots, min(owed - collected, room)):
                lot.remaining -= taken
                lot.spent = True
                charges[lot.id] = charges.get(lot.id, 0) + taken
                collected += taken
        worth = value(collected, need.value_rate)
        for key in family.keys:
            key.spent_nano += worth
            key.changed = True
        return Settled(tuple([Part(lot, spent) for lot, spent in charges.items() if spent]), worth, owed - collected)

    def _family(self, ids: tuple[str, ...]) -> Family:
        keys = [self.keys[id] for id in ids if id in self.keys]
        whole = len(keys) == len(ids) and all(key.alive(self.now_ms) for key in keys)
        family = Family(keys, whole, any(key.limit_nano is not None for key in keys))
        self.families[ids] = family
        return family

    def _arrive(self, keys: list[Key]) -> int:
        """Count a request on each key; when one is over its rate count on none: microseconds to wait."""
        now_us, longest = self.now_ms * 1000, 0
        moves = []
        for key in keys:
            tat_us, wait_us = arrive(key.tat_us, now_us, key.per_minute)
            moves.append((key, tat_us))
            longest = wait_us if wait_us > longest else longest
        if not longest:
            for key, tat_us in moves:
                key.tat_us = tat_us
                key.changed = True
        return longest


def _set_aside(amount: int, value_rate: int, keys: list[Key], lots: Sequence[Lot]) -> Granted:
    parts: list[Part] = []
    worth = value(amount, value_rate)
    for lot, taken in _draw(lots, amount):
        lot.held += taken
        parts.append(Part(lot.id, taken, 0 if parts else worth))
    for key in keys:
        key.held_nano += worth
        key.changed = True
    return Granted(tuple(parts), amount)


def _draw(lots: Sequence[Lot], amount: int) -> list[tuple[Lot, int]]:
    """Lots and how much of each, in burn order, until `amount` of free money is found."""
    drawn = []
    for lot in lots:
        if amount <= 0:
            break
        free = lot.remaining - lot.held
        if free > 0:
            taken = free if free < amount else amount
            amount -= taken
            lot.changed = True
            drawn.append((lot, taken))
    return drawn


def _shortage(need: Need, *, allowed: int, owned: int) -> Refusal:
    if allowed < need.least:
        return Refusal.KEY_LIMIT
    return Refusal.HELD if owned >= need.least else Refusal.NO_FUNDS
