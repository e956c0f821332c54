"""Which addresses tools may connect to, as tables: in every notation, and whatever DNS says."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from penstock.toolbox.addresses import AddressRefused, SystemResolver, Target, is_public, target

PRIVATE = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # a cloud's metadata service in the shared range
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's platform service, at a public address
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",  # 169.254.169.254
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata service
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
    "",
    "1.1.1.1.",
    "0x7f.1",
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_no_tool_connects_to_what_is_not_on_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_fine(address: str) -> None:
    assert is_public(address)


async def _answers(*addresses: str) -> Target:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return await target("example.com", 443, resolve)


async def test_the_address_that_was_checked_is_the_one_to_connect_to() -> None:
    assert await _answers("1.1.1.1", "8.8.8.8") == Target("example.com", 443, "1.1.1.1")


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("1.1.1.1", "127.0.0.1"), ("::1", "1.1.1.1"), ()])
async def test_a_name_with_a_private_address_or_none_is_refused(addresses: tuple[str, ...]) -> None:
    with pytest.raises(AddressRefused):
        await _answers(*addresses)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001", "0x7f.1", "0", "[::1]", "::1"],
)
async def test_a_number_in_any_notation_is_what_the_system_makes_of_it(host: str) -> None:
    with pytest.raises(AddressRefused):
        await target(host, 80, SystemResolver())


@pytest.mark.parametrize("host", ["", "x" * 254, "a..b", "\N{SNOWMAN}" * 64])
async def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused):
        await target(host, 80, SystemResolver())


async def test_names_that_nobody_answers_for_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look(host: str, port: int, type: int, flags: int) -> list[tuple[object, ...]]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        if host == "dead.example":
            answered.wait()
            raise socket.gaierror
        return [(socket.AF_INET, type, 0, "", ("1.1.1.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    resolve = SystemResolver()
    dead = [asyncio.create_task(resolve("dead.example", 80)) for _ in range(100)]
    try:
        await asyncio.sleep(0)  # for all to have begun; then their callers give up
        for task in dead:
            task.cancel()
        async with asyncio.timeout(10):
            assert await resolve("live.example", 80) == ["1.1.1.1"]
    finally:
        answered.set()
        await asyncio.gather(*dead, return_exceptions=True)
