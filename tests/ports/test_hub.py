"""The hub by itself: peers whose line is a list of what they were told, a clock set by hand, and a real store."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.db.workers import note_workers, workers_elsewhere
from penstock.errors import InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from penstock.hub.hub import MOST_OFFERED, MOST_PER_ACCOUNT, Hub
from penstock.hub.messages import (
    DEAD_S,
    HEARTBEAT_S,
    HELLO_S,
    WINDOW_BYTES,
    ModelOffer,
    NonsenseError,
    Offer,
    encode,
    piece,
)
from penstock.hub.peer import Peer
from penstock.hub.roll import MOST_WAITING_EACH, Turn, Waiting
from penstock.hub.seats import Request, Unreachable, Wanted
from penstock.operations.office import Office
from penstock.ports import Answer, Timeouts
from penstock.providers.connected_tools import ConnectedTools
from penstock.providers.other_process import OtherProcesses
from tests.ledger import HandClock
from tests.stories.caller import eventually

WANTED = Wanted("worker", "acc_ada", "mine")
JOB = Request("chat/completions", b"{}")
QUICK = Timeouts(first_byte_s=0.05, idle_s=0.05)
EASY = Timeouts()


class Told:
    """A line: what the peer was told, and how it was hung up on."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.frames: list[bytes] = []
        self.code: int | None = None
        self.reason = ""

    def text(self, data: bytes) -> None:
        self.messages.append(json.loads(data))

    def binary(self, data: bytes) -> None:
        self.frames.append(data)

    async def drained(self) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason

    def types(self) -> list[str]:
        return [each["type"] for each in self.messages]

    async def job(self, number: int) -> None:
        """Wait for that job."""

        async def look() -> bool:
            return any(each["type"] == "job" and each["job"] == number for each in self.messages)

        await eventually(look)


class Away:
    """A way to other processes that finds nobody."""

    def __init__(self) -> None:
        self.asked = 0

    async def open(self, address: str, peer: str, request: Request, limits: Timeouts) -> Answer:
        self.asked += 1
        raise Unreachable("It is not connected here.")

    async def was_asked(self) -> bool:
        return self.asked > 0

    async def close(self) -> None:
        pass


class Some:
    """A hub and its peers."""

    def __init__(self, hub: Hub, clock: HandClock) -> None:
        self.hub = hub
        self.clock = clock

    def connect(
        self, *, slots: int = 2, key: str = "key_none", line: Told | None = None, account: str = "acc_ada"
    ) -> tuple[Peer, Told]:
        line = line or Told()
        peer = self.hub.join(line, kind="worker", key=key, account=account, shared=False)
        offer = {"type": "offer", "slots": slots, "models": [{"id": "mine"}]}
        peer.said(json.dumps({"type": "hello", "version": 1, "offer": offer}).encode())
        return peer, line

    def open(self, limits: Timeouts = EASY, patience_s: float = 60) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.hub.open(WANTED, JOB, limits, patience_s=patience_s))


def say(peer: Peer, **message: Any) -> None:
    peer.said(json.dumps(message).encode())


def answers(peer: Peer, number: int, body: bytes = b"done") -> None:
    """The whole answer to a job."""
    say(peer, type="accepted", job=number)
    say(peer, type="head", job=number, status=200)
    peer.sent(piece(number, body))
    say(peer, type="end", job=number)


@pytest.fixture
async def some(office: Office) -> AsyncIterator[Some]:
    clock = HandClock()
    hub = Hub(store=office.store, clock=clock, ids=office.ids, owner="own_here", reach=OtherProcesses("secret"))
    yield Some(hub, clock)
    await hub.close()


async def test_a_job_goes_to_who_has_least_to_do(some: Some) -> None:
    (one, first), (two, second) = some.connect(), some.connect()
    jobs = [some.open() for _ in range(4)]
    await first.job(2)
    await second.job(2)
    assert (one.room, two.room) == (0, 0)
    for peer in (one, two):
        answers(peer, 1)
        answers(peer, 2)
    assert [await (await job).read(100) for job in jobs] == [b"done"] * 4
    assert (one.room, two.room) == (2, 2)


