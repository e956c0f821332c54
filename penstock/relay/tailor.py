"""A request cut to an offer: without what its provider refuses and nobody would miss, and refused where it asks for
something that costs what the offer's price does not cover.

Which fields these are is data on the offer (`penstock/vendors.py`). Plain functions; what a field means otherwise is
between the caller and the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw, json

from penstock.catalogue import Offer
from penstock.dialects import Wish, json_fields
from penstock.dialects.json_fields import Fields
from penstock.errors import InvalidRequest

# Values that ask for what would be had anyway.
_USUAL: Mapping[str, tuple[object, ...]] = {
    "service_tier": ("auto", "default", "standard", "standard_only", "on_demand"),
    "speed": ("standard",),
    "fallbacks": ("default",),
    "modalities": (["text"],),
}
_NOTHING: tuple[object, ...] = (None, False, [], "")


_TOOLS = json.Decoder(list[Fields])
_BETA = b"anthropic-beta"

Sent = tuple[tuple[bytes, bytes], ...]


def require_covered(wish: Wish, offer: Offer) -> None:
    """InvalidRequest, naming the field, for a wish that would cost more than the offer's price says."""
    for name in offer.priced_fields:
        if name in wish.fields and not _is_usual(name, wish.fields[name]):
            raise InvalidRequest(f"'{name}' changes what a call costs, and is not on offer here.", param=name)
    if offer.priced_tools and "tools" in wish.fields:
        _require_free_tools(wish.fields["tools"], offer.priced_tools)


def without_betas(headers: Sent, dropped: tuple[str, ...]) -> Sent:
    """The headers without betas that begin so, with which a provider would bill the same request otherwise. All other
    betas pass: they say how a body is read, and what costs extra in a body is refused there."""
    kept = [(name, _left(value, dropped) if name == _BETA else value) for name, value in headers]
    return tuple(each for each in kept if each[1])


def _left(betas: bytes, dropped: tuple[str, ...]) -> bytes:
    names = [name.strip() for name in betas.decode("latin-1").split(",")]
    return ",".join(name for name in names if not name.lower().startswith(dropped)).encode("latin-1")


def require_open(stored: str, offer: Offer) -> None:
    """InvalidRequest for a request that names, in the field `stored`, what a provider keeps for whoever has its key,
    unless the operator lets callers share that."""
    if not offer.shared_files:
        words = f"'{stored}' names what a provider keeps, which all callers here would share; send the thing itself."
        raise InvalidRequest(words, param=stored)


def cut(body: bytes, offer: Offer) -> bytes:
    """The body for upstream without the fields that its provider refuses."""
    if not offer.dropped_fields:
        return body
    fields = json_fields.split(body)
    kept = {name: raw for name, raw in fields.items() if name not in offer.dropped_fields}
    return body if len(kept) == len(fields) else json_fields.join(kept)


def _is_usual(name: str, raw: Raw) -> bool:
    value = json_fields.plain(raw)
    return value in _NOTHING or value in _USUAL.get(name, ())


def _require_free_tools(raw: Raw, priced: tuple[str, ...]) -> None:
    """Tools that the provider itself carries out are told by their type, and some by where they run; a function's own
    name does not matter."""
    written = bytes(raw)
    if b"\\u" not in written and not any(each.partition("/")[0].encode() in written for each in priced):
        return  # nearly always, and cheaper than reading it
    try:
        tools = _TOOLS.decode(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("'tools' must be a list of objects.", param="tools") from None
    for index, tool in enumerate(tools):
        kind = json_fields.plain(tool.get("type"))
        if isinstance(kind, str) and f"{kind}{_place(tool)}".startswith(priced):
            where = f"tools[{index}].type"
            raise InvalidRequest(f"'{where}': {kind[:50]} is billed apart, and is not on offer here.", param=where)


def _place(tool: Fields) -> str:
    """Where a tool that names an environment is run, as `priced_tools` has it: `/` and the environment's type."""
    environment = json_fields.plain(tool.get("environment"))
    return f"/{environment.get('type')}" if isinstance(environment, dict) else ""
