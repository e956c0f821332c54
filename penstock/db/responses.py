"""Responses that are kept: what their callers may continue, refer to, look at and delete.

Every look-up names the account, so that an id is worth nothing to another one. A response holds only what was new with
it and the id of the one it continued; a conversation is the chain of them. What continues a response keeps it: their
expiry moves together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from sqlalchemy import Integer, bindparam, delete, func, literal_column, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.types import BigInteger

from penstock.db.program import Program, Run, Statement, any_of, fetch
from penstock.db.schema import response_items, responses

MOST_TURNS = 10_000  # of a conversation: a bound for the query, far beyond what a request body could hold
READ_AT_ONCE = 4 * 1024 * 1024  # bytes of a conversation, so that no question of a few bytes fills the memory
FORGET_AT_ONCE = 500  # responses in one transaction, so that nobody waits long behind it

_c = responses.c
_names = tuple(column.name for column in responses.columns)
KEEP = Statement(insert(responses).values({name: bindparam(name) for name in _names}).on_conflict_do_nothing(), *_names)
_item_names = ("account_id", "item_id", "response_id")
KEEP_ITEM = Statement(
    insert(response_items).values({name: bindparam(name) for name in _item_names}).on_conflict_do_nothing(),
    *_item_names,
)
LIVE_LONGER = Statement(
    update(responses)
    .where(_c.account_id == bindparam("account"), _c.id == bindparam("response"), _c.expires_ms < bindparam("least"))
    .values(expires_ms=bindparam("until")),
    "account", "response", "least", "until",
)  # fmt: skip
_links = (
    select(_c.id, _c.previous_id, _c.size_bytes, literal_column("0", Integer).label("age"))
    .where(_c.account_id == bindparam("account"), _c.id == bindparam("response"), _c.expires_ms > bindparam("now"))
    .cte("links", recursive=True)
)
_links = _links.union_all(
    select(_c.id, _c.previous_id, _c.size_bytes, _links.c.age + 1)
    .join(_links, _c.id == _links.c.previous_id)
    .where(_c.account_id == bindparam("account"), _c.expires_ms > bindparam("now"), _links.c.age < bindparam("most"))
)
LINKS = Statement(
    select(_links.c.id, _links.c.previous_id, _links.c.size_bytes).order_by(_links.c.age.desc()),
    "account", "response", "now", "most",
)  # fmt: skip
TURNS = Statement(
    select(*responses.columns).where(_c.account_id == bindparam("account"), any_of(_c.id, "responses")),
    "account", "responses",
)  # fmt: skip
HOLDERS = Statement(
    select(response_items.c.item_id, response_items.c.response_id).where(
        response_items.c.account_id == bindparam("account"), any_of(response_items.c.item_id, "items")
    ),
    "account", "items",
)  # fmt: skip
ANSWER = Statement(
    select(_c.answer).where(
        _c.account_id == bindparam("account"), _c.id == bindparam("response"), _c.expires_ms > bindparam("now")
    ),
    "account", "response", "now",
)  # fmt: skip
FORGET = Statement(
    delete(responses).where(_c.account_id == bindparam("account"), _c.id == bindparam("response")),
    "account", "response",
)  # fmt: skip
FORGET_ITEMS = Statement(
    delete(response_items).where(
        response_items.c.account_id == bindparam("account"), response_items.c.response_id == bindparam("response")
    ),
    "account", "response",
)  # fmt: skip
EXPIRED = Statement(
    select(_c.account_id, _c.id).where(_c.expires_ms <= bindparam("now")).limit(bindparam("most", type_=Integer)),
    "now", "most",
)  # fmt: skip
_most_bytes = bindparam("most_bytes", type_=BigInteger)
_large = select(_c.account_id).group_by(_c.account_id).having(func.sum(_c.size_bytes) > _most_bytes)
_ranked = (
    select(
        _c.account_id,
        _c.id,
        func.sum(_c.size_bytes)
        .over(partition_by=_c.account_id, order_by=(_c.created_ms.desc(), _c.id.desc()))
        .label("newer_bytes"),
    )
    .where(_c.account_id.in_(_large))
    .subquery()
)
BEYOND = Statement(
    select(_ranked.c.account_id, _ranked.c.id)
    .where(_ranked.c.newer_bytes > _most_bytes)
    .limit(bindparam("most", type_=Integer)),
    "most_bytes", "most",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response that is kept. Column for column the table `responses`; `input` and `answer` are JSON."""

    account_id: str
    id: str
    previous_id: str | None
    input: str
    answer: str
    size_bytes: int
    created_ms: int
    expires_ms: int


