"""How many tokens a prompt has, before anything is asked about it. It costs nothing: Anthropic counts for free, and for
everybody else there is the estimate by which a call that nobody counted is charged."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.dialects import Wish, anthropic_messages
from penstock.dialects.usage import Count
from penstock.errors import UpstreamError
from penstock.ports import Call, Provider
from penstock.relay.route import Plan

LARGEST_COUNT = 64 * 1024  # bytes of an answer that is a number


class _Count(msgspec.Struct):
    input_tokens: Count


async def count(
    wish: Wish, plan: Plan, providers: Mapping[str, Provider], headers: tuple[tuple[bytes, bytes], ...]
) -> int:
    """The count of the first offer that counts, or else the estimate."""
    for offer in plan.offers:
        provider = providers.get(offer.provider)
        if provider is None or anthropic_messages.NAME not in offer.speaks:
            continue
        if wish.stored is not None and not offer.shared_files:
            continue
        body = anthropic_messages.request(
            wish, model=offer.model, output_limit=None, limit_field=offer.limit_field, ask_usage=False
        )
        call = Call(f"{anthropic_messages.PATH}/count_tokens", body, False, headers, model=offer.model)
        counted = await _ask(provider, call)
        if counted is not None:
            return counted
    return plan.input_estimate


async def _ask(provider: Provider, call: Call) -> int | None:
    """What a provider counts; None when it does not, for whatever reason."""
    try:
        answer = await provider.open(call)
        try:
            if answer.status != 200:
                return None
            return msgspec.json.decode(await answer.read(LARGEST_COUNT), type=_Count).input_tokens
        finally:
            answer.close()
    except (UpstreamError, ValueError, RecursionError):
        return None