async def test_who_is_silent_for_45_seconds_is_dead_and_its_job_is_given_to_another(some: Some) -> None:
    silent, line = some.connect()
    job = some.open()
    await line.job(1)
    some.clock.seconds += DEAD_S
    silent.look(some.clock.seconds)
    assert not silent.gone
    other, heir = some.connect()
    some.clock.seconds += 0.1
    other.said(encode({"type": "heartbeat"}))
    for peer in (silent, other):
        peer.look(some.clock.seconds)
    assert (line.code, heir.code, silent.gone) == (1008, None, True)
    await heir.job(1)
    answers(other, 1)
    assert await (await job).read(100) == b"done"


async def test_a_heartbeat_every_ten_seconds_keeps_it_alive_and_is_answered(some: Some) -> None:
    peer, line = some.connect()
    for _ in range(10):
        some.clock.seconds += HEARTBEAT_S
        say(peer, type="heartbeat")
        peer.look(some.clock.seconds)
    assert line.code is None
    assert line.types() == ["welcome", *["heartbeat"] * 10]


async def test_who_does_not_say_hello_is_not_waited_for(some: Some) -> None:
    line = Told()
    peer = some.hub.join(line, kind="worker", key="key_none", account="acc_ada", shared=True)
    assert some.hub.seats("worker", "acc_ada") == []
    some.clock.seconds += HELLO_S + 0.1
    peer.look(some.clock.seconds)
    assert line.code == 1008


async def test_a_job_that_kills_three_workers_is_not_given_to_a_fourth(some: Some) -> None:
    peers = [some.connect(slots=1) for _ in range(4)]
    job = some.open()
    for peer, line in peers[:3]:
        await line.job(1)
        peer.lost()
    with pytest.raises(UpstreamUnavailable, match="has gone"):
        await job
    assert "job" not in peers[3][1].types()


@pytest.mark.parametrize("dies", [True, False], ids=["it dies", "it says so"])
@pytest.mark.parametrize(("once", "accepted", "again"), [(True, True, 0), (True, False, 1), (False, True, 1)])
async def test_what_may_be_done_once_is_given_to_nobody_else_after_it_was_accepted(
    dies: bool, once: bool, accepted: bool, again: int, some: Some
) -> None:
    peer, line = some.connect(slots=1)
    job = asyncio.create_task(some.hub.open(WANTED, replace(JOB, once=once), EASY, patience_s=60))
    await line.job(1)
    other, heir = some.connect(slots=1)
    if accepted:
        say(peer, type="accepted", job=1)
    if dies:
        peer.lost()
    else:
        say(peer, type="error", job=1, message="It broke.")
    if again:
        await heir.job(1)
        answers(other, 1)
        assert await (await job).read(100) == b"done"
        return
    with pytest.raises(UpstreamFailed):
        await job
    assert heir.types() == ["welcome"]


async def test_a_job_is_sent_when_a_worker_has_accepted_it_and_not_when_it_has_no_room(some: Some) -> None:
    sent: list[int] = []
    (one, first), (two, second) = some.connect(slots=1), some.connect(slots=1)
    request = replace(JOB, sent=lambda: sent.append(1))
    job = asyncio.create_task(some.hub.open(WANTED, request, EASY, patience_s=60))
    await first.job(1)
    say(one, type="overloaded", job=1)
    await second.job(1)
    assert sent == []
    say(two, type="accepted", job=1)
    assert sent == [1]
    answers(two, 1)
    assert (await (await job).read(100), sent) == (b"done", [1])


async def test_a_job_whose_first_worker_is_not_to_be_reached_is_sent_when_another_accepts_it(
    some: Some, office: Office
) -> None:
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=Away())
    some.hub.address = "127.0.0.1:9"
    some.connect()
    await some.hub.share()
    await other.refresh()
    sent: list[int] = []
    request = replace(JOB, sent=lambda: sent.append(1))
    job = asyncio.create_task(other.open(WANTED, request, EASY, patience_s=60))
    peer, line = Some(other, some.clock).connect()
    await line.job(1)
    assert sent == []
    answers(peer, 1)
    assert (await (await job).read(100), sent) == (b"done", [1])
    await other.close()


