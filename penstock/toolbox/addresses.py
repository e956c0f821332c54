"""Which addresses a tool may connect to: public ones. From a URL to the one address that was checked, or a refusal.

What a model asks for must not reach what only this machine or its network can: loopback, private ranges, link-local
with the metadata services of clouds, and everything else that is not plainly on the internet. The check is on
addresses, after DNS, and whoever connects uses the address that comes out of here; so a name that answers otherwise
the next time changes nothing. This module resolves and judges; it does not connect.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import cast

from msgspec import Struct

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[list[str]]]

# At once. Each takes a thread until the system gives up on a name, half a minute, also when nobody waits any more: a
# worker's 16 slots, which wait for five seconds each, leave behind a hundred.
LOOKUPS = 512

# Public by number, and yet not the internet's: the platform service of Azure's hosts, protocol assignments (one cloud
# has its metadata there), the retired 6to4 relays.
_OURS_AFTER_ALL = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_UNICAST = IPv6Network("2000::/3")  # all that is given out to anybody
_TRANSLATED = IPv6Network("64:ff9b::/96")  # the last 32 bits are the IPv4 address that is meant
_COMPATIBLE = IPv6Network("::/96")  # an IPv4 address written as IPv6, as nobody has done for twenty years


class AddressRefused(Exception):
    """The host has an address that tools may not connect to, or none. The message is for the model and names none."""


class Target(Struct, frozen=True, gc=False):
    """A host and the address of it that was found fit to connect to."""

    host: str
    port: int
    address: str


async def target(host: str, port: int, resolve: Resolver, allowed: tuple[Network, ...] = ()) -> Target:
    """Where to connect for this host. AddressRefused unless every address that it has is public, or `allowed`."""
    if not host or len(host) > 253:
        raise AddressRefused("The URL names no host.")
    try:
        found = await resolve(host, port)
    except (OSError, UnicodeError):
        raise AddressRefused("The host cannot be resolved.") from None
    if not found:
        raise AddressRefused("The host cannot be resolved.")
    # One that is not public is enough: a name with both is an attempt to get past this check.
    if not all(is_public(each) or _is_allowed(each, allowed) for each in found):
        raise AddressRefused("The host is not on the public internet; tools do not connect to it.")
    return Target(host, port, found[0])


def is_public(written: str) -> bool:
    """Whether an address is one host's on the internet, in whichever way it is written down."""
    try:
        address = ip_address(written)
    except ValueError:
        return False
    return _is_public(address)


class SystemResolver:
    """The addresses of a host as this machine finds them: a `Resolver` with threads of its own, so that names which
    nobody answers for hold up other names only."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="resolver")

    def __repr__(self) -> str:
        return f"SystemResolver({LOOKUPS} at once)"

    async def __call__(self, host: str, port: int) -> list[str]:
        """OSError or UnicodeError when there are none."""
        try:
            return _addresses(host, port, socket.AI_NUMERICHOST)  # asks nobody
        except socket.gaierror:
            return await asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host, port, 0)


def _addresses(host: str, port: int, flags: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(cast(str, sockaddr[0]) for *_, sockaddr in found))


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.scope_id is not None or address.sixtofour is not None or address.teredo is not None:
            return False  # tunnels lead to an IPv4 address that the other end chooses
        inner = _inner(address)
        if inner is not None:
            return _is_public(inner)
        if address not in _UNICAST:
            return False
    elif any(address in network for network in _OURS_AFTER_ALL):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not address.is_loopback
        and not address.is_link_local
    )


def _is_allowed(written: str, allowed: tuple[Network, ...]) -> bool:
    address = ip_address(written) if allowed else None
    return address is not None and any(address.version == net.version and address in net for net in allowed)


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _TRANSLATED or address in _COMPATIBLE:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None
