"""Tools as an account may use them: what its connected workers offer, its rules, and one call of one tool.

`Tools` is asked once a call (`bench`), which is two look-ups in memory where an account has no worker. Whoever runs a
tool gets a result within the time there is, cut to the size there is; what cannot be run is an error by name. How calls
of tools fit into a completion is `toolloop.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import Struct

from penstock.clock import Clock
from penstock.config import ToolSettings
from penstock.db.program import Program
from penstock.db.store import Store
from penstock.db.tools import find_turns, own_policy, write_turns
from penstock.dialects.rounds import Kept
from penstock.errors import Forbidden, NotFound, PenstockError, RateLimited, StoreUnavailable, UpstreamUnavailable
from penstock.money.limits import arrive, retry_after_s
from penstock.ports import Toolshop
from penstock.tools import Tool, ToolResult

REMEMBER_S = 1.0  # as long as a caller is remembered: a rule that was changed counts after that
REMEMBER_MOST = 20_000
TURNS_MS = 24 * 3600 * 1000
LARGEST_TURNS = 4 * 1024 * 1024  # bytes; beyond that the caller's conversation goes on without them
MOST_TURNS = 16 * 1024 * 1024  # bytes for one request

_logger = logging.getLogger("penstock.tools")
_kept = msgspec.json.Decoder(Kept)


class Note(Struct, frozen=True, array_like=True):
    """One tool call in a usage record."""

    name: str
    round: int
    ms: int
    ok: bool
    bytes: int


_notes = msgspec.json.Decoder(list[Note])


class Bench(Struct, frozen=True, gc=False):
    """What one call may use: the tools that an account's rules leave of those on offer, and the rules."""

    account: str
    tools: tuple[Tool, ...]
    policy: ToolSettings
    size: int  # bytes of the definitions: they are a part of every prompt


class Tools:
    """The tools of every account. `settings` are the rules of who has none of its own; a reload swaps them."""

    def __init__(self, shop: Toolshop, store: Store, clock: Clock, settings: ToolSettings) -> None:
        self.settings = settings
        self._shop = shop
        self._store = store
        self.clock = clock
        self._policies: dict[str, tuple[ToolSettings, float]] = {}
        self._arrivals: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Tools({self._shop!r}, {len(self._policies)} policies remembered)"

    async def bench(self, account: str) -> Bench | None:
        """What a call for the account may use; None when that is nothing, as it is without a worker."""
        on_offer = self._shop.tools(account)
        if not on_offer:
            return None
        policy = await self.policy(account)
        usable = tuple(tool for tool in on_offer if permits(policy, tool.name))[: policy.definitions]
        size = sum(len(msgspec.json.encode(tool)) + 64 for tool in usable)
        return Bench(account, usable, policy, size) if usable else None

    def on_offer(self, account: str) -> tuple[Tool, ...]:
        """What connected workers offer the account, whatever its rules say."""
        return self._shop.tools(account)

    async def policy(self, account: str) -> ToolSettings:
        """The rules for an account, as they were a second ago or later."""
        known = self._policies.get(account)
        if known is not None and known[1] > self.clock.monotonic():
            return known[0]
        policy = merged(self.settings, await self._store.read(own_policy(account)))
        if len(self._policies) >= REMEMBER_MOST:
            self._policies.clear()
        self._policies[account] = policy, self.clock.monotonic() + REMEMBER_S
        return policy

    async def use(self, account: str, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool that somebody names. UpstreamUnavailable without a worker, NotFound, Forbidden by the rules,
        RateLimited, UpstreamTimeout, UpstreamFailed."""
        on_offer = self.on_offer(account)
        if not on_offer:
            raise UpstreamUnavailable("No tools worker of this account is connected.", code="no_tools_worker")
        if all(tool.name != name for tool in on_offer):
            raise NotFound(f"There is no tool '{name[:64]}'.", code="tool_not_found")
        policy = await self.policy(account)
        if not permits(policy, name):
            raise Forbidden(f"The rules of this account do not allow the tool '{name}'.", code="tool_denied")
        return await self.run(account, policy, name, arguments)

    async def run(self, account: str, policy: ToolSettings, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run a tool within the rules' time and size. NotFound, RateLimited, UpstreamUnavailable, UpstreamTimeout,
        UpstreamFailed."""
        self._count(account, policy.calls_per_minute)
        result = await self._shop.execute(account, name, arguments, within_s=policy.timeout_s)
        return ToolResult(_cut(result.text, policy.result_bytes), result.failed)

    def _count(self, account: str, per_minute: int) -> None:
        """Count a tool call of the account, at this process. RateLimited."""
        now_us = self.clock.now_ms() * 1000
        if len(self._arrivals) >= REMEMBER_MOST:
            self._arrivals.clear()
        self._arrivals[account], wait_us = arrive(self._arrivals.get(account, 0), now_us, per_minute)
        if wait_us:
            raise RateLimited("Too many tool calls of this account.", retry_after_s=retry_after_s(wait_us))

    # Turns that callers have not seen. Without them a conversation is poorer, not wrong.

    async def keep(self, digest: str, kept: Kept) -> None:
        """Keep turns for the caller's next request."""
        turns = msgspec.json.encode(kept)
        if len(turns) > LARGEST_TURNS:
            return
        await self._quietly(self._store.write, write_turns(digest, turns, self.clock.now_ms() + TURNS_MS))

    async def kept(self, digests: tuple[str, ...]) -> dict[str, Kept]:
        """What was kept under these digests; the newest of them when that is very much."""
        found = await self._quietly(self._store.read, find_turns(digests, self.clock.now_ms(), MOST_TURNS))
        return {digest: _kept.decode(turns) for digest, turns in (found or {}).items()}

    async def _quietly(self, do: Any, program: Program[Any]) -> Any:
        try:
            return await do(program)
        except StoreUnavailable as error:
            _logger.warning("turns of a conversation are not to be had: %s", error.message)
            return None


def notes_of(written: str | None) -> list[Note]:
    """The tool calls in a usage record."""
    return [] if written is None else _notes.decode(written)


def permits(policy: ToolSettings, name: str) -> bool:
    """Whether rules allow a tool."""
    allowed = any(fnmatchcase(name, pattern) for pattern in policy.allow)
    return policy.enabled and allowed and not any(fnmatchcase(name, pattern) for pattern in policy.deny)


def merged(settings: ToolSettings, own: Mapping[str, Any]) -> ToolSettings:
    """The common rules with an account's own in their place."""
    changes: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    return replace(settings, **changes)


def as_result(error: PenstockError) -> ToolResult:
    """What a model is told of a call that could not be made."""
    return ToolResult(error.message, failed=True)


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return text
    return f"{encoded[:most_bytes].decode('utf-8', 'ignore')}\n[cut: {len(encoded) - most_bytes} bytes more]"
