"""What a tool is, and what comes of calling one. Who runs tools, and for whom, is decided elsewhere."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Tool(Struct, frozen=True, gc=False):
    """A function that a model may call: a name of letters, digits, `_` and `-`, what it does, and the JSON schema of
    its arguments (an object)."""

    name: str
    description: str
    parameters: dict[str, Any]


class ToolResult(Struct, frozen=True, gc=False):
    """What a tool came to, as text for the model. A failed one is a result as well: the model may try otherwise."""

    text: str
    failed: bool = False
