"""`penstock serve` as a process: it says where it is, answers, and ends when it is told to."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

START_S = 20  # a bound for a crowded machine; it takes well under one


@contextmanager
def serving(directory: Path, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    """`penstock serve` on a free port with a database in `directory`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    words = ["serve", "--port", "0", "--database-url", f"sqlite:///{directory}/penstock.db"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *words], stdout=subprocess.DEVNULL, stderr=stderr, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_gateway_started_by_a_machine_says_where_it_is_and_makes_no_key(tmp_path: Path) -> None:
    with serving(tmp_path, subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while b"serves at" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        (url,) = re.findall(r"serves at (\S+)", said.decode())
        assert httpx2.get(f"{url}/health").json()["status"] == "ok"
        assert httpx2.get(f"{url}/api/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=START_S) == 0
        assert b"user." not in said + process.stderr.read()
        process.stderr.close()


def test_the_first_start_at_a_terminal_gives_a_command_that_works(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with serving(tmp_path, theirs) as process, os.fdopen(ours, "rb", buffering=0) as terminal:
        os.close(theirs)
        said = b""
        while not re.search(rb"curl [^\r\n]*\r\n", said):
            said += terminal.read(4096)
        words = shlex.split(re.findall(r"curl ([^\r\n]*)", said.decode())[0])
        headers = dict(word.split(": ", 1) for word in words if ": " in word and not word.startswith("{"))
        answer = httpx2.post(words[0], headers=headers, content=words[-1])
        assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=START_S) == 0
