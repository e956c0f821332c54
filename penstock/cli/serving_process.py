"""One process of `serve --workers`: `python -m penstock.cli.serving_process NUMBER SOCKET LINE CONFIG SAMPLE`.

Not a command for people. The supervisor starts it, with two descriptors it inherits and the options of its own command
line in the environment.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.cli.desk import Desk, report
from penstock.errors import PenstockError


def command(config: Path | None, sample: str) -> Callable[[int, int, int], Sequence[str]]:
    """What starts a worker: the interpreter that runs now, and the same package."""
    # `-m` would look for packages in the current directory first; only where that is so already.
    here = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]

    def words(number: int, listener: int, line: int) -> Sequence[str]:
        given = (str(number), str(listener), str(line), str(config or ""), sample)
        return (sys.executable, *here, "-m", "penstock.cli.serving_process", *given)

    return words


def main() -> None:
    """Serve until the supervisor, or a signal, says that it is enough."""
    from penstock.app import serve
    from penstock.cli.welcome import welcome, welcome_with_sample
    from penstock.supervised import Post

    number, listener, line, config, sample = sys.argv[1:]
    desk = Desk(as_json=False, config=Path(config) if config else None, database_url=None, url=None, key=None)
    announce = welcome_with_sample if sample else welcome
    try:
        post = Post(int(number), _inherited(listener), _inherited(line))
        code = serve(desk.look(), reload=desk.look, announce=announce, post=post)
    except PenstockError as error:
        code = report(desk, error)
    sys.exit(code)


def _inherited(descriptor: str) -> socket.socket:
    """A socket by its descriptor, which processes started from here shall not inherit in turn."""
    inherited = socket.socket(fileno=int(descriptor))
    inherited.set_inheritable(False)
    return inherited


if __name__ == "__main__":
    main()