@pytest.mark.parametrize("said", ["nothing", "the head", "a piece"])
async def test_a_process_that_stands_still_is_waited_for_no_longer_than_the_job_may_take(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.providers.other_process.MARGIN_S", 0.0)
    head = b"HTTP/1.1 200 OK\r\nx-penstock-job: answer\r\ncontent-length: 100\r\n\r\n"

    over = asyncio.Event()

    async def stands_still(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write({"nothing": b"", "the head": head, "a piece": head + b"half"}[said])
        await reader.read()
        writer.close()
        over.set()

    server = await asyncio.start_server(stands_still, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    others = OtherProcesses("secret")
    limits = Timeouts(first_byte_s=1, idle_s=0.05)

    async def ask() -> bytes:
        return await (await others.open(f"{host}:{port}", "wkr_1", Request("p", b""), limits)).read(100)

    with pytest.raises(UpstreamTimeout):
        await ask()
    await over.wait()
    await others.close()
    server.close()


async def test_arguments_that_are_too_deep_to_be_told_are_a_mistake_of_who_gives_them(some: Some) -> None:
    peer = some.hub.join(Told(), kind="tools_worker", key="key_none", account="acc_ada", shared=False)
    say(peer, type="hello", version=1, offer={"type": "offer", "tools": [{"name": "t"}]})
    deep: list[Any] = []
    for _ in range(2_000):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="too deep"):
        await ConnectedTools(some.hub).execute("acc_ada", "t", {"x": deep}, within_s=1)


async def test_a_row_that_cannot_be_read_hides_nobody_elses(some: Some, office: Office) -> None:
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=Away())
    some.hub.address = "127.0.0.1:9"
    (odd, _), (sound, _) = some.connect(), some.connect()
    await some.hub.share()
    row = next(each for each in await office.store.read(workers_elsewhere("own_there")) if each.id == odd.id)
    await office.store.write(note_workers([replace(row, offer='{"type": "newer"}')], []))
    await other.refresh()
    assert [seat.id for seat in other.seats("worker", "acc_ada")] == [sound.id]
    await other.close()


async def test_who_does_not_read_a_job_is_not_waited_for_beyond_the_jobs_own_time(some: Some) -> None:
    class Deaf(Told):
        async def drained(self) -> None:
            await asyncio.Event().wait()

    some.connect(line=Deaf())
    with pytest.raises(UpstreamTimeout):
        await some.open(Timeouts(total_s=0.05))


async def test_what_breaks_off_after_it_began_is_a_failure_that_began(some: Some) -> None:
    peer, line = some.connect()
    job = some.open()
    await line.job(1)
    say(peer, type="head", job=1, status=200)
    peer.sent(piece(1, b"half"))
    answer = await job
    pieces = aiter(answer)
    assert await anext(pieces) == b"half"
    say(peer, type="error", job=1, message="It broke.")
    with pytest.raises(UpstreamFailed, match="It broke") as failure:
        await anext(pieces)
    assert failure.value.began
    answer.close()
    assert "cancel" not in line.types()


async def test_a_worker_that_falls_silent_in_a_job_is_told_to_stop(some: Some) -> None:
    peer, line = some.connect()
    job = some.open(QUICK)
    await line.job(1)
    say(peer, type="accepted", job=1)
    with pytest.raises(UpstreamTimeout):
        await job
    late = some.open(QUICK)
    await line.job(2)
    say(peer, type="head", job=2, status=200)
    peer.sent(piece(2, b"half"))
    with pytest.raises(UpstreamTimeout) as failure:
        await (await late).read(100)
    assert failure.value.began
    assert line.types()[-4:] == ["job", "cancel", "job", "cancel"]
    assert peer.outstanding == 0


async def test_more_may_be_sent_as_it_is_taken_and_no_byte_more(some: Some) -> None:
    peer, line = some.connect()
    job = some.open()
    await line.job(1)
    say(peer, type="head", job=1, status=200)
    peer.sent(piece(1, b"x" * WINDOW_BYTES))
    answer = await job
    pieces = aiter(answer)
    assert len(await anext(pieces)) == WINDOW_BYTES
    assert line.messages[-1] == {"type": "more", "job": 1, "bytes": WINDOW_BYTES}
    peer.sent(piece(1, b"x" * WINDOW_BYTES))
    with pytest.raises(NonsenseError):
        peer.sent(piece(1, b"x"))
    answer.close()


async def test_who_leaves_for_another_process_is_waited_for_a_moment(some: Some) -> None:
    peer, _ = some.connect()
    peer.lost()
    job = some.open()
    await asyncio.sleep(0)
    assert some.hub.knows(WANTED)
    back, line = some.connect()
    await line.job(1)
    answers(back, 1)
    assert await (await job).read(100) == b"done"
    back.lost()
    some.clock.seconds += 2
    assert not some.hub.knows(WANTED)
    with pytest.raises(UpstreamUnavailable, match="No worker"):
        await some.open()


async def test_others_know_of_it_until_its_row_stands_still(some: Some, office: Office) -> None:
    clock = HandClock()
    other = Hub(store=office.store, clock=clock, ids=office.ids, owner="own_there", reach=OtherProcesses("secret"))
    some.hub.address = "127.0.0.1:9"
    peer, _ = some.connect()
    await some.hub.share()
    for _ in range(3):
        await other.refresh()
        assert [seat.id for seat in other.seats("worker", "acc_ada")] == [peer.id]
        assert other.seats("worker", "acc_bob") == []
        clock.seconds += 10
        some.clock.seconds += 10
        await some.hub.share()
    for _ in range(2):
        await other.refresh()
        clock.seconds += 15
    await other.refresh()
    assert other.seats("worker", "acc_ada") == []
    peer.lost()
    await some.hub.share()
    await other.refresh()
    assert other.offers("worker") == []
    await other.close()


async def test_it_is_welcome_when_others_can_know_of_it(some: Some, office: Office) -> None:
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=OtherProcesses("secret"))
    some.hub.address = "127.0.0.1:9"
    peer, line = some.connect()
    assert (line.types(), some.hub.seats("worker", "acc_ada")) == ([], [])

    async def welcome() -> bool:
        return line.types() == ["welcome"]

    await eventually(welcome)
    await other.refresh()
    assert [seat.id for seat in other.seats("worker", "acc_ada")] == [peer.id]
    assert [seat.id for seat in some.hub.seats("worker", "acc_ada")] == [peer.id]
    await other.close()


