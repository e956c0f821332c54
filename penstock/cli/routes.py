"""Commands about where calls go: what accounts and keys want of routing, why an offer has its place, who is healthy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.cli.desk import Desk, ExitCode
from penstock.cli.show import show_fields, show_json, show_table
from penstock.operations.choices import SurfaceChoice

OfAccount = Annotated[str | None, typer.Option(help="Calls of this account.", metavar="ACCOUNT")]
OfKey = Annotated[str | None, typer.Option("--key-id", help="Calls with the key of this id.", metavar="KEY")]
PATTERN = "PATTERN"
PLACE_COLUMNS = ("place", "provider", "provider_class", "model", "state", "outstanding", "reason")
LEFT_OUT_COLUMNS = ("provider", "provider_class", "model", "reason")
PULSE_COLUMNS = ("provider", "class", "healthy", "state", "check_ms", "latency_ms", "outstanding", "models", "trouble")
WORKER_COLUMNS = ("worker", "account", "shared", "models", "slots", "outstanding")


def show(desk: Desk, account: OfAccount = None, key: OfKey = None) -> None:
    """Show what an account or a key wants of routing."""
    _show(desk, desk.perform("routes.show", account=account, key=key))


def set_route(
    desk: Desk,
    account: OfAccount = None,
    key: OfKey = None,
    order: Annotated[
        list[str] | None,
        typer.Option(help="A class, provider or model to try next; repeat for more.", metavar=PATTERN),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="What alone may be used; repeat for more.", metavar=PATTERN)
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(help="What is never used; repeat for more.", metavar=PATTERN)
    ] = None,
) -> None:
    """Set how calls of an account or a key are routed, in place of what was set before."""
    wanted = desk.perform(
        "routes.set", account=account, key=key, order=order or None, allow=allow or None, deny=deny or None
    )
    _show(desk, wanted)


def clear(desk: Desk, account: OfAccount = None, key: OfKey = None) -> None:
    """Clear what an account or a key wants of routing."""
    _show(desk, desk.perform("routes.clear", account=account, key=key))


def explain(
    desk: Desk,
    model: Annotated[str, typer.Argument(help="A model, or auto.", metavar="MODEL")],
    account: OfAccount = None,
    key: OfKey = None,
    needs: Annotated[
        str | None, typer.Option(help="What the call needs: tools, images, json_schema; with commas between.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="What prompt and answer come to.", metavar="N")] = None,
    surface: Annotated[SurfaceChoice | None, typer.Option(help="Where it is called; else the router.")] = None,
) -> None:
    """Explain where a call would go now: offers in their order, and those left out, with reasons."""
    found = desk.perform(
        "routes.explain",
        model=model,
        account=account,
        key=key,
        needs=[need.strip() for need in needs.split(",")] if needs else None,
        tokens=tokens,
        surface=surface,
    )
    if desk.as_json:
        return show_json(found)
    if found["order"]:
        show_table(found["order"], PLACE_COLUMNS)
    else:
        typer.echo("No offer would be tried.")
    if found["left_out"]:
        typer.echo("\nleft out:")
        show_table(found["left_out"], LEFT_OUT_COLUMNS)
    return None


def pulse(desk: Desk) -> None:
    """Check every provider at once, within ten seconds. Ends with 6 when none is healthy."""
    found = desk.perform("pulse")
    if desk.as_json:
        show_json(found)
    else:
        show_table([_row(each) for each in found["providers"]], PULSE_COLUMNS)
        if found["workers"]:
            show_table(found["workers"], WORKER_COLUMNS)
    raise typer.Exit(ExitCode.DONE if found["healthy"] else ExitCode.NOBODY_HEALTHY)


def _row(provider: dict[str, Any]) -> dict[str, Any]:
    """A provider in a line, with what was wrong with it last."""
    trouble = provider["check_error"] or next(iter(provider["errors"]), None)
    words = f"{trouble['at']} {trouble['message'] or trouble['kind']}" if trouble else None
    return provider | {"class": provider["provider_class"], "trouble": words}


def _show(desk: Desk, wanted: dict[str, Any]) -> None:
    if desk.as_json:
        return show_json(wanted)
    show_fields(wanted)
    return None if wanted["updated"] else typer.echo("It wants nothing of its own.")
