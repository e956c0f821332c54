"""`penstock serve` as a process: it says where it is, answers, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.engines import SECRETS

START_S = 20  # a bound for a crowded machine; it takes well under one


@contextmanager
def serving(store_url: str, *words: str, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """`penstock serve` on a free port with this database. Its request log goes to `stdout`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | SECRETS
    words = ("serve", "--port", "0", "--database-url", store_url, *words)
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *words], stdout=stdout, stderr=subprocess.PIPE, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[bytes], pattern: bytes) -> bytes:
    """What it has said on standard error up to the line that matches."""
    assert process.stderr is not None
    said = b""
    while not re.search(pattern, said):
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def test_a_gateway_says_where_it_is_and_makes_no_key_unasked(store_url: str) -> None:
    with serving(store_url) as process:
        said = told(process, rb"serves at .*\n")
        (url,) = re.findall(r"serves at (\S+)", said.decode())
        assert httpx2.get(f"{url}/health").json()["status"] == "ok"
        assert httpx2.get(f"{url}/api/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=START_S)[1]
        assert process.returncode == 0
        assert b"user." not in said + rest


def test_a_sample_account_comes_with_a_command_that_works(store_url: str) -> None:
    with serving(store_url, "--sample") as process:
        said = told(process, rb"curl .*\n")
        words = shlex.split(re.findall(r"curl (.*)", said.decode())[0])
        headers = dict(word.split(": ", 1) for word in words if ": " in word and not word.startswith("{"))
        answer = httpx2.post(words[0], headers=headers, content=words[-1])
        assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_S)
        assert process.returncode == 0


@pytest.mark.parametrize("reads", [True, False])
def test_a_request_log_that_nobody_reads_holds_up_nobody(tmp_path: Path, reads: bool) -> None:
    reading, writing = os.pipe()
    with serving(f"sqlite:///{tmp_path}/penstock.db", stdout=writing) as process:
        os.close(writing)
        (url,) = re.findall(r"serves at (\S+)", told(process, rb"serves at .*\n").decode())
        path = f"/api/openai/{'x' * 150}"
        with httpx2.Client(base_url=url, timeout=START_S) as client:
            assert {client.get(path).status_code for _ in range(400)} == {404}  # 120 kB of log, for a pipe of 64
            if not reads:
                os.close(reading)
                assert {client.get(path).status_code for _ in range(100)} == {404}
        log = os.fdopen(reading, "rb") if reads else None
        process.send_signal(signal.SIGTERM)
        said = log.read() if log else b""
        errors = process.communicate(timeout=START_S)[1]
        assert process.returncode == 0
        assert b"BrokenPipe" not in errors
        if log:
            assert [json.loads(line)["event"] for line in said.splitlines()] == ["refused"] * 400
            log.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gateway_that_is_started_without_a_standard_output_serves_and_ends_in_order(
    tmp_path: Path, workers: str
) -> None:
    url = f"sqlite:///{tmp_path}/penstock.db"
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-m", "penstock", "serve", "--port", "0"]
    options = ["--database-url", url, "--workers", workers]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE) as process:
        try:
            (found,) = re.findall(r"serves at (\S+)", told(process, rb"serves at .*\n").decode())
            assert httpx2.get(f"{found}/api/v1/models").status_code == 401
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=START_S)
            assert process.returncode == 0
        finally:
            process.kill()
