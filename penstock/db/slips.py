"""Slips: settlements that wait for the store, noted where the death of their process cannot undo them.

A settlement takes part in a group's commit, and that waits for the disk. The answer it belongs to need not: what is in
a file is there also when the process is killed, and whoever buries the process settles by it, exactly
(`recovery.bury`). Only a power cut can take a slip along; then the call comes under review, like one that broke off.

One file a process, `<database>-slips/<owner>`: a database file is used from one host, and so is what lies beside it. It
is mapped into memory, so a slip costs no call of the system, and consists of slots. A slot is used again once its
settlement is in the database; what is in it until then says nothing that is not so, for a request is settled once. A
slip is its size, its checksum, and the settlement as MessagePack, values without names; the checksum goes over the
names too, so that a version in which they are others does not take one for another. One that is too long for a slot, or
finds none, is not left, and its answer waits for the database.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from errno import ENOSPC
from mmap import mmap
from struct import Struct as Layout
from zlib import crc32

from msgspec import MsgspecError, msgpack

from penstock.db.ledger import Settlement
from penstock.db.records import KeptAnswer, UsageRecord
from penstock.money.books import Need

SLOT_BYTES = 2_048  # the usual slip takes 370
SLOTS = 512  # settlements on their way to the database at once; a few dozen are usual
FORGOTTEN_S = 24 * 3600.0  # a process that was taken for dead and is not has entered its name again by then

_HEAD = Layout("<II")  # size and CRC-32 of what follows
_MOST = SLOT_BYTES - _HEAD.size
_NAMES = crc32(repr([each.__struct_fields__ for each in (Settlement, Need, UsageRecord, KeptAnswer)]).encode())
_encode = msgpack.Encoder().encode
_decode = msgpack.Decoder(Settlement).decode


class Slip:
    """A settlement that has been noted. It is told when that is in the database, as a future would be, and its slot is
    free then; whatever became of it, there is nobody to tell."""

    __slots__ = ("_free", "_slot")

    def __init__(self, free: list[int], slot: int) -> None:
        self._free = free
        self._slot = slot

    def __repr__(self) -> str:
        return f"Slip({self._slot})"

    def done(self) -> bool:
        return False

    def set_result(self, _: object) -> None:
        self._free.append(self._slot)

    def set_exception(self, _: BaseException) -> None:
        raise AssertionError("a settlement is tried until it is written")


class Slips:
    """The slips of one process, and those that others have left in the same directory."""

    def __init__(self, directory: str, owner: str) -> None:
        self._directory = directory
        self._owner = owner
        self._slots: mmap | None = None
        self._free: list[int] = []  # where a slip may be put

    def __repr__(self) -> str:
        return f"Slips({self._owner}, {len(self._free)} slots free)"

    def open(self) -> None:
        """Make the file, all of it, for what is mapped must not be missing when the disk is full. OSError."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        file = os.open(self._path(self._owner), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.write(file, bytes(SLOTS * SLOT_BYTES)) < SLOTS * SLOT_BYTES:
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            os.fsync(file)
            self._slots = mmap(file, SLOTS * SLOT_BYTES)
        finally:
            os.close(file)
        self._free = [slot * SLOT_BYTES for slot in reversed(range(SLOTS))]

    def leave(self, settlement: Settlement) -> Slip | None:
        """Note a settlement. None when it could not be noted."""
        if not self._free or self._slots is None:
            return None
        slip = _encode(settlement)
        size = len(slip)
        if size > _MOST:
            return None
        slot = self._free.pop()
        self._slots[slot : slot + _HEAD.size + size] = _HEAD.pack(size, crc32(slip, _NAMES)) + slip
        return Slip(self._free, slot)

    def left_by(self, owner: str) -> dict[str, Settlement]:
        """What a process has left, by request: settled long ago, most of it."""
        try:
            with open(self._path(owner), "rb") as file:
                slots = file.read(SLOTS * SLOT_BYTES)
        except OSError:
            return {}
        found = (_read(slots, at) for at in range(0, len(slots), SLOT_BYTES))
        return {each.request_id: each for each in found if each is not None}

    def drop(self, owner: str) -> None:
        """All that a process left has been settled."""
        with suppress(OSError):
            os.unlink(self._path(owner))

    def tidy(self, known: Collection[str], now_s: float) -> None:
        """Drop what processes have left that nobody knows any more."""
        with suppress(OSError):
            for entry in os.scandir(self._directory):
                if entry.name not in known and entry.stat().st_mtime < now_s - FORGOTTEN_S:
                    self.drop(entry.name)

    def close(self) -> None:
        """Everything has been written: nothing is left."""
        if self._slots is not None:
            self._slots.close()
            self._slots = None
            self.drop(self._owner)

    def _path(self, owner: str) -> str:
        return os.path.join(self._directory, owner)


def _read(slots: bytes, at: int) -> Settlement | None:
    """The slip in a slot; None when there is none, or not a whole one."""
    begin = at + _HEAD.size
    if begin >= len(slots):
        return None
    size, checksum = _HEAD.unpack_from(slots, at)
    slip = slots[begin : min(begin + size, at + SLOT_BYTES)]
    if not size or len(slip) != size or crc32(slip, _NAMES) != checksum:
        return None
    try:
        return _decode(slip)
    except MsgspecError:  # of another version
        return None