async def test_a_job_waits_for_who_has_said_hello_and_is_not_welcome_yet(some: Some) -> None:
    some.hub.address = "127.0.0.1:9"
    job = some.open()
    peer, line = some.connect()
    await line.job(1)
    answers(peer, 1)
    assert await (await job).read(100) == b"done"
    assert line.types() == ["welcome", "job"]


async def test_many_who_come_at_once_are_written_down_and_welcome_a_few_at_a_time(
    some: Some, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.hub.hub.MOST_SHARED", 2)
    some.hub.address = "127.0.0.1:9"
    lines = [some.connect()[1] for _ in range(5)]

    async def all_welcome() -> bool:
        return [line.types() for line in lines] == [["welcome"]] * 5

    await eventually(all_welcome)
    assert len(await office.store.read(workers_elsewhere("own_there"))) == 5


async def test_who_is_asked_for_by_a_process_that_has_read_its_row_is_welcome(some: Some) -> None:
    some.hub.address = "127.0.0.1:9"
    unknown = some.hub.join(Told(), kind="worker", key="key_none", account="acc_ada", shared=False)
    assert some.hub.here(unknown.id) is None
    peer, line = some.connect()
    assert some.hub.here(peer.id) is peer
    await some.hub.share()
    assert line.types() == ["welcome"]


async def test_who_is_not_welcome_yet_when_the_process_retires_is_hung_up_on(some: Some, office: Office) -> None:
    some.hub.address = "127.0.0.1:9"
    peer, line = some.connect()
    peer.leave()
    await some.hub.share()
    assert (line.types(), line.code, peer.gone) == ([], 1012, True)
    assert await office.store.read(workers_elsewhere("own_there")) == []


async def test_a_call_where_a_worker_was_told_to_leave_waits_for_it_to_be_back(some: Some) -> None:
    peer, _ = some.connect()
    peer.leave()
    peer.lost()
    some.clock.seconds += 4.9
    assert some.hub.knows(WANTED)
    some.clock.seconds += 0.2
    assert not some.hub.knows(WANTED)


@pytest.mark.parametrize(("told", "known"), [(True, True), (False, False)], ids=["told to leave", "gone"])
async def test_who_was_told_to_connect_anew_is_waited_for_longer_than_who_went(
    told: bool, known: bool, some: Some, office: Office
) -> None:
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=OtherProcesses("secret"))
    some.hub.address = "127.0.0.1:9"
    peer, _ = some.connect()
    await some.hub.share()
    if told:
        peer.leave()
        await some.hub.share()
    await other.refresh()
    peer.lost()
    await some.hub.share()
    await other.refresh()
    some.clock.seconds += 3
    assert other.knows(WANTED) is known
    some.clock.seconds += 3
    assert not other.knows(WANTED)
    await other.close()


