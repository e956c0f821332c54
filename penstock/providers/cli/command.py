"""One running command: what goes in, what comes out, and its end. Its meaning is `output.py`.

Between it and us stands `keeper.py`, which outlives neither. Stopping is closing a pipe: it needs no waiting, it works
from anywhere, and when this process is killed the kernel does it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from penstock.errors import UpstreamUnavailable

PIECE_BYTES = 64 * 1024
LAST_WORDS_BYTES = 4_000  # of stderr: enough for an error and its cause
PIPES_S = 2.0  # for the pipes to end after the command, whose stray children may hold them (not on Linux)
KEEPER = str(Path(__file__).with_name("keeper.py"))


class Command:
    """A command that was started; read it to its end or `stop` it.

    `await ended` is its exit code, once it and all it started are gone. `stopped` says whether we ended it.
    """

    def __init__(self, process: asyncio.subprocess.Process, line: int, prompt: bytes) -> None:
        self.stopped = False
        self._process = process
        self._line: int | None = line
        self._reading = asyncio.Lock()
        self._read_enough = asyncio.Event()
        self._last_words = bytearray()
        self._tasks = [asyncio.create_task(self._listen())]
        if process.stdin is not None:
            self._tasks.append(asyncio.create_task(self._tell(process.stdin, prompt)))
        self.ended: asyncio.Task[int] = asyncio.create_task(self._end())

    def __repr__(self) -> str:
        return f"Command(keeper={self._process.pid}, code={self._process.returncode})"

    async def read(self) -> bytes:
        """The next piece of what it prints; empty at the end."""
        assert self._process.stdout is not None
        async with self._reading:
            piece = await self._process.stdout.read(PIECE_BYTES)
        if not piece:
            self._read_enough.set()
        return piece

    def stop(self) -> None:
        """Have it told to stop, with all it started, and killed if it does not. Calling it twice is harmless."""
        self._read_enough.set()
        if self._line is not None:
            self.stopped = True
            self._let_go()

    def last_words(self) -> str:
        """The end of what it printed on stderr; all of it is here when it has ended."""
        return self._last_words.decode("utf-8", "replace").strip()

    async def _listen(self) -> None:
        """Keep stderr empty, for a full pipe would stop the command, and remember the end of it."""
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(PIECE_BYTES):
            self._last_words += piece
            del self._last_words[:-LAST_WORDS_BYTES]

    async def _tell(self, stdin: asyncio.StreamWriter, prompt: bytes) -> None:
        with suppress(ConnectionError):  # it has read enough
            stdin.write(prompt)
            await stdin.drain()
        with suppress(ConnectionError):
            stdin.close()
            await stdin.wait_closed()

    async def _end(self) -> int:
        code = await self._process.wait()
        self._let_go()
        await self._read_enough.wait()
        self._tasks.append(asyncio.create_task(self._read_out()))
        _, held_open = await asyncio.wait(self._tasks, timeout=PIPES_S)
        for task in held_open:
            task.cancel()
        return code

    async def _read_out(self) -> None:
        """Take what nobody wants any more: it keeps the pipe open."""
        while await self.read():
            pass

    def _let_go(self) -> None:
        if self._line is not None:
            os.close(self._line)
            self._line = None


async def start(argv: Sequence[str], environment: Mapping[str, str], prompt: bytes | None) -> Command:
    """Start a command with a prompt on its stdin, or with nothing there. `UpstreamUnavailable` when it cannot be."""
    theirs, ours = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            KEEPER,
            str(theirs),
            *argv,
            stdin=asyncio.subprocess.DEVNULL if prompt is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            pass_fds=(theirs,),
            start_new_session=True,  # an interrupt from our terminal is ours to act on
        )
    except BaseException as failure:
        os.close(ours)
        if isinstance(failure, OSError | ValueError):  # no memory, no descriptor, an argument too long or with a zero
            raise UpstreamUnavailable(f"The command cannot be started: {failure}.") from failure
        raise
    finally:
        os.close(theirs)
    return Command(process, ours, prompt or b"")
