"""The sockets of several processes at one address: which connections come to which, and who else may not be there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from penstock.api.listener import BACKLOG, SPREADS, bind_apart, listen, url_of, withdraw
from penstock.config import ServerSettings
from penstock.errors import ConfigError

Sockets = list[socket.socket]


def hosts() -> list[str]:
    """Addresses of this machine, of both kinds where it has both."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return ["127.0.0.1", "localhost", "::1"]
    except OSError:
        return ["127.0.0.1", "localhost"]


@pytest.fixture(params=hosts())
def settings(request: pytest.FixtureRequest) -> ServerSettings:
    return ServerSettings(host=request.param, port=0)


@pytest.fixture
def sockets(settings: ServerSettings) -> Iterator[Sockets]:
    """Two, neither of which listens."""
    with ExitStack() as stack:
        yield [stack.enter_context(bound) for bound in bind_apart(settings, 2)]


def connections(sockets: Sockets, count: int) -> list[int]:
    """Make so many connections to the address; how many came to each socket, as far as it listens."""
    taken = []
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(sockets[0].getsockname()[:2], timeout=10))
        for listener in sockets:
            taken.append(0)
            listener.setblocking(False)
            try:
                while True:
                    listener.accept()[0].close()
                    taken[-1] += 1
            except OSError:  # none is left, or it does not listen
                pass
    return taken


def test_connections_come_only_where_somebody_listens(sockets: Sockets) -> None:
    with pytest.raises(ConnectionRefusedError):
        connections(sockets, 1)
    sockets[1].listen(BACKLOG)
    assert connections(sockets, 32) == [0, 32]
    sockets[0].listen(BACKLOG)
    both = connections(sockets, 128)
    assert sum(both) == 128
    assert not SPREADS or min(both) > 32
    withdraw(sockets[1])
    assert connections(sockets, 32) == [32, 0]
    sockets[1].listen(BACKLOG)
    assert connections(sockets, 128)[1] > 0


def test_a_second_gateway_at_the_address_is_refused(settings: ServerSettings, sockets: Sockets) -> None:
    sockets[0].listen(BACKLOG)
    taken = ServerSettings(host=settings.host, port=sockets[0].getsockname()[1])
    for open_another in (listen, lambda taken: bind_apart(taken, 2)):
        with pytest.raises(ConfigError, match="cannot listen"):
            open_another(taken)


@pytest.mark.parametrize("listened", [False, True], ids=["never listened", "listened before"])
def test_what_is_withdrawn_while_nobody_listens_can_be_listened_on_later(sockets: Sockets, listened: bool) -> None:
    """As often as its process could not start."""
    if listened:
        sockets[0].listen(BACKLOG)
    for _ in range(3):
        withdraw(sockets[0])
    sockets[0].listen(BACKLOG)
    with socket.create_connection(sockets[0].getsockname()[:2], timeout=10) as caller:
        caller.sendall(b"one")
        with sockets[0].accept()[0] as taken:
            taken.settimeout(10)
            assert taken.recv(8) == b"one"
            caller.sendall(b"two")
            assert taken.recv(8) == b"two"


def test_the_url_is_one_that_can_be_called(settings: ServerSettings, sockets: Sockets) -> None:
    port = sockets[0].getsockname()[1]
    assert url_of(sockets[0], settings.host) in (f"http://{settings.host}:{port}", f"http://[::1]:{port}")
    assert url_of(sockets[0], "0.0.0.0") == f"http://127.0.0.1:{port}"
