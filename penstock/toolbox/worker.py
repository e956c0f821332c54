"""A tools worker: a toolbox, and a line to a gateway by which its jobs come.

It dials out, announces its tools, runs what it is asked to run and announces anew when an MCP server comes or goes.
Whom it serves is decided by its key, and what may be run by the gateway's rules; it keeps nothing of either.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from penstock import __version__
from penstock.errors import ConfigError
from penstock.hub.dialer import Dialer, GivenJob, JobError, or_stop
from penstock.hub.messages import DEEPEST, Offer, ToolOffer, is_deep
from penstock.toolbox.settings import ToolsSettings
from penstock.toolbox.shop import open_toolbox
from penstock.toolbox.source import Toolbox

CONNECT = "/api/tools/v1/connect"
LONGEST_DESCRIPTION = 20_000
MOST_TOOLS = 512
LARGEST_OFFER = 200 * 1024  # bytes of all tools; a gateway hangs up on who announces more than 256 KiB
HEADERS = {"content-type": "application/json"}

_logger = logging.getLogger("penstock.tools")


class _Wanted(Struct):
    """The body of a job."""

    name: str
    arguments: dict[str, Any]
    within_s: Annotated[float, Meta(gt=0, le=600)] = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `penstock tools-worker` is told. `slots` is how many tools run at once, `grace_s` is for those under way
    after SIGTERM."""

    gateway: str
    key: str = field(repr=False)
    tools: ToolsSettings
    slots: int = 16
    grace_s: float = 10.0


async def work(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way. ConfigError, RefusedError."""
    stopping, changed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        opening = stack.enter_async_context(open_toolbox(options.tools, changed.set))
        toolbox = await or_stop(opening, stopping)
        if toolbox is not None:
            await _serve(options, toolbox, stopping, changed)


async def _serve(options: Options, toolbox: Toolbox, stopping: asyncio.Event, changed: asyncio.Event) -> None:
    agent = f"penstock-tools-worker/{__version__}"
    offer = offer_of(toolbox, options.slots)
    try:
        dialer = Dialer(options.gateway, CONNECT, options.key, offer, Run(toolbox), agent=agent)
    except ValueError as error:
        raise ConfigError([f"gateway: {error}"]) from None
    _logger.info("offers %s", ", ".join(tool.name for tool in offer.tools) or "nothing yet")
    running = asyncio.create_task(dialer.run())
    announcing = asyncio.create_task(_announce(options, toolbox, dialer, changed))
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([running, stop], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            dialer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(running), options.grace_s)
        if running.done():
            running.result()
    finally:
        for task in (announcing, running, stop):
            task.cancel()
        await asyncio.gather(announcing, running, stop, return_exceptions=True)


async def _announce(options: Options, toolbox: Toolbox, dialer: Dialer, changed: asyncio.Event) -> None:
    """Offer what there is whenever that has changed."""
    while True:
        await changed.wait()
        changed.clear()
        await dialer.announce(offer_of(toolbox, options.slots))


def offer_of(toolbox: Toolbox, slots: int) -> Offer:
    """What a toolbox has, as it is announced: as many tools as fit, in their order."""
    tools: list[ToolOffer] = []
    left_out: list[str] = []
    left = LARGEST_OFFER
    for tool in toolbox.tools():
        if is_deep(tool.parameters):
            _logger.warning("%s is not offered: its schema is nested deeper than %d", tool.name, DEEPEST)
            continue
        offered = ToolOffer(tool.name, tool.description[:LONGEST_DESCRIPTION], tool.parameters)
        size = len(msgspec.json.encode(offered)) + 1
        if size > left or len(tools) == MOST_TOOLS:
            left_out.append(tool.name)
        else:
            left -= size
            tools.append(offered)
    if left_out:
        _logger.warning("%d tools are not offered, there is no room for them: %s", len(left_out), ", ".join(left_out))
    return Offer(slots=slots, tools=tuple(tools))


class Run:
    """Does jobs by running tools."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    def __repr__(self) -> str:
        return f"Run({self._toolbox!r})"

    async def __call__(self, job: GivenJob) -> None:
        """Send a tool's result. JobError for what is no such job."""
        try:
            wanted = msgspec.json.decode(await job.body(), type=_Wanted)
        except (ValueError, RecursionError):
            raise JobError("The job is not one of running a tool.") from None
        if job.path != "execute":
            raise JobError("A tools worker runs tools and nothing else.")
        result = await self._toolbox.run(wanted.name, wanted.arguments, within_s=wanted.within_s)
        await job.head(200, HEADERS)
        await job.piece(msgspec.json.encode(result))
