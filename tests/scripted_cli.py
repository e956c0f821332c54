"""A command line that does what a test tells it: prints lines, waits, hangs, has children, fails. Run as a program,

    python -I -S tests/scripted_cli.py SCRIPT [whatever a template appends]

where SCRIPT is a JSON file with a list of steps, each an object with one of the keys below. What it was given
(arguments, stdin, environment, working directory) it writes down first, for `seen`. For tests there are `write_script`
and lines as Claude Code, Codex and Gemini print them, taken from real runs.

    asked, do      where the prompt has these words, do these steps and no others
    out, err       print a line on stdout or stderr
    hex            print bytes on stdout
    flood          print a line over and over, for ever
    child          start a process of the same group that never ends, and write its number to the file named
    orphan         the same in a session of its own
    litter         make files in the working directory
    wait           go on when somebody opens the named pipe for writing
    deaf           ignore SIGTERM
    hang           do nothing more, for ever
    exit           end with this code
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Step = dict[str, Any]


def main() -> None:
    script = Path(sys.argv[1])
    prompt = sys.stdin.read()
    given = {"argv": sys.argv[2:], "stdin": prompt, "environ": dict(os.environ), "cwd": os.getcwd()}
    part = script.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(given | {"pid": os.getpid(), "files": os.listdir()}))
    part.rename(script.with_suffix(".seen"))  # whoever reads it reads all of it
    _do(json.loads(script.read_text()), prompt)


def _do(steps: list[Step], prompt: str) -> None:
    for step in steps:
        if "asked" in step:
            if step["asked"] in prompt:
                return _do(step["do"], prompt)
            continue
        for key, value in step.items():
            STEPS[key](value)
    return None


def _out(line: str) -> None:
    _hex(f"{line}\n".encode().hex())


def _err(line: str) -> None:
    os.write(2, f"{line}\n".encode())


def _hex(written: str) -> None:
    sys.stdout.buffer.write(bytes.fromhex(written))
    sys.stdout.buffer.flush()


def _flood(line: str) -> None:
    block = f"{line}\n".encode() * 1000
    while True:
        sys.stdout.buffer.write(block)


def _child(file: str) -> None:
    _never_ending(file, lambda: None)


def _orphan(file: str) -> None:
    _never_ending(file, os.setsid)


def _never_ending(file: str, first: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        first()
        while True:
            signal.pause()
    Path(file).write_text(str(child))


def _litter(_: bool) -> None:
    Path("deep/er").mkdir(parents=True)
    Path("deep/er/file").write_text("left behind")


def _wait(pipe: str) -> None:
    with open(pipe) as opened:
        opened.read()


def _deaf(_: bool) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _hang(_: bool) -> None:
    while True:
        signal.pause()


STEPS: dict[str, Callable[[Any], None]] = {
    "out": _out,
    "err": _err,
    "hex": _hex,
    "flood": _flood,
    "child": _child,
    "orphan": _orphan,
    "litter": _litter,
    "wait": _wait,
    "deaf": _deaf,
    "hang": _hang,
    "exit": sys.exit,
}


# For tests.


def write_script(file: Path, *steps: Step) -> tuple[str, ...]:
    """Have the next runs do these steps; the command that does."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(steps))
    part.rename(file)
    return (sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(file))


def seen(file: Path) -> Any:
    """What the last run was given."""
    return json.loads(file.with_suffix(".seen").read_text())


async def gone(pid: int) -> None:
    """Wait until a process is gone, whoever's child it is."""
    import asyncio
    import select

    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert (await asyncio.to_thread(select.select, [watched], [], [], 10))[0], f"process {pid} lives"
    finally:
        os.close(watched)


def lines(*documents: Any) -> list[Step]:
    """A line of JSON for each."""
    return [{"out": json.dumps(document)} for document in documents]


def claude_delta(text: str, **beside: Any) -> Any:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return {"type": "stream_event", "event": event, "parent_tool_use_id": None, "session_id": "s"} | beside


def claude_block() -> Any:
    event = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return {"type": "stream_event", "event": event, "parent_tool_use_id": None, "session_id": "s"}


def claude_result(text: str, **other: Any) -> Any:
    usage = {
        "input_tokens": 11,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "output_tokens": 5,
        "service_tier": "standard",
    }
    result = {"type": "result", "subtype": "success", "is_error": False, "result": text, "stop_reason": "end_turn"}
    return result | {"total_cost_usd": 0.0001, "usage": usage} | other


def claude(words: Sequence[str], **other: Any) -> list[Step]:
    """A good run of Claude Code that says these words, and `other` in its result."""
    text = "".join(words)
    return lines(
        {"type": "system", "subtype": "init", "tools": [], "session_id": "s"},
        {"type": "stream_event", "event": {"type": "message_start", "message": {}}, "parent_tool_use_id": None},
        claude_block(),
        *map(claude_delta, words),
        {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, "parent_tool_use_id": None},
        claude_result(text, **other),
    )


def codex(*messages: str) -> list[Step]:
    """A good run of Codex that says these messages."""
    items: list[Any] = [
        {"type": "item.completed", "item": {"id": f"item_{number}", "type": "agent_message", "text": text}}
        for number, text in enumerate(messages, 1)
    ]
    usage = {"input_tokens": 20, "cached_input_tokens": 8, "cache_write_input_tokens": 1, "output_tokens": 6}
    return lines(
        {"type": "thread.started", "thread_id": "t"},
        {"type": "item.completed", "item": {"id": "item_0", "type": "error", "message": "Defaulting to fallback."}},
        {"type": "turn.started"},
        *items,
        {"type": "turn.completed", "usage": usage | {"reasoning_output_tokens": 2}},
    )


def gemini(words: Sequence[str]) -> list[Step]:
    """A good run of Gemini that says these words."""
    stats = {"total_tokens": 15, "input_tokens": 9, "output_tokens": 4, "cached": 3, "input": 6, "tool_calls": 0}
    said = [{"type": "message", "role": "assistant", "content": word, "delta": True} for word in words]
    return lines(
        {"type": "init", "session_id": "s", "model": "m"},
        {"type": "message", "role": "user", "content": "Say hello"},
        *said,
        {"type": "result", "status": "success", "stats": stats},
    )


if __name__ == "__main__":
    main()
