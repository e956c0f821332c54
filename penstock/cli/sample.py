"""A sample account to try the gateway with: credit on the money lane, a small contract lot, a key for each surface."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.operations.actor import LOCAL
from penstock.operations.balances import grant_balance
from penstock.operations.choices import KeyKind
from penstock.operations.keys import create_key
from penstock.operations.office import Office
from penstock.operations.users import UserView, create_user, list_users

NAME = "sample"
CREDIT_USD = "1.00"
KEY_HOURS = 24


@dataclass(frozen=True, slots=True)
class Sample:
    """Who may call what: one account, and three keys that all spend from it."""

    account: str
    router_key: str
    trust_key: str
    forward_key: str


async def open_sample(office: Office, *, contract_tokens: int) -> Sample:
    """The sample account, made and given money when it is not there yet, with new keys that end after a day."""
    user = await _find(office)
    if user is None:
        user = await create_user(office, LOCAL, name=NAME)
        await grant_balance(office, LOCAL, account=user.account, usd=CREDIT_USD, reference="sample")
        for contract in office.catalogue.contracts.values():
            if contract.expires_ms > office.clock.now_ms():
                await grant_balance(
                    office,
                    LOCAL,
                    account=user.account,
                    contract=contract.id,
                    tokens=contract_tokens,
                    reference="sample",
                )
    return Sample(
        account=user.account,
        router_key=await _key(office, "personal", user=user.id),
        trust_key=await _key(office, "account", user=user.id),
        forward_key=await _key(office, "inference", account=user.account),
    )


async def _key(office: Office, kind: KeyKind, *, user: str | None = None, account: str | None = None) -> str:
    minted = await create_key(
        office, LOCAL, kind=kind, name=NAME, user=user, account=account, expires=office.clock.after(hours=KEY_HOURS)
    )
    return minted.key


async def _find(office: Office) -> UserView | None:
    """The sample's user, if there is one."""
    page = await list_users(office, LOCAL)
    while True:
        found = next((each for each in page.data if each.name == NAME), None)
        if found is not None or page.next is None:
            return found
        page = await list_users(office, LOCAL, cursor=page.next)
