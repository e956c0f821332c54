"""The socket that calls come in by; with several serving processes, one for each of them at the same address.

Each process has a socket of its own, so that the kernel spreads connections evenly: of one that all share, most would
go to whoever wakes up first. But the sockets are their supervisor's, and a process only borrows one. What waits in the
queue of a process that ends is not reset; its successor on the same socket takes it.

This is not the server (`server.py`) and knows no HTTP.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.config import ServerSettings
from penstock.errors import ConfigError

BACKLOG = 2048  # connections that may wait to be accepted: a burst of agents starting at once
SPREADS = sys.platform == "linux"  # elsewhere SO_REUSEPORT does not spread connections, so there one socket is shared


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens at the settings' address; port 0 takes any. ConfigError when it is taken."""
    with _told(settings):
        return socket.create_server((settings.host, settings.port), backlog=BACKLOG, family=_family(settings.host))


def bind_apart(settings: ServerSettings, count: int) -> list[socket.socket]:
    """Sockets for so many processes. None listens until its process does."""
    with listen(settings) as first:  # SO_REUSEPORT alone would let in two gateways at one address
        address = first.getsockname()
    with _told(settings):
        if SPREADS:
            return [_bound(_family(settings.host), address) for _ in range(count)]
        return [_bound(_family(settings.host), address)] * count


def withdraw(listener: socket.socket) -> None:
    """Have the kernel send connections to the other sockets, until somebody listens on this one again.

    One that does not listen is left alone: shut down, it would reset all that it is sent once somebody does.
    """
    if SPREADS and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.shutdown(socket.SHUT_RDWR)


def url_of(listener: socket.socket, host: str) -> str:
    """The address to call, for people and tests on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 -- shown
    return f"http://{shown}:{listener.getsockname()[1]}"


@contextmanager
def _told(settings: ServerSettings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise ConfigError([f"server: cannot listen on {where}: {error.strerror or error}"]) from error


def _bound(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if SPREADS:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind(address)
    return bound


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