@pytest.mark.parametrize("read_again", [True, False], ids=["its row has gone", "its row is still there"])
async def test_a_job_that_finds_a_worker_gone_from_another_process_waits_for_it_to_be_back(
    read_again: bool, some: Some, office: Office
) -> None:
    away = Away()
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=away)
    some.hub.address = "127.0.0.1:9"
    peer, _ = some.connect()
    await some.hub.share()
    await other.refresh()
    peer.lost()
    if read_again:
        await some.hub.share()
    job = asyncio.create_task(other.open(WANTED, JOB, EASY, patience_s=60))
    await eventually(away.was_asked)
    await other.refresh()
    assert other.seats("worker", "acc_ada") == []
    there = Some(other, some.clock)
    back, line = there.connect()
    await line.job(1)
    answers(back, 1)
    assert await (await job).read(100) == b"done"
    await other.close()


async def test_who_offers_something_else_again_and_again_is_written_down_once_a_second(
    some: Some, office: Office
) -> None:
    other = Hub(store=office.store, clock=some.clock, ids=office.ids, owner="own_there", reach=OtherProcesses("secret"))
    some.hub.address = "127.0.0.1:9"
    peer, _ = some.connect(slots=1)
    await some.hub.share()

    async def known() -> int:
        await other.refresh()
        return other.offers("worker")[0].slots

    for slots in (2, 3, 4):
        say(peer, type="offer", slots=slots, models=[{"id": "mine"}])
        assert [await known() for _ in range(3)] == [1, 1, 1]
    await some.hub.share()
    assert await known() == 4
    some.clock.seconds += 2
    say(peer, type="offer", slots=5, models=[{"id": "mine"}])

    async def at_once() -> bool:
        return await known() == 5

    await eventually(at_once)
    await other.close()


async def test_nothing_is_kept_of_who_comes_and_goes(some: Some) -> None:
    """Neither of its offer, though nobody asks for a worker meanwhile."""
    shop = ConnectedTools(some.hub)
    gone: list[weakref.ref[Peer]] = []
    for _ in range(20):
        peer = some.hub.join(Told(), kind="tools_worker", key="key_none", account="acc_ada", shared=False)
        offer = {"type": "offer", "tools": [{"name": "t", "parameters": {"type": "object"}}]}
        say(peer, type="hello", version=1, offer=offer)
        assert [tool.name for tool in shop.tools("acc_ada")] == ["t"]
        peer.lost()
        gone.append(weakref.ref(peer))
    del peer
    assert [each() for each in gone] == [None] * 20
    assert some.hub.knows(Wanted("tools_worker", "acc_ada", "t"))
    some.clock.seconds += 10
    await some.hub.tick()
    assert not some.hub.knows(Wanted("tools_worker", "acc_ada", "t"))


