"""The hub of a process: who has dialled in, here or at another process on the same store, and who gets a job.

A job goes to the seat with the fewest jobs among those that may have it and have room; what is connected here is
preferred. When none has room the job waits, for as long as its caller is patient. A seat that says it is overloaded is
no failure: somebody else is asked. A seat that dies before a byte of its answer came is none either, a few times,
unless the job may be done once only and was begun.

Who may use a peer: the account that its key belongs to, a user's personal one for a user's key. Only a key with the
scope `shared`, which the operator alone can mint, serves everybody.

Nothing here knows what a job is about, HTTP or WebSocket.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import msgspec

from penstock.clock import Clock
from penstock.db.credentials import still_good
from penstock.db.recovery import Sightings
from penstock.db.store import Store
from penstock.db.workers import TOLD_TO_LEAVE, WorkerRow, note_workers, workers_elsewhere
from penstock.errors import StoreUnavailable, UpstreamBusy, UpstreamFailed, UpstreamUnavailable
from penstock.hub.elsewhere import Elsewhere, Reach
from penstock.hub.messages import NonsenseError, Offer
from penstock.hub.peer import POLICY, RESTART, Line, Peer
from penstock.hub.roll import Roll, Waiting
from penstock.hub.seats import Left, Lost, Overloaded, PeerKind, Request, Seat, Unreachable, Wanted
from penstock.ids import IdMaker
from penstock.ports import Answer, Timeouts

MOST_PEERS = 4096  # of one process; each costs a connection and a row
MOST_PER_ACCOUNT = 512  # an eighth of them
MOST_PER_KEY = 256
MOST_OFFERED = 4 * 2**20  # bytes, of an account's peers together: they are kept, and tools are told to models
MOST_LOSSES = 3  # of one job: after that it is more likely the job that kills
RETURN_S = 1.5  # for a peer that has just left to be back: it connects anew when a process is replaced
RETURN_TOLD_S = 5.0  # for one whose process told it to connect anew: it will, however busy the machine is
LOOK_S = 0.25  # between looks, while jobs wait, at what happens elsewhere and at who may be asked again
SHARE_S = 1.0  # between offers of one peer that are written down at once
MOST_SHARED = 64  # offers written down in one go: of 256 KiB each, they are far from what an engine takes
BEAT_S = 5.0  # a third of what makes a row nobody's
LARGEST_RESULT = 16 * 2**20  # bytes of an answer that is asked for as a whole

_logger = logging.getLogger("penstock.hub")


class Hub:
    """See above. `address` is where other processes can ask this one for its peers; until it has one, none can."""

    def __init__(self, *, store: Store, clock: Clock, ids: IdMaker, owner: str, reach: Reach) -> None:
        self.address: str | None = None
        self._store = store
        self._clock = clock
        self._ids = ids
        self.owner = owner
        self._reach = reach
        self._peers: dict[str, Peer] = {}
        self._elsewhere: dict[str, Elsewhere] = {}
        self._roll: Roll[Peer] = Roll()  # the same by whom they may serve
        self._roll_elsewhere: Roll[Elsewhere] = Roll()
        self._seen = Sightings(clock)
        self._departed: dict[str, Left] = {}  # by id
        self._waiting = Waiting()
        self._looking: asyncio.Task[None] | None = None
        self._written: dict[str, tuple[WorkerRow, float]] = {}
        self._read_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._sharing: asyncio.Task[None] | None = None
        self._share_again = False
        self._watching = False

    def __repr__(self) -> str:
        return f"Hub({len(self._peers)} here, {len(self._elsewhere)} elsewhere, {len(self._waiting)} jobs wait)"

    # Who is there.

    def join(self, line: Line, *, kind: PeerKind, key: str, account: str, shared: bool) -> Peer:
        """Somebody has connected, and may be given jobs when it has said hello and others can know of it."""
        peer = Peer(
            line,
            self._clock,
            id=self._ids.new("wkr" if kind == "worker" else "tlw"),
            kind=kind,
            key=key,
            account=account,
            shared=shared,
            changed=self._changed,
        )
        self._peers[peer.id] = peer
        self._roll.enter(peer)
        return peer

    def full_for(self, key: str, account: str) -> bool:
        """Whether there is no room for another connection with this key, which belongs to this account."""
        peers = self._peers.values()
        return (
            len(peers) >= MOST_PEERS
            or sum(each.account == account for each in peers) >= MOST_PER_ACCOUNT
            or sum(each.key == key for each in peers) >= MOST_PER_KEY
        )

    def here(self, peer: str) -> Peer | None:
        """The peer of that id, when it is connected to this process."""
        found = self._peers.get(peer)
        if found is None or not found.introduced:
            return None
        found.admit()  # who asks for it has read its row, maybe before we hear that it is written
        return found

    def all(self, kind: PeerKind) -> list[Seat]:
        """Everybody of that kind, wherever it is connected."""
        return [each for each in self._all() if each.kind == kind]

    def seats(self, kind: PeerKind, account: str) -> list[Seat]:
        """Everybody of that kind whom the account may use, wherever it is connected."""
        return list(self._seats(kind, account))

    def knows(self, wanted: Wanted) -> bool:
        """Whether somebody may have such a job who is there, is about to be, or was a moment ago and may be back."""
        coming = (each for each in self._roll.of(wanted.kind, wanted.account) if each.introduced and not each.welcome)
        there = self._seats(wanted.kind, wanted.account)
        return any(wanted.may(each) for each in chain[Seat | Left](there, coming, self._just_left()))

    @property
    def has_looked(self) -> bool:
        """Whether it is known who is connected elsewhere."""
        return self._read_s > float("-inf")

    @property
    def deserted(self) -> bool:
        """Whether nobody at all is connected, here or elsewhere."""
        return not (self._peers or self._elsewhere)

    def connected(self, kind: PeerKind) -> int:
        """How many of that kind are connected to this process."""
        return sum(each.kind == kind and each.welcome for each in self._peers.values())

    def offers(self, kind: PeerKind) -> list[Offer]:
        """What everybody of that kind offers, for whomever."""
        return [each.offer for each in self._all() if each.kind == kind]

    def _seats(self, kind: PeerKind, account: str) -> Iterator[Seat]:
        yield from (each for each in self._roll.of(kind, account) if each.welcome)
        yield from (each for each in self._roll_elsewhere.of(kind, account) if not each.silent)

    def _all(self) -> Iterator[Seat]:
        yield from (each for each in self._peers.values() if each.welcome)
        yield from (each for each in self._elsewhere.values() if not each.silent)

    def _just_left(self) -> Iterator[Left]:
        now_s = self._clock.monotonic()
        return (each for each in self._departed.values() if now_s < each.until_s)

    def _departs(self, seat: Seat) -> None:
        """It has left, or a job has found it gone."""
        until_s = self._clock.monotonic() + (RETURN_TOLD_S if seat.leaving else RETURN_S)
        self._departed[seat.id] = Left(seat.kind, seat.account, seat.shared, seat.offer.names(), until_s)

    # Giving jobs.

    async def ask(self, wanted: Wanted, request: Request, within_s: float) -> bytes:
        """Give a job and wait for the whole answer. UpstreamFailed when its status is not 200, UpstreamUnavailable,
        UpstreamTimeout."""
        limits = Timeouts(first_byte_s=within_s, idle_s=within_s, total_s=within_s)
        answer = await self.open(wanted, request, limits, patience_s=within_s)
        try:
            body = await answer.read(LARGEST_RESULT)
            if answer.status != 200:
                raise UpstreamFailed(f"The worker answered with status {answer.status}.", began=True)
        finally:
            answer.close()
        return body

    async def open(self, wanted: Wanted, request: Request, limits: Timeouts, *, patience_s: float) -> Answer:
        """Give a job to somebody; return when the first piece of the answer (or its end) is here.

        UpstreamUnavailable when nobody may have it, none has room for `patience_s`, or they die of it; UpstreamFailed
        when one fails that had begun what may be done once; UpstreamTimeout.
        """
        until_s = self._clock.monotonic() + patience_s
        losses = 0
        while True:
            seat = self._best(wanted) or await self._next(wanted, until_s)
            try:
                return await seat.open(request, limits)
            except Overloaded:
                _returned(request)
                _logger.info("%s is overloaded; the job goes to somebody else", seat.id)
                if self._clock.monotonic() >= until_s:
                    raise UpstreamBusy("Every worker is overloaded.") from None
            except Lost as lost:
                _returned(request)
                losses += 1
                if isinstance(lost, Unreachable):
                    self._departs(seat)
                _logger.warning("%s has lost a job before it began to answer: %s", seat.id, lost)
                if lost.begun and request.once:
                    raise UpstreamFailed(str(lost)) from None
                if losses == MOST_LOSSES:
                    raise UpstreamUnavailable(str(lost)) from None

    def _best(self, wanted: Wanted) -> Seat | None:
        able = [each for each in self._seats(wanted.kind, wanted.account) if wanted.may(each) and each.room]
        return min(able, key=lambda each: (each.outstanding, isinstance(each, Elsewhere)), default=None)

    async def _next(self, wanted: Wanted, until_s: float) -> Seat:
        """Wait until somebody has room. UpstreamUnavailable."""
        if not self.knows(wanted):
            await self.refresh()
        with self._waiting.waits(wanted) as turn:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look_while_jobs_wait())
            while (seat := self._best(wanted)) is None:
                if not self.knows(wanted):
                    raise UpstreamBusy("No worker for this is connected.")
                left_s = until_s - self._clock.monotonic()
                if left_s <= 0:
                    raise UpstreamBusy("Every worker is busy.")
                await turn.comes(left_s)
            turn.taken = seat
        return seat

    async def _look_while_jobs_wait(self) -> None:
        """One look for all of them, again and again: what changes here wakes them by itself."""
        try:
            while self._waiting:
                await asyncio.sleep(LOOK_S)
                if self._clock.monotonic() - self._read_s > LOOK_S:
                    await self.refresh()
                self._look()
        finally:
            self._looking = None

    def _look(self) -> None:
        """Wake the jobs that somebody has room for by now, and those that nobody may do any more."""
        for wanted in self._waiting.wishes():
            if not self.knows(wanted):
                self._waiting.dismiss(wanted)
        for seat in self._all():
            self._waiting.call(seat)

    def _changed(self, peer: Peer) -> None:
        """Somebody has come, gone, or has more or less to do."""
        if peer.gone and self._peers.pop(peer.id, None) is not None:
            self._roll.strike(peer)
            if peer.welcome:
                self._departs(peer)
        if peer.welcome:
            self._waiting.call(peer)
        if self.address is None and peer.introduced:
            peer.admit()  # nobody else can know of it
        known = self._written.get(peer.id)
        if peer.gone or known is None or known[0].draining != _leaves(peer) or self._offers_anew(peer, *known):
            self.share_soon()

    def _offers_anew(self, peer: Peer, row: WorkerRow, written_s: float) -> bool:
        """Whether it offers something else, and not again and again: that waits for the next tick, as a write costs us
        more than a message costs the peer."""
        return self._clock.monotonic() - written_s > SHARE_S and row.offer != _text(peer.offer)

    # Telling other processes, and hearing from them.

    def watch(self) -> None:
        """Look at other processes' peers from now on, though there are none here yet."""
        self._watching = True

    async def tick(self) -> None:
        """Once a second: hang up on the silent, and on those whose key has ended; tell and hear what is new."""
        now_s = self._clock.monotonic()
        for peer in list(self._peers.values()):
            peer.look(now_s)
        self._departed = {id: left for id, left in self._departed.items() if now_s < left.until_s}
        self._hang_up_on_who_offers_too_much()
        if self._peers:
            await self._check_keys()
        if self._peers or self._written:
            await self.share()
        if self._watching or self._peers:
            await self.refresh()

    async def refresh(self) -> None:
        """Read who is connected elsewhere. Callers at the same time share one look."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._has_read)
        await asyncio.wait([self._reading])

    def share_soon(self) -> None:
        """Write down how things stand, without anybody waiting for it."""
        self._share_again = True
        if self._sharing is None and self.address is not None:
            self._sharing = asyncio.create_task(self._share_while_new())

    async def share(self) -> None:
        """Write down how things stand here, as far as that is new. StoreUnavailable."""
        if self.address is None:
            return
        now_s = self._clock.monotonic()
        news = [row for row in map(self._row, self._peers.values()) if row is not None and self._is_news(row, now_s)]
        present, later = news[:MOST_SHARED], news[MOST_SHARED:]
        gone = [id for id in self._written if id not in self._peers]
        if present or gone:
            await self._store.write(note_workers(present, gone))
        for row in present:
            self._written[row.id] = row, now_s
            if (peer := self._peers.get(row.id)) is not None:
                peer.admit()
        for id in gone:
            self._written.pop(id, None)
        if later:
            self.share_soon()

    async def close(self) -> None:
        """Hang up on everybody, and stop."""
        for peer in list(self._peers.values()):
            peer.close(RESTART, "the gateway ends")
        for task in (self._sharing, self._reading, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await self._reach.close()

    def _hang_up_on_who_offers_too_much(self) -> None:
        offered: Counter[str] = Counter()
        for peer in list(self._peers.values()):
            offered[peer.account] += peer.offered
            if offered[peer.account] > MOST_OFFERED:
                offered[peer.account] -= peer.offered
                peer.close(POLICY, f"the workers of this account offer more than {MOST_OFFERED} bytes")

    async def _check_keys(self) -> None:
        keys = {peer.key for peer in self._peers.values()}
        good = await self._store.read(still_good(keys, self._clock.now_ms()))
        for peer in list(self._peers.values()):
            if peer.key in keys - good:
                peer.close(POLICY, "the key is revoked or expired")

    async def _share_while_new(self) -> None:
        try:
            while self._share_again:
                self._share_again = False
                await self.share()
        except StoreUnavailable:
            pass  # the next tick tries again
        except Exception:
            _logger.exception("who is connected here could not be written down")
        finally:
            self._sharing = None

    def _row(self, peer: Peer) -> WorkerRow | None:
        if not peer.introduced or self.address is None:
            return None
        now_ms = self._clock.now_ms()
        known = self._written.get(peer.id)
        return WorkerRow(
            id=peer.id,
            owner_id=self.owner,
            kind=peer.kind,
            credential_id=peer.key,
            account_id=peer.account,
            shared=int(peer.shared),
            address=self.address,
            offer=_text(peer.offer),
            outstanding=peer.outstanding,
            draining=_leaves(peer),
            beat=known[0].beat + 1 if known else 0,
            connected_ms=known[0].connected_ms if known else now_ms,
        )

    def _is_news(self, row: WorkerRow, now_s: float) -> bool:
        known = self._written.get(row.id)
        return known is None or now_s - known[1] > BEAT_S or replace(known[0], beat=row.beat) != row

    async def _read(self) -> None:
        rows = await self._store.read(workers_elsewhere(self.owner))
        self._read_s = self._clock.monotonic()
        silent = self._seen.silent({row.id: row.beat for row in rows})
        before, self._elsewhere = self._elsewhere, {}
        for row in rows:
            try:
                seat = before.get(row.id) or Elsewhere(row, self._reach, self._clock)
                seat.update(row, silent=row.id in silent)
            except NonsenseError as nonsense:
                _logger.warning("%s at %s is passed over: %s", row.id, row.address, nonsense)
                continue
            before.pop(row.id, None)
            self._elsewhere[row.id] = seat
            self._roll_elsewhere.enter(seat)
            self._waiting.call(seat)
        for seat in before.values():
            self._roll_elsewhere.strike(seat)
            if not seat.silent:
                self._departs(seat)

    def _has_read(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled() and task.exception() is not None:
            self._seen.forget()  # the store was away; what was known before is still the best there is
            _logger.warning("who is connected elsewhere cannot be read: %s", task.exception())


def _returned(request: Request) -> None:
    if request.returned is not None:
        request.returned()


def _leaves(peer: Peer) -> int:
    return TOLD_TO_LEAVE if peer.leaving else int(peer.draining)


def _text(offer: Offer) -> str:
    return msgspec.json.encode(offer).decode()
