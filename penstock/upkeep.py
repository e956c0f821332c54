"""The chores: what must be done again and again for the promises to hold. One list, one loop each.

    every   chore of each process
    0.25 s  write buffered log lines and sort what was measured, the event loop's lag too
    1 s     keep quiet streams alive with a comment; notice when the clock of the machine jumps
    1 s     check the health of providers whose turn it is
    5 s     renew this process's lease and note how far its calls have come; look at the leases of the others
    1 s     look after who has dialled in, here and elsewhere
    60 s    settle holds of its own that no call of it knows

    every   chore that one process does for all on the store
    5 s     settle what dead processes left
    60 s    settle holds past their latest end; empty expired lots; forget old answers; forget old turns with tools
    300 s   forget old responses, and the oldest of accounts that keep too much

The common chores are done by who has the lease `UPKEEP`. Whoever has not seen it renewed for `LEASE_MS`, or finds its
holder dead, takes it over. No clock is compared with a lease (`recovery.Sightings`).
A chore that fails is logged and tried again the next time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from penstock.clock import Clock
from penstock.db import journal, ledger, recovery, responses
from penstock.db.recovery import LEASE_MS, UPKEEP, Lease, Owner, Sightings
from penstock.db.slips import Slips
from penstock.db.store import Store
from penstock.db.tools import forget_turns
from penstock.errors import StoreUnavailable
from penstock.hub.hub import Hub
from penstock.log import FLUSH_S
from penstock.relay.hold import Holds
from penstock.relay.observe import Observer
from penstock.relay.relay import Relay

START_TRIES = 3  # at a store that does not answer, each as long as a look-up may take
JUMP_S = 1.0  # that a clock which is set right does not move in a second

_logger = logging.getLogger("penstock.upkeep")


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every `every_s` seconds."""

    name: str
    every_s: float
    do: Callable[[], Awaitable[None]]


