"""What the tools worker can do, as sources of tools: each built-in is one, each MCP server is one.

`Toolbox` puts them together: stable names, no name twice, every failure a result that a model can read. It knows
nothing of gateways and connections (`worker.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from penstock.tools import Tool, ToolResult

T = TypeVar("T")
LONGEST_NAME = 64  # OpenAI's limit for a function's name
_logger = logging.getLogger("penstock.tools")


class ToolError(Exception):
    """A tool cannot do what was asked. The message is for the model."""


class Source(Protocol):
    """Some tools and how to run them."""

    def tools(self) -> tuple[Tool, ...]:
        """What there is at the moment."""
        ...

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        """Run one of them. ToolError for what the model should know; cancelling stops the work."""
        ...


class Toolbox:
    """All tools of a worker."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)

    def __repr__(self) -> str:
        return f"Toolbox({', '.join(tool.name for tool in self.tools())})"

    def tools(self) -> tuple[Tool, ...]:
        """Every tool under its name; of two with the same name the first counts."""
        found: dict[str, Tool] = {}
        for source in self._sources:
            for tool in source.tools():
                found.setdefault(tool.name, tool)
        return tuple(found.values())

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        """The tool's result. What goes wrong is a failed result and never an exception, but for cancellation."""
        source = next((each for each in self._sources if any(tool.name == name for tool in each.tools())), None)
        if source is None:
            return ToolResult(f"There is no tool '{name[:LONGEST_NAME]}'.", failed=True)
        try:
            async with asyncio.timeout(within_s):
                return await source.run(name, arguments, within_s=within_s)
        except TimeoutError:
            return ToolResult(f"The tool took longer than {within_s:g} seconds and was stopped.", failed=True)
        except ToolError as error:
            return ToolResult(str(error), failed=True)
        except Exception:
            _logger.exception("the tool %s failed", name)
            return ToolResult("The tool failed.", failed=True)


def arguments_as(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """The arguments as a struct; ToolError saying what is wrong with them."""
    try:
        return msgspec.convert(dict(arguments), kind)
    except msgspec.ValidationError as error:
        raise ToolError(f"The arguments are wrong: {error}.") from None


def schema_of(kind: type[Any], **descriptions: str) -> dict[str, Any]:
    """The JSON schema of a struct of arguments, with a description for each field."""
    _, components = msgspec.json.schema_components((kind,))
    schema = dict(components[kind.__name__])
    properties = {name: {**field, "description": descriptions[name]} for name, field in schema["properties"].items()}
    required = schema.get("required", [])
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def function_name(server: str, tool: str) -> str:
    """`server__tool` as a valid function name, the same each time: what cannot stand in one becomes `_`.

    A name that had to be shortened or changed ends in six characters of a digest, so that two stay two.
    """
    written = f"{server}__{tool}"
    name = re.sub(r"[^A-Za-z0-9_-]", "_", written)
    if name == written and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(written.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - 7]}_{digest}"


def cut(text: str, most_bytes: int) -> str:
    """The text, or the beginning of it and a word on how much is missing."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return text
    return f"{encoded[:most_bytes].decode('utf-8', 'ignore')}\n[cut: {len(encoded) - most_bytes} bytes more]"
