"""Programs in the jail: what they can do is print, compute and use their own directory, for a while."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.toolbox.code_execution import CodeExecution
from penstock.toolbox.settings import CodeExecutionSettings
from penstock.toolbox.source import Toolbox
from penstock.tools import ToolResult

LIMITS = CodeExecutionSettings(memory_bytes=300_000_000, files_bytes=2_000_000, max_output_bytes=2_000)


@pytest.fixture(autouse=True)
async def jail() -> None:
    reason = await CodeExecution(LIMITS).able()
    if reason is not None:
        pytest.skip(f"this machine cannot make the jail: {reason}")


async def run(code: str, *, within_s: float = 20.0, timeout_s: float = 20.0) -> ToolResult:
    settings = CodeExecutionSettings(
        timeout_s=timeout_s,
        memory_bytes=LIMITS.memory_bytes,
        files_bytes=LIMITS.files_bytes,
        max_output_bytes=LIMITS.max_output_bytes,
    )
    return await Toolbox([CodeExecution(settings)]).run("code_execution", {"code": code}, within_s=within_s)


async def test_a_program_prints_what_it_computes() -> None:
    assert await run("import math\nprint(math.factorial(20))\nprint('\\u2713')") == ToolResult(
        "2432902008176640000\n✓\n"
    )


async def test_a_program_that_fails_says_so_with_its_traceback() -> None:
    result = await run("print('before')\n1/0")
    assert result.failed
    assert result.text.startswith("before\n[standard error]\nTraceback")
    assert result.text.endswith("ZeroDivisionError: division by zero\n[the program ended with code 1]\n")


async def test_it_has_no_network_not_even_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = await run(
            "import socket\n"
            f"for where in (('127.0.0.1', {port}), ('1.1.1.1', 53)):\n"
            "    try:\n        socket.create_connection(where, 2)\n        print('connected')\n"
            "    except OSError as error:\n        print(error.errno)\n"
        )
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert result == ToolResult("101\n101\n")  # ENETUNREACH


async def test_it_sees_nothing_of_this_machine_but_the_interpreter(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not read")
    result = await run(
        "import os\n"
        f"for path in ({str(secret)!r}, '/etc/passwd', '/proc/1/environ', {os.getcwd()!r} + '/pyproject.toml'):\n"
        "    print(os.path.exists(path))\n"
        "print(sorted(os.environ), os.getcwd(), os.listdir('.'), os.getuid() != 0)\n"
    )
    assert result.text == "False\n" * 4 + "['HOME', 'LANG'] /box [] True\n"


async def test_it_writes_in_its_own_directory_and_nowhere_else() -> None:
    result = await run(
        "import os, sys\n"
        "for path in ('/box/mine', '/tmp/mine', '/mine', '/usr/mine', os.path.dirname(os.__file__) + '/mine',\n"
        "             '/../../mine', '/dev/mine'):\n"
        "    try:\n        open(path, 'w').close()\n        print(True)\n"
        "    except OSError:\n        print(False)\n"
        "os.symlink('/usr', '/box/link')\n"
        "try:\n    open('/box/link/mine', 'w')\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    assert result.text == "True\nTrue\nFalse\nFalse\nFalse\nFalse\nFalse\n30\n"
    assert not os.path.exists("/usr/mine")  # noqa: ASYNC240
    assert (await run("import os\nprint(os.listdir('/box'))")).text == "[]\n"


async def test_it_cannot_get_out_by_its_rights() -> None:
    result = await run(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.mount(b'none', b'/box', b'tmpfs', 0, None), libc.unshare(0x10000000 | 0x20000),"
        " libc.umount2(b'/usr', 2))\n"
        "try:\n    os.chroot('/box')\n    print('out')\nexcept PermissionError:\n    print('refused')\n"
    )
    assert result.text == "-1 -1 -1\nrefused\n"


async def test_it_has_no_keys_of_this_machine_and_leaves_none_to_the_next_program() -> None:
    add, request, keyctl = {"x86_64": (248, 249, 250)}.get(os.uname().machine, (217, 218, 219))
    if ctypes.CDLL(None).syscall(keyctl, 1, None) < 0:  # be in a session, as a login makes one
        pytest.skip("there are no sessions with keys here")
    start = f"import ctypes\ncall = ctypes.CDLL(None).syscall\nname = b'{os.urandom(6).hex()}'\n"
    await run(start + f"call({add}, b'user', name, b'left', 4, ctypes.c_int(-3))\n")
    assert (await run(start + f"print(call({request}, b'user', name, None, 0))\n")).text == "-1\n"


async def test_too_much_memory_is_an_error_inside() -> None:
    result = await run("x = bytearray(1 << 30)")
    assert result.failed
    assert "MemoryError" in result.text


async def test_there_is_no_memory_but_what_is_limited_and_no_socket_but_the_usual() -> None:
    """System V segments and nameless files are in no address space; AF_VSOCK would lead to a virtual machine's host."""
    result = await run(
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for make in (libc.shmget, libc.msgget, libc.semget):\n"
        "    print(make(0, ctypes.c_size_t(1000), 0o1600), ctypes.get_errno())\n"
        "print(libc.syscall(425, 1, None), ctypes.get_errno())\n"
        "for make in (lambda: os.memfd_create('m'), lambda: socket.socket(40, socket.SOCK_STREAM)):\n"
        "    try:\n        print(make())\n"
        "    except OSError as error:\n        print(error.errno)\n"
        "for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):\n    socket.socket(family).close()\n"
        "print(len(socket.socketpair()))\n"
    )
    assert result == ToolResult("-1 1\n" * 4 + "1\n97\n2\n")