def keep(response: KeptResponse, *, items: Sequence[str], ancestors: Sequence[str]) -> Program[None]:
    """Keep a response whose answer has these items, and with it the ones that it continues."""
    account, until_ms = response.account_id, response.expires_ms
    yield Run(KEEP, [astuple(response)])
    if items:
        yield Run(KEEP_ITEM, [(account, item, response.id) for item in items])
    if ancestors:
        yield Run(LIVE_LONGER, [(account, ancestor, until_ms, until_ms) for ancestor in ancestors])


@dataclass(frozen=True, slots=True)
class Link:
    """A response in a conversation, by its id and the bytes that it takes."""

    id: str
    size_bytes: int


def conversation(account: str, response: str, now_ms: int) -> Program[list[Link]]:
    """A response after all that it continues, oldest first. Empty when any of them is not, or no longer, there."""
    rows = yield from fetch(LINKS, account, response, now_ms, MOST_TURNS)
    return [] if not rows or rows[0][1] is not None else [Link(id, size_bytes) for id, _, size_bytes in rows]


def parts(links: Sequence[Link]) -> Iterator[list[str]]:
    """The ids of a conversation, in parts that may be read at once."""
    part: list[str] = []
    size_bytes = 0
    for link in links:
        size_bytes += link.size_bytes
        if part and size_bytes > READ_AT_ONCE:
            yield part
            part, size_bytes = [], link.size_bytes
        part.append(link.id)
    if part:
        yield part


def turns(account: str, responses: Sequence[str]) -> Program[list[KeptResponse]]:
    """The responses of these ids, in their order, those of them that are there."""
    rows = yield from fetch(TURNS, account, list(responses))
    found = {turn.id: turn for turn in (KeptResponse(*row) for row in rows)}
    return [found[id] for id in responses if id in found]


def find(account: str, response: str, now_ms: int) -> Program[KeptResponse | None]:
    """A response by its id, whatever has become of those that it continues."""
    found = yield from turns(account, [response])
    return found[0] if found and found[0].expires_ms > now_ms else None


def holders(account: str, items: Sequence[str]) -> Program[dict[str, list[str]]]:
    """In which responses these items are, those of them that are kept: by a response's id the ids of its items."""
    rows = yield from fetch(HOLDERS, account, sorted(set(items)))
    found: dict[str, list[str]] = {}
    for item, response in rows:
        found.setdefault(response, []).append(item)
    return found


def answer_of(account: str, response: str, now_ms: int) -> Program[str | None]:
    """The answer (JSON) of a response that is kept, without what it was an answer to."""
    rows = yield from fetch(ANSWER, account, response, now_ms)
    return str(rows[0][0]) if rows else None


def drop(account: str, response: str, now_ms: int) -> Program[bool]:
    """Delete a response; whether it was there."""
    found = yield from find(account, response, now_ms)
    if found is not None:
        yield Run(FORGET, [(account, response)])
        yield Run(FORGET_ITEMS, [(account, response)])
    return found is not None


def forget(now_ms: int, most_bytes: int) -> Program[int]:
    """Delete what has expired, and of accounts with more than `most_bytes` the oldest; how many. A part at a time: call
    again while there is something."""
    rows = yield from fetch(EXPIRED, now_ms, FORGET_AT_ONCE)
    rows = rows or (yield from fetch(BEYOND, most_bytes, FORGET_AT_ONCE))
    if rows:
        yield Run(FORGET, [tuple(row) for row in rows])
        yield Run(FORGET_ITEMS, [tuple(row) for row in rows])
    return len(rows)
