"""The supervisor: keeps several serving processes on one address and one store, and does nothing else.

    a worker dies           another takes its place, after a pause that grows when it dies again and again
    a worker hangs          it answers nothing for half a minute: it is killed, and another takes its place
    no worker can start     it ends with the exit code of the last one
    SIGTERM, SIGINT         every worker finishes its calls within `grace_s`, or until a second SIGINT; then it ends
    SIGHUP                  every worker reads the configuration again
    SIGUSR2                 one after the other is replaced: the new one serves before the old one retires
    it is killed            its workers notice, and end as on SIGTERM

A worker is a fresh process; it does everything a gateway does (`app.py`), and the two talk on a line (`channel.py`).
It also adds up what workers have counted. No call passes through here, and nothing here knows money.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.api.listener import bind_apart, withdraw
from penstock.channel import Channel
from penstock.config import ServerSettings, Settings
from penstock.db import migrate
from penstock.errors import ConfigError
from penstock.figures import Figures, add_up, lasting
from penstock.log import Redactor, configure
from penstock.outlet import fill_standard_streams, outlet

START_S = 120.0  # for a worker to serve: it may have to wait for a database that is busy
STEADY_S = 10.0  # a worker that has served for so long has not died of something that will kill the next one at once
LONGEST_PAUSE_S = 30.0  # between two attempts to fill a place
SETTLE_S = 40.0  # beyond `grace_s`, to cut calls and write down what they owe: more than all limits of server and store
REPORT_S = 1.0  # for a worker to say its figures
ASK_S = 10.0  # between two questions whether a worker is still there
MOST_UNANSWERED = 3  # in a row: counted and not timed, so that it is not blamed for a machine that stood still

_logger = logging.getLogger("penstock.supervisor")

Command = Callable[[int, int, int], Sequence[str]]


def supervise(
    settings: Settings, *, command: Command, environ: Mapping[str, str], reload: Callable[[], Settings]
) -> int:
    """Serve with several workers until told to stop; the exit code.

    `command` starts a worker, given its number and the descriptors of its socket and its line.
    """
    fill_standard_streams()
    configure(outlet(sys.stderr), Redactor())
    _warn(settings)
    migrate.upgrade(settings.store.url)
    listeners = bind_apart(settings.server, settings.server.workers)
    places = [_Place(number, listener) for number, listener in enumerate(listeners, 1)]
    return asyncio.run(_to_the_end(Supervisor(places, settings.server, command, environ, reload)))


async def _to_the_end(supervisor: Supervisor) -> int:
    """Run it until a signal ends it; from then on the exit code says how it went, whatever signal comes yet.

    A handler of the loop would be taken back with the loop, and leave a moment in which a signal kills.
    """
    loop = asyncio.get_running_loop()
    for number, do in ((signal.SIGTERM, supervisor.end), (signal.SIGINT, supervisor.interrupt)):
        signal.signal(number, lambda *_, do=do: loop.call_soon_threadsafe(do))
    code = await supervisor.run()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return code


class Worker:
    """One serving process, from its start to its end. `figures` is what it last said it has counted.

    `grace_s` is how long its calls may go on when it ends: each has read the configuration at a time of its own.
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel, *, grace_s: float) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.grace_s = grace_s
        self.figures: Figures = ()
        self.serving = asyncio.Event()
        self.reported = asyncio.Event()
        self.heard = False  # it has said something since it was last asked whether it is there
        self.hearing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"worker {self.number} ({self.process.pid})"

    async def begun(self) -> bool:
        """Wait until it serves; whether it does."""
        waits = [asyncio.ensure_future(wait) for wait in (self.serving.wait(), self.process.wait())]
        await asyncio.wait(waits, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self.serving.is_set() and self.process.returncode is None:
            _logger.error("%r does not serve after %.0f seconds", self, START_S)
            self.process.kill()
        return self.serving.is_set()

    async def ended(self) -> int:
        """Wait until it has ended and all it has said is heard; its exit code."""
        code = await self.process.wait()
        if self.hearing is not None:
            await asyncio.wait([self.hearing], timeout=REPORT_S)
        return code

    async def kill_when_silent(self) -> None:
        """Ask again and again whether it is there. One that hangs is killed; what it had under way is settled as after
        a crash."""
        unanswered = 0
        while unanswered < MOST_UNANSWERED:
            self.heard = False
            self.channel.say("report")
            await asyncio.sleep(ASK_S)
            unanswered = 0 if self.heard else unanswered + 1
        _logger.error("%r hangs: it has left %d questions unanswered, and is killed", self, unanswered)
        self.process.kill()

    def stop(self) -> None:
        """Have it finish its calls and end. One that does not serve yet has nothing to finish."""
        if self.serving.is_set():
            self.channel.let_go()
        elif self.process.returncode is None:
            self.process.terminate()

    def hurry(self) -> None:
        """Have it cut its calls, now that it ends."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)

    async def ends_in_time(self) -> bool:
        """Whether it ends by itself, and in order if it has served; when it takes too long it is killed."""
        most_s = self.grace_s + SETTLE_S
        try:
            return await asyncio.wait_for(self.ended(), most_s) == 0 or not self.serving.is_set()
        except TimeoutError:
            _logger.error("%r has not ended within %.0f seconds and is killed", self, most_s)
            self.process.kill()
            await self.ended()
            return False


@dataclass(slots=True)
class _Place:
    """Where one worker serves: its number and its socket, and who is there now. `lock` is held while that changes."""

    number: int
    listener: socket.socket
    worker: Worker | None = None
    deaths: int = 0  # in a row, each soon after its start
    refused: int | None = None  # the exit code when the last attempt to start one failed
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    emptied: asyncio.Event = field(default_factory=asyncio.Event)  # the worker that was there has died
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pause_s(self) -> float:
        """How long to wait with the next attempt: not at all after the first death."""
        return 0.0 if self.deaths < 2 else min(0.1 * 2**self.deaths, LONGEST_PAUSE_S)


class Supervisor:
    """Starts workers, replaces them and ends them."""

    def __init__(
        self,
        places: Sequence[_Place],
        settings: ServerSettings,
        command: Command,
        environ: Mapping[str, str],
        reload: Callable[[], Settings],
    ) -> None:
        self._places = places
        self._settings = settings
        self._command = command
        self._environ = environ
        self._reload = reload
        self._workers: set[Worker] = set()
        self._tasks: set[asyncio.Task[None]] = set()  # what is done until the end: each that fails ends us
        self._gone: Figures = ()  # what workers have counted that have ended
        self._code: int | None = None
        self._ending = asyncio.Event()
        self._restarting = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Supervisor({len(self._workers)} workers for {len(self._places)} places)"

    async def run(self) -> int:
        """Until told to stop, or until no worker can start; the exit code."""
        self._listen_to_signals()
        for place in self._places:
            self._begin(self._staff(place))
        self._begin(self._open())
        self._begin(self._restart_when_told())
        await self._ending.wait()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        in_order = await self._end_all()
        return self._code if self._code is not None else int(not in_order)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload_all)
        loop.add_signal_handler(signal.SIGUSR2, self._restarting.set)

    def end(self) -> None:
        """End every worker, and then."""
        self._ending.set()

    def interrupt(self) -> None:
        """End; when that has begun already, with no more time for calls."""
        if self._ending.is_set():
            for worker in self._workers:
                worker.hurry()
        self._ending.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._check)

    def _check(self, task: asyncio.Task[None]) -> None:
        """A task of ours that fails would leave a place empty for ever: rather end, and be started again."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.critical("the supervisor failed", exc_info=task.exception())
            self._end(1)

    def _end(self, code: int) -> None:
        self._code = code
        self._ending.set()

    async def _end_all(self) -> bool:
        """End every worker; whether all ended in order."""
        for place in self._places:
            place.listener.close()
        for worker in self._workers:
            worker.stop()
        return all(await asyncio.gather(*(worker.ends_in_time() for worker in self._workers)))

    # Filling places.

    async def _open(self) -> None:
        """Wait until every place has been tried, then have one worker say that calls are taken."""
        for place in self._places:
            await place.tried.wait()
        serving = [place.worker for place in self._places if place.worker]
        _logger.info("%d of %d workers serve", len(serving), len(self._places))
        if serving:
            serving[0].channel.say("announce")

    async def _staff(self, place: _Place) -> None:
        """Have a worker serve at this place, always."""
        while True:
            async with place.lock:
                if place.worker is None:
                    await self._fill(place)
                    place.tried.set()
            if place.worker is not None:
                await place.emptied.wait()
            if place.pause_s:
                withdraw(place.listener)
                await asyncio.sleep(place.pause_s)

    def _put(self, place: _Place, worker: Worker) -> None:
        """Have this worker be the one at this place, and watch it from now on."""
        place.worker, place.refused = worker, None
        place.emptied.clear()
        self._begin(self._watch(place, worker))

    async def _watch(self, place: _Place, worker: Worker) -> None:
        """Watch a worker to its end, also while it retires. If it has not been replaced by then, its place is empty."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        watchdog = asyncio.create_task(worker.kill_when_silent())
        try:
            code = await worker.ended()
        finally:
            watchdog.cancel()
        async with place.lock:
            if place.worker is worker:
                place.worker = None
                place.emptied.set()
                place.deaths = 1 if loop.time() - begun_s > STEADY_S else place.deaths + 1
                _logger.error("%r ended with %d, and nobody asked it to", worker, code)

    async def _fill(self, place: _Place) -> None:
        """Have a worker at this place, if one can start."""
        worker = await self._start(place)
        if worker is not None and await worker.begun():
            self._put(place, worker)
            return
        place.deaths += 1
        place.refused = 1 if worker is None else await worker.ended()
        if all(each.worker is None and each.refused is not None for each in self._places):
            _logger.critical("no worker can start; the last one ended with %d", place.refused)
            self._end(place.refused if place.refused > 0 else 1)

    async def _start(self, place: _Place) -> Worker | None:
        """A new process at this place; it does not serve yet. None when the system has no room for one."""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                process = await self._run(place, theirs)
        except OSError as error:
            _logger.error("worker %d cannot be started: %s", place.number, error)
            return None
        worker = Worker(place.number, process, await Channel.on(ours), grace_s=self._settings.grace_s)
        self._workers.add(worker)
        worker.hearing = asyncio.create_task(self._hear(worker))
        return worker

    async def _run(self, place: _Place, line: socket.socket) -> asyncio.subprocess.Process:
        descriptors = (place.listener.fileno(), line.fileno())
        return await asyncio.create_subprocess_exec(
            *self._command(place.number, *descriptors),
            env=self._environ,
            pass_fds=descriptors,
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal is for the supervisor alone
        )

    # The line to a worker.

    async def _hear(self, worker: Worker) -> None:
        """Hear what a worker says, to its end."""
        while (message := await worker.channel.hear()) is not None:
            worker.heard = True
            if message.word == "serving":
                _logger.info("%r serves", worker)
                worker.grace_s = worker.grace_s if message.grace_s is None else message.grace_s
                worker.serving.set()
            elif message.word == "figures":
                worker.figures = message.figures
                worker.reported.set()
            elif message.word == "scrape":
                answer = asyncio.create_task(self._answer_scrape(worker))
                self._answers.add(answer)
                answer.add_done_callback(self._answers.discard)
        self._workers.discard(worker)
        self._gone = add_up([self._gone, lasting(worker.figures)])
        await worker.channel.close()

    async def _answer_scrape(self, worker: Worker) -> None:
        worker.channel.say("sum", await self._sum())

    async def _sum(self) -> Figures:
        """The figures of all workers, past and present. Of one that is silent: what it counted when it last spoke."""
        asked = [worker for worker in self._workers if worker.serving.is_set()]
        for worker in asked:
            worker.reported.clear()
            worker.channel.say("report")
        waits = [asyncio.create_task(worker.reported.wait()) for worker in asked]
        try:
            await asyncio.wait(waits, timeout=REPORT_S)
        finally:
            for wait in waits:
                wait.cancel()  # of those that have not reported
        present = [
            worker.figures if worker.reported.is_set() else lasting(worker.figures)
            for worker in sorted(self._workers, key=lambda each: each.number)
        ]
        return add_up([self._gone, *present])

    # Orders.

    def _reload_all(self) -> None:
        for worker in self._workers:
            worker.channel.say("reload")

    async def _restart_when_told(self) -> None:
        while True:
            await self._restarting.wait()
            self._restarting.clear()
            await self._restart()

    async def _restart(self) -> None:
        """Replace one worker after the other. When a new one cannot start, the rest stay as they are."""
        try:
            _warn(self._reload())
        except ConfigError as error:
            _logger.error("the workers stay as they are: %s", error.message)
            return
        for place in self._places:
            if not await self._replace(place):
                _logger.error("a new worker could not start; those that are left stay as they are")
                return
        _logger.info("all %d workers have been replaced", len(self._places))

    async def _replace(self, place: _Place) -> bool:
        async with place.lock:
            successor = await self._start(place)
            if successor is None or not await successor.begun():
                return False
            old, place.deaths = place.worker, 0
            self._put(place, successor)
        if old is not None:
            old.channel.say("retire")
            await old.ends_in_time()
        return True


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        _logger.warning("%s", warning)