class Upkeep:
    """Does the chores of one serving process, from `start` to `stop`."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        owner: str,
        holds: Holds,
        relay: Relay,
        observer: Observer,
        hub: Hub,
        quiet_s: float,
        check_providers: Callable[[], Awaitable[None]],
        response_bytes: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._owner = owner
        self._holds = holds
        self._relay = relay
        self._observer = observer
        self._quiet_s = quiet_s
        self._response_bytes = response_bytes
        self._owners_seen = Sightings(clock)
        self._duty_seen = Sightings(clock)
        self._unknown: set[str] = set()  # requests with a hold of ours that no call of ours knew at the last look
        self._epoch_s = self._read_epoch_s()
        self._tasks: list[asyncio.Task[None]] = []
        self.chores = [
            Chore("write the log", FLUSH_S, self._flush),
            Chore("keep streams alive", 1.0, self._keep_alive),
            Chore("watch the clock", 1.0, self._watch_clock),
            Chore("check providers", 1.0, check_providers),
            Chore("look after workers", 1.0, hub.tick),
            Chore("renew the lease", 5.0, self._renew),
            Chore("settle for dead processes", 5.0, self._common(self._bury_dead)),
            Chore("settle forgotten holds", 60.0, self._settle_forgotten),
            Chore("tidy the ledger", 60.0, self._common(self._tidy)),
            Chore("forget old responses", 300.0, self._common(self._forget_responses)),
        ]

    def __repr__(self) -> str:
        return f"Upkeep({', '.join(chore.name for chore in self.chores)})"

    async def start(self) -> None:
        """Register this process, settle what its predecessors left unless another sees to it, and begin."""
        now_ms = self._clock.now_ms()
        me = Owner(self._owner, host_identity(), os.getpid(), now_ms + LEASE_MS)
        await self._store.write(recovery.register(me, now_ms))
        await self._settle_at_first()
        if self._store.slips is not None:
            known = {owner.id for owner in await self._store.read(recovery.all_owners())}
            _open_slips(self._store.slips, known, now_ms)
        self._tasks = [asyncio.create_task(self._repeat(chore), name=chore.name) for chore in self.chores]

    async def _settle_at_first(self) -> None:
        """Settle what predecessors left. A database that is slow to answer is asked again; then it is left to the
        chore."""
        for _ in range(START_TRIES):
            try:
                await self._common(self._bury_dead)()
            except StoreUnavailable:
                self._forget_sightings()
                _logger.warning("the store does not answer yet; what dead processes left is not settled")
            else:
                return

    def _forget_sightings(self) -> None:
        """While the store was away nobody could be seen alive."""
        self._owners_seen.forget()
        self._duty_seen.forget()

    async def stop(self) -> None:
        """End the chores, settle what is still open, and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._store.settled()
            await self._store.write(recovery.bury(self._owner, self._clock.now_ms()))
        except StoreUnavailable:
            _logger.warning("the store is not there; another process will settle what is open here")
        self._observer.flush()

    async def _repeat(self, chore: Chore) -> None:
        while True:
            due_s = self._clock.monotonic() + chore.every_s
            await asyncio.sleep(chore.every_s)
            self._observer.lagged(self._clock.monotonic() - due_s)
            await self._try(chore.name, chore.do)

    async def _try(self, name: str, do: Callable[[], Awaitable[None]]) -> None:
        try:
            await do()
        except StoreUnavailable:
            self._forget_sightings()
            _logger.warning("%s: the store is not there", name)
        except Exception:
            _logger.exception("%s failed", name)

    async def _flush(self) -> None:
        self._observer.flush()

    async def _keep_alive(self) -> None:
        for stream in list(self._relay.streams):
            stream.keep_alive(self._quiet_s)

    def _read_epoch_s(self) -> float:
        """When the monotonic clock was at zero, by the wall clock: always the same, unless that one is set."""
        return self._clock.now_ms() / 1000 - self._clock.monotonic()

    async def _watch_clock(self) -> None:
        epoch_s = self._read_epoch_s()
        jumped_s, self._epoch_s = epoch_s - self._epoch_s, epoch_s
        if abs(jumped_s) >= JUMP_S:
            _logger.warning("the clock of this machine has jumped by %+.1f s", jumped_s)

    async def _renew(self) -> None:
        await self._store.write(recovery.renew(self._owner, self._holds.progress(), self._clock.now_ms()))

    def _common(self, do: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """A chore that is done for all: by this process when the common chores are its own to do."""

        async def do_on_duty() -> None:
            if await self._on_duty():
                await do()

        return do_on_duty

    async def _on_duty(self) -> bool:
        """Whether this process has the lease of the common chores. It keeps it, or takes it from one that is dead."""
        seen = await self._store.read(recovery.lease_named(UPKEEP))
        mine = seen is not None and seen.holder == self._owner
        if seen is not None and not mine and await self._is_held(seen):
            return False
        now_ms = self._clock.now_ms()
        taken = await self._store.write(recovery.take_lease(UPKEEP, self._owner, seen=seen, now_ms=now_ms))
        if taken and not mine:
            _logger.info("process %s (%d) does the common chores now", self._owner, os.getpid())
        return taken

    async def _is_held(self, lease: Lease) -> bool:
        """Whether another does the common chores. Every process that does not looks at all leases here."""
        ran_out = bool(self._duty_seen.silent({UPKEEP: lease}))
        alive = {owner.id for owner, is_dead in await self._look() if not is_dead}
        return lease.holder in alive and not ran_out

    async def _look(self) -> list[tuple[Owner, bool]]:
        """Every process on the store, and whether it is dead: it has fallen silent, or is seen to be gone."""
        here = host_identity()
        owners = await self._store.read(recovery.all_owners())
        silent = self._owners_seen.silent({owner.id: owner.lease_until_ms for owner in owners})
        return [(owner, owner.id in silent or is_gone(owner, here)) for owner in owners]

    async def _bury_dead(self) -> None:
        for owner, is_dead in await self._look():
            if is_dead and owner.id != self._owner:
                settled = await self._bury(owner)
                if settled is not None:
                    _logger.warning("process %s (%d) is gone; settled %d of its calls", owner.id, owner.pid, settled)

    async def _bury(self, owner: Owner) -> int | None:
        """Settle what a dead process left open; how many calls that were, or None if it was alive after all."""
        now_ms, slips = self._clock.now_ms(), self._store.slips
        gone = is_gone(owner, host_identity())  # asked first: from then on it leaves no more slips
        left = recovery.NO_SLIPS if slips is None else slips.left_by(owner.id)
        burial = recovery.bury(owner.id, now_ms, lease_until_ms=owner.lease_until_ms, slips=left)
        settled = await self._store.write(burial)
        if slips is not None and gone and settled is not None:
            slips.drop(owner.id)
        return settled

    async def _settle_forgotten(self) -> None:
        """Settle holds that were granted to nobody: their outcome was lost while the store went away. A call that is
        only just beginning or ending is not taken for one: nobody knew it at the look before either."""
        unknown = await self._store.read(recovery.requests_of(self._owner)) - self._holds.requests()
        forgotten, self._unknown = sorted(unknown & self._unknown), unknown
        if forgotten:
            settled = await self._store.write(recovery.settle_forgotten(forgotten, self._clock.now_ms()))
            _logger.warning("%d holds were known to no call; they are settled and under review", settled)

    async def _tidy(self) -> None:
        """Each for itself: one that fails keeps no other from being done."""
        await self._try("settle overdue holds", self._settle_overdue)
        await self._try("empty expired lots", self._expire_lots)
        await self._try("forget old answers", self._forget_answers)
        await self._try("forget old turns", self._forget_turns)

    async def _settle_overdue(self) -> None:
        overdue = await self._store.write(recovery.settle_overdue(self._clock.now_ms()))
        if overdue:
            _logger.error("%d holds were never closed: a defect; they are settled and under review", overdue)

    async def _expire_lots(self) -> None:
        while await self._store.write(journal.expire_lots(self._clock.now_ms())):
            pass

    async def _forget_answers(self) -> None:
        await self._store.write(ledger.forget_answers(self._clock.now_ms()))

    async def _forget_turns(self) -> None:
        await self._store.write(forget_turns(self._clock.now_ms()))

    async def _forget_responses(self) -> None:
        while await self._store.write(responses.forget(self._clock.now_ms(), self._response_bytes)):
            pass


def _open_slips(slips: Slips, known: set[str], now_ms: int) -> None:
    slips.tidy(known, now_ms / 1000)
    try:
        slips.open()
    except OSError as error:
        _logger.warning("no slips can be left, so answers wait for the disk: %s", error)


def host_identity() -> str:
    """This host as far as process ids go: two containers on one machine are two hosts."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()}/{file.read().strip()}/{namespace}"
    except OSError:
        return socket.gethostname()


def is_gone(owner: Owner, here: str) -> bool:
    """Whether a process is of this host and seen to be gone."""
    if owner.host != here:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process: it is there
        return False
    return False
