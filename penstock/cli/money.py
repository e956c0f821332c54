"""Commands about money: balances, grants, usage, what models cost, and whether the books add up."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.desk import Desk, ExitCode
from penstock.cli.show import show_fields, show_json, show_table, show_text
from penstock.operations.choices import Lane, State

AccountId = Annotated[str, typer.Argument(help="Account id (acc_…).", metavar="ACCOUNT")]
OfAccount = Annotated[str | None, typer.Option(help="Calls paid by this account.")]
OfKey = Annotated[str | None, typer.Option("--key-id", help="Calls with the key of this id.")]
OfModel = Annotated[str | None, typer.Option(help="Calls of this model.")]
OnLane = Annotated[Lane | None, typer.Option(help="Calls this lane paid for.")]
InState = Annotated[State | None, typer.Option(help="final, or review: how the call ended is not known.")]
Since = Annotated[str | None, typer.Option(help="Not before: a date or an instant, UTC.", metavar="TIME")]
Until = Annotated[str | None, typer.Option(help="Before: a date or an instant, UTC.", metavar="TIME")]
LOT_COLUMNS = ("contract", "remaining", "held", "available", "granted", "expires", "expired")
CALL_COLUMNS = (
    "created",
    "request",
    "model",
    "provider",
    "lane",
    "total_tokens",
    "cost",
    "status",
    "ended",
    "state",
    "tools",
)
SUM_COLUMNS = ("model", "lane", "asset", "requests", "input_tokens", "output_tokens", "cost", "uncollected", "review")


def balance(desk: Desk, account: AccountId) -> None:
    """Show what an account has."""
    found = desk.perform("balances.show", account=account)
    if desk.as_json:
        return show_json(found)
    show_fields(found["credits"])
    return show_table(found["contracts"], LOT_COLUMNS) if found["contracts"] else None


def grant(
    desk: Desk,
    account: AccountId,
    usd: Annotated[str | None, typer.Option(help="An amount of credit.", metavar="DOLLARS")] = None,
    contract: Annotated[str | None, typer.Option(help="Tokens of this contract.")] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens of the contract.", metavar="N")] = None,
    reference: Annotated[str | None, typer.Option(help="Kept in the journal: an invoice, a reason.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(help="The same command with the same key, within 24 hours, grants once.", metavar="KEY"),
    ] = None,
) -> None:
    """Put money into an account: --usd, or --contract and --tokens."""
    granted = desk.perform(
        "balances.grant",
        account=account,
        usd=usd,
        contract=contract,
        tokens=tokens,
        reference=reference,
        idempotency_key=idempotency_key,
    )
    show_json(granted) if desk.as_json else show_fields(granted)


def list_usage(
    desk: Desk,
    account: OfAccount = None,
    key: OfKey = None,
    model: OfModel = None,
    lane: OnLane = None,
    state: InState = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(help="How many, 1 to 1000; else 50.", metavar="N")] = None,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended.")] = None,
) -> None:
    """List calls, newest first."""
    page = desk.perform(
        "usage.list",
        account=account,
        key=key,
        model=model,
        lane=lane,
        state=state,
        since=since,
        until=until,
        limit=limit,
        cursor=cursor,
    )
    if desk.as_json:
        return show_json(page)
    show_table([each | {"tools": [tool["name"] for tool in each["tools"]]} for each in page["data"]], CALL_COLUMNS)
    return show_text(f"more: --cursor {page['next']}", err=True) if page["next"] else None


def summarize_usage(
    desk: Desk,
    account: OfAccount = None,
    key: OfKey = None,
    model: OfModel = None,
    lane: OnLane = None,
    state: InState = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Add up calls by model and lane."""
    summary = desk.perform(
        "usage.summary",
        account=account,
        key=key,
        model=model,
        lane=lane,
        state=state,
        since=since,
        until=until,
    )
    if desk.as_json:
        return show_json(summary)
    show_table(summary["data"], SUM_COLUMNS)
    return show_fields(summary)


def models(desk: Desk) -> None:
    """List models, with prices per million tokens."""
    found = desk.perform("models.list")
    if desk.as_json:
        return show_json(found)
    rows = [
        {"model": model["id"], "contract": (model["contract"] or {}).get("id"), "planned": model["planned"]}
        | {"provider": offer.get("provider")}
        | {name: (offer.get("price") or {}).get(name) for name in ("input", "cached_input", "output", "per_request")}
        for model in found["data"]
        for offer in model["offers"] or [{}]
    ]
    return show_table(rows, tuple(rows[0]) if rows else ("model",))


def discover(
    desk: Desk,
    provider: Annotated[str | None, typer.Argument(help="This one alone.", metavar="PROVIDER")] = None,
) -> None:
    """Ask providers which models they have, and show which of them are on offer here."""
    found = desk.perform("models.discover", provider=provider)
    if desk.as_json:
        return show_json(found)
    rows = []
    for each in found["data"]:
        name = {"provider": each["provider"]}
        rows += [name | {"model": m["name"], "offered_as": ", ".join(m["models"]) or None} for m in each["listed"]]
        rows += [name | {"model": missing, "note": "offered here, not listed there"} for missing in each["missing"]]
        if each["error"] or not each["listed"]:
            rows.append(name | {"note": each["error"] or "lists no models"})
    return show_table(rows, ("provider", "model", "offered_as", "note"))


def verify(desk: Desk) -> None:
    """Compute every balance anew and compare. Ends with 5 when the books do not add up."""
    desk.require_database()
    found = desk.perform("ledger.verify")
    if desk.as_json:
        show_json(found)
    elif found["ok"]:
        typer.echo("The books add up.")
    else:
        show_table(found["differences"], ("what", "written", "computed"))
    raise typer.Exit(ExitCode.DONE if found["ok"] else ExitCode.LEDGER_DIFFERS)