async def test_one_account_fills_not_all_connections(some: Some) -> None:
    for number in range(MOST_PER_ACCOUNT):
        assert not some.hub.full_for(f"key_{number % 16}", "acc_ada")
        some.hub.join(Told(), kind="worker", key=f"key_{number % 16}", account="acc_ada", shared=False)
    assert some.hub.full_for("key_new", "acc_ada")
    assert not some.hub.full_for("key_bob", "acc_bob")


async def test_who_offers_what_is_too_much_for_its_account_is_hung_up_on(some: Some) -> None:
    large = [{"name": "t", "parameters": {"a": "x" * 250_000}}]
    room = MOST_OFFERED // 250_200
    connected = [some.connect() for _ in range(room + 2)] + [some.connect(account="acc_bob")]
    for peer, _ in connected:
        say(peer, type="offer", slots=1, tools=large)
    await some.hub.tick()  # which then finds that nobody's key is any good
    too_much = ["offer more" in line.reason for _, line in connected]
    assert too_much == [False] * room + [True] * 2 + [False]


class Named(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Named.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_name_is_found_among_many_without_a_look_at_each() -> None:
    offer = Offer(models=tuple(ModelOffer(f"model-{number}") for number in range(512)))
    assert not offer.serves("none")
    Named.compared = 0
    assert offer.serves(Named("model-511"))
    assert Named.compared < 10


class Queue:
    """Jobs that wait, with a task for each; `awake` are the numbers of those that were woken."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.turns: list[Turn] = []
        self.awake: list[int] = []
        self.take: list[Peer | None] = []

    async def wait(self, number: int) -> None:
        with self.waiting.waits(WANTED) as turn:
            self.turns.append(turn)
            await turn.comes(60)
            self.awake.append(number)
            turn.taken = self.take[number] if self.take else turn.seat


async def test_a_seat_wakes_as_many_jobs_as_it_has_room_for_who_waits_longest_first(some: Some) -> None:
    queue = Queue()
    jobs = [asyncio.create_task(queue.wait(number)) for number in range(100)]
    await asyncio.sleep(0)
    (two, _), (none, _), (strange, _) = some.connect(), some.connect(slots=0), some.connect(account="acc_bob")
    for seat in (two, two, none, strange):
        queue.waiting.call(seat)
    assert sum(turn.asleep for turn in queue.turns) == 98
    await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    assert queue.awake == [0, 1]
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    assert len(queue.waiting) == 0


async def test_a_seat_that_a_woken_job_does_not_take_is_the_next_ones(some: Some) -> None:
    queue = Queue()
    (seat, _), (other, _) = some.connect(slots=1), some.connect()
    queue.take = [other, None, seat]
    jobs = [asyncio.create_task(queue.wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    queue.waiting.call(seat)
    await asyncio.gather(*jobs)
    assert queue.awake == [0, 1, 2]


async def test_one_account_fills_not_the_waiting_room_of_all(some: Some) -> None:
    some.connect(slots=0)
    many = [some.open() for _ in range(MOST_WAITING_EACH)]
    await asyncio.sleep(0)
    with pytest.raises(UpstreamBusy, match="of this account"):
        await some.open()
    _, line = some.connect(account="acc_bob", slots=1)
    bobs = Wanted("worker", "acc_bob", "mine")
    one = asyncio.create_task(some.hub.open(bobs, JOB, EASY, patience_s=60))
    await line.job(1)
    two = asyncio.create_task(some.hub.open(bobs, JOB, EASY, patience_s=60))
    await asyncio.sleep(0)
    assert not two.done()
    for task in (*many, one, two):
        task.cancel()
    await asyncio.gather(*many, one, two, return_exceptions=True)
