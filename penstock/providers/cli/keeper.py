"""The program between the gateway and a command: it runs the command in a process group of its own, and sees to it that
nothing of it is left when the command ends, when it is to be stopped, or when the gateway has gone, however that
happened: not the group, and on Linux not what has left the group either. It gives the command an empty working
directory and takes it away again.

    python -I -S keeper.py LINE COMMAND [ARGUMENT…]

LINE is the number of an inherited descriptor, a pipe that says nothing: its other end is the gateway's, and when that
closes the command is told to stop, and killed if it does not. Exits as the command did, with 128 and the number of the
signal for one that was killed. Standard library only: it starts anew for each call.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

GRACE_S = 1.0  # for a command that was told to stop, to end what it has begun
NOT_FOUND, NOT_RUN = 127, 126  # as shells have it
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the command of the arguments to its end; its exit code."""
    line, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(line, False)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    place = _empty_directory()
    keeper = os.getpid()
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        _become(command, place, keeper)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # so that their other ends see them close with the command
        os.dup2(nothing, stream)
    status = _wait(child, line, woken)
    # At once: while any of the group lives, its number is given to nobody else.
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS does not permit it where none is left
        os.killpg(child, signal.SIGKILL)
    _kill_strays()
    _take_away(place)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _empty_directory() -> str:
    base = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (the name is nobody's guess, and only we can enter)
    place = os.path.join(base, f"penstock-{os.getpid()}-{os.urandom(8).hex()}")
    os.mkdir(place, 0o700)
    return place


def _become(command: list[str], place: str, keeper: int) -> None:
    """In the child: a group of its own, then the command."""
    try:
        os.setsid()
        _die_with(keeper)
        os.chdir(place)
        for each in (signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(each, signal.SIG_DFL)  # what Python ignores a command would ignore too
        os.execvp(command[0], command)  # noqa: S606 (no shell is what is wanted)
    except FileNotFoundError:
        os._exit(NOT_FOUND)
    except BaseException as failure:
        os.write(2, f"{command[0]} cannot be run: {failure}\n".encode())
        os._exit(NOT_RUN)


def _die_with(keeper: int) -> None:
    """Should the keeper be killed, the kernel kills the command (Linux)."""
    _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(NOT_RUN)


def _control(option: int, value: int) -> None:
    """Ask Linux for something about this process; elsewhere nothing."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 (takes as long as all the rest)

        ctypes.CDLL(None).prctl(option, value)


def _wait(child: int, line: int, woken: int) -> int:
    """Until the command has ended, by itself or because the line was closed; its status."""
    watched = [line, woken]
    deadline: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        left = None if deadline is None else max(deadline - time.monotonic(), 0)
        ready = select.select(watched, [], [], left)[0]
        if woken in ready:
            os.read(woken, 4096)
        if line in ready:
            watched.remove(line)
            deadline = time.monotonic() + GRACE_S
            _signal_group(child, signal.SIGTERM)
        elif not ready:
            deadline = None
            _signal_group(child, signal.SIGKILL)


def _signal_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except ProcessLookupError:  # it has not made its group yet
        os.kill(child, number)


def _kill_strays() -> None:
    """What made a group of its own has become a child of ours when its parent ended (Linux)."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        for stray in _children():
            os.kill(stray, signal.SIGKILL)
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.005)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listed:
            return [int(number) for number in listed.read().split()]
    except OSError:
        return []


def _take_away(place: str) -> None:
    try:
        os.rmdir(place)
    except OSError:
        import shutil  # noqa: PLC0415 (seldom needed)

        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
