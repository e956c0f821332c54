"""The built-in tool `code_execution`: a Python program, run where it can do no harm.

Each run is a process of its own in the jail of `jail.py`: no network, its own empty directory, the system read-only,
limits on time, memory, processes and files, an empty environment. When the time is over or the caller has gone, the
whole of it is killed. Where this machine cannot make the jail the tool is not offered; nothing runs without it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock.toolbox.settings import CodeExecutionSettings
from penstock.toolbox.source import ToolError, arguments_as, cut, schema_of
from penstock.tools import Tool, ToolResult

NAME = "code_execution"
SCRIPT = Path(__file__).with_name("jail.py")
UNABLE = 97  # what jail.py ends with when it cannot be made
MOST_CODE = 200_000  # characters
PROBE_S = 10.0  # to find out whether the jail can be made
SHARE = 0.9  # of the time there is for a call is the program's; the rest is to end it and to tell what it printed
KILL_S = 5.0  # for the kernel to end what was killed, before that is left to it
LARGEST_NUMBER = 1 << 30

_logger = logging.getLogger("penstock.tools")


class _Wanted(Struct, forbid_unknown_fields=True):
    code: str


class _Output(Struct):
    """What a process wrote, up to a limit; the rest is read and forgotten, so that it is not held up."""

    most: int
    data: bytearray
    lost: int = 0

    def add(self, piece: bytes) -> None:
        room = max(0, self.most - len(self.data))
        self.data += piece[:room]
        self.lost += max(0, len(piece) - room)

    def text(self) -> str:
        note = f"\n[cut: {self.lost} bytes more]" if self.lost else ""
        return self.data.decode("utf-8", "replace") + note


class CodeExecution:
    """Implements `source.Source`. At most `parallel` programs run at once; the others wait for their turn."""

    def __init__(self, settings: CodeExecutionSettings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.parallel)
        self._numbers = itertools.count(int.from_bytes(os.urandom(3)))

    def __repr__(self) -> str:
        return f"CodeExecution({self._settings!r})"

    def tools(self) -> tuple[Tool, ...]:
        description = (
            "Run a Python program and return what it prints. It has the standard library, no network, no input and an "
            f"empty working directory that is gone afterwards, and at most {self._settings.timeout_s:g} seconds."
        )
        return (Tool(NAME, description, schema_of(_Wanted, code="The program. Print what you want to see.")),)

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        wanted = arguments_as(_Wanted, arguments)
        if len(wanted.code) > MOST_CODE:
            raise ToolError(f"The program is longer than {MOST_CODE} characters.")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SHARE * within_s
        async with self._turns:
            left_s = max(0.0, until_s - loop.time())
            return await self._run(wanted.code.encode("utf-8", "replace"), min(self._settings.timeout_s, left_s))

    async def able(self) -> str | None:
        """None when this machine can make the jail, else why it cannot."""
        try:
            tried = await self._run(b"print('able')", PROBE_S)
        except ToolError as error:
            return str(error)
        return None if tried.text == "able\n" else tried.text

    async def _run(self, code: bytes, within_s: float) -> ToolResult:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(SCRIPT),
            json.dumps(self._limits(within_s)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        out, err = (_Output(self._settings.max_output_bytes, bytearray()) for _ in range(2))
        try:
            async with asyncio.timeout(within_s):
                await self._converse(process, code, out, err)
        except TimeoutError:
            raise ToolError(_stopped(within_s, out, err)) from None
        finally:
            await _kill(process, out, err)
        if process.returncode == UNABLE and err.data.startswith(b"jail: "):
            raise ToolError(f"This machine cannot run programs safely ({err.text()}).")
        return self._result(process.returncode or 0, out, err)

    async def _converse(self, process: asyncio.subprocess.Process, code: bytes, out: _Output, err: _Output) -> None:
        async def give() -> None:
            assert process.stdin is not None
            with suppress(ConnectionError):
                process.stdin.write(code)
                await process.stdin.drain()
            process.stdin.close()

        await asyncio.gather(give(), _take(process.stdout, out), _take(process.stderr, err))
        await process.wait()

    def _result(self, code: int, out: _Output, err: _Output) -> ToolResult:
        parts = [out.text()]
        if err.data:
            parts.append(f"[standard error]\n{err.text()}")
        if code:
            parts.append(f"[the program ended with code {code}]")
        text = "\n".join(part.rstrip("\n") for part in parts if part) + "\n" if any(parts) else "[no output]"
        return ToolResult(cut(text, 2 * self._settings.max_output_bytes), failed=code != 0)

    def _limits(self, within_s: float) -> dict[str, Any]:
        """What `jail.py` wants to know."""
        return {
            "python": os.path.realpath(sys.executable),
            "prefix": sys.base_prefix,
            "number": next(self._numbers) % LARGEST_NUMBER,
            "cpu_s": max(1, int(within_s) + 1),
            "memory_bytes": self._settings.memory_bytes,
            "files_bytes": self._settings.files_bytes,
            "processes": self._settings.processes,
        }


def _stopped(within_s: float, out: _Output, err: _Output) -> str:
    printed = (out.text() + err.text()).strip()
    return f"The program took longer than {round(within_s, 1):g} seconds and was stopped." + (
        f" Until then it printed:\n{printed}" if printed else ""
    )


async def _take(stream: asyncio.StreamReader | None, into: _Output) -> None:
    """Read a pipe to its end."""
    assert stream is not None
    while piece := await stream.read(65_536):
        into.add(piece)


async def _kill(process: asyncio.subprocess.Process, out: _Output, err: _Output) -> None:
    """End the process group. Its members are the two processes that wait, and no program can have them leave it;
    with the second of them ends all of the jail. What is in the pipes is read: a process with a full one never ends
    for asyncio."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(KILL_S):
            await asyncio.gather(_take(process.stdout, out), _take(process.stderr, err))
            await process.wait()
    except TimeoutError:
        _logger.error("a program was killed and has not ended %g s later", KILL_S)