async def test_files_are_bounded_one_by_one_and_together() -> None:
    result = await run(
        "def fill(name):\n"
        "    try:\n        with open(name, 'wb') as file:\n            file.write(bytes(3_000_000))\n"
        "    except OSError as error:\n        print(error.errno)\n"
        "fill('one')\n"
        "for n in range(20):\n    fill(f'f{n}') if n == 19 else open(f'g{n}', 'wb').write(bytes(90_000))\n"
    )
    assert result.failed or set(result.text.split()) <= {"27", "28"}
    assert "27" in result.text  # EFBIG


async def test_a_fork_bomb_runs_out_of_processes() -> None:
    result = await run(
        "import os, time\nmade = 0\n"
        "try:\n    while made < 500:\n        if os.fork() == 0:\n            time.sleep(100)\n        made += 1\n"
        "except OSError as error:\n    print(error.errno, made < 50)\n"
    )
    assert result.text == "11 True\n"  # EAGAIN


async def test_an_endless_loop_is_stopped_and_what_it_printed_is_told() -> None:
    started = time.monotonic()
    result = await run("print('here', flush=True)\nwhile True: pass", timeout_s=1.0)
    assert result.failed
    assert result.text == "The program took longer than 1 seconds and was stopped. Until then it printed:\nhere"
    assert time.monotonic() - started < 10


@pytest.mark.each_loop
@pytest.mark.parametrize(
    "program", ["while True: os.write(1, b'x' * 60_000)", "while True: os.write(2, b'x' * 60_000)"]
)
async def test_an_endless_loop_that_prints_is_stopped_in_time_and_what_it_printed_is_told(program: str) -> None:
    for _ in range(2):
        result = await run(f"import os\nos.fork()\n{program}", within_s=6.0, timeout_s=1.0)
        assert result.failed
        assert result.text.startswith(
            "The program took longer than 1 seconds and was stopped. Until then it printed:\nxxx"
        )
    assert not _children()


async def test_what_a_stopped_program_printed_is_told_also_when_it_had_all_the_time_of_the_call() -> None:
    result = await run("print('here', flush=True)\nwhile True: pass", within_s=2.0, timeout_s=2.0)
    assert result.failed
    assert result.text.endswith("was stopped. Until then it printed:\nhere")


async def test_nothing_of_a_stopped_program_goes_on(tmp_path: Path) -> None:
    """A child that left its process group ends with the jail's process namespace, and lets go of the pipe."""
    result = await run(
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
        "print('started', flush=True)\ntime.sleep(1000)\n",
        timeout_s=1.0,
    )
    assert result.text.endswith("started")
    assert not _children()


@pytest.mark.parametrize("pipes", ["keeps its pipes", "closes them"])
async def test_a_program_that_leaves_everything_it_was_started_with_is_ended_all_the_same(pipes: str) -> None:
    """It asks not to be killed with its parent, makes a session of its own, and works in children."""
    started, name = time.monotonic(), os.urandom(6).hex()
    result = await run(
        "import ctypes, os, time\n"
        "libc = ctypes.CDLL(None)\n"
        f"libc.prctl(1, 0, 0, 0, 0)\nlibc.prctl(15, b'{name}')\nos.setsid()\nprint('away', flush=True)\n"
        + ("os.close(1)\nos.close(2)\n" if pipes == "closes them" else "")
        + "os.fork()\nos.mkdir(f'/box/{os.getpid()}')\ntime.sleep(15)\n",
        timeout_s=1.0,
    )
    assert result.text.endswith("away")
    async with asyncio.timeout(5):  # it is not our child, so its end is not told to us
        while _named(name):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert time.monotonic() - started < 8


async def test_a_program_cannot_touch_the_process_that_waits_for_it() -> None:
    result = await run(
        "import ctypes, os, signal\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(os.getpid() > 1, os.getppid())\n"
        "os.kill(1, signal.SIGKILL)\n"
        "for what in (lambda: libc.ptrace(16, 1, 0, 0), lambda: libc.setpgid(1, 0)):\n    print(what())\n"
    )
    assert result == ToolResult("True 1\n-1\n-1\n")


async def test_a_cancelled_run_is_killed() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await run("import time\ntime.sleep(1001)")
    assert not _children()


async def test_huge_output_is_cut_and_does_not_hold_the_program_up() -> None:
    result = await run("import sys\nfor _ in range(200): sys.stdout.write('x' * 100_000)\nsys.stdout.flush()")
    assert not result.failed
    assert result.text.startswith("x" * 2_000)
    assert result.text.endswith("[cut: 19998000 bytes more]\n")


async def test_a_program_cannot_pretend_that_the_jail_failed() -> None:
    result = await run("import sys\nsys.stdout.write('x')\nsys.exit(97)")
    assert result == ToolResult("x\n[the program ended with code 97]\n", failed=True)


async def test_no_input_and_no_longer_program_than_is_sound() -> None:
    assert (await run("print(repr(input()) if False else open(0).read() == '')")).text == "True\n"
    assert (await run("#" * 200_001)).text == "The program is longer than 200000 characters."


def _named(name: str) -> list[str]:
    """Processes of this machine that call themselves so, and have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (path / "stat").read_text()
            if f"({name})" in stat and stat.rpartition(")")[2].split()[0] != "Z":
                found.append(path.name)
    return found


def _children() -> list[str]:
    """Command lines of this process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == os.getpid() and status[0] != "Z":
                found.append((path / "cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return [line for line in found if "jail.py" in line]
