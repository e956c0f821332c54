"""The page at `/docs`: the management API's OpenAPI document as plain HTML. No script, nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8884; padding: .5rem 0 1rem }
h2 { font-size: 1.05rem; margin: .5rem 0 }
code, pre { font: .9em ui-monospace, monospace }
.method { display: inline-block; min-width: 4.5em; font-weight: 600 }
table { border-collapse: collapse; font-size: .9rem }
td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; vertical-align: top }
"""


def render(document: dict[str, Any]) -> str:
    """The whole page for an OpenAPI document."""
    operations = "".join(_operations(document))
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>Every call needs <code>Authorization: Bearer</code> and a management key or a session "
        f'token. The same as <a href="openapi.json">OpenAPI document</a>.</p>{operations}</body></html>'
    )


def _operations(document: dict[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows = "".join(_row(*each) for each in _parameters(document, operation))
            table = f"<table><tr><th>parameter<th>in<th>type<th></tr>{rows}</table>" if rows else ""
            yield (
                f'<section id="{escape(operation["operationId"])}"><h2><span class="method">{escape(method.upper())}'
                f"</span> <code>{escape(path)}</code></h2><p>{_prose(operation.get('summary', ''))}</p>"
                f"<p>{_prose(operation.get('description', ''))}</p>{table}</section>"
            )


def _prose(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _parameters(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """`(name, where, type, required)` of what an operation takes."""
    for each in operation.get("parameters", ()):
        yield each["name"], each["in"], _type(each.get("schema", {})), each.get("required", False)
    content = operation.get("requestBody", {}).get("content", {})
    for media in content.values():
        schema = _resolved(document, media["schema"])
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            yield name, "body", _type(field), name in required


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema a reference leads to; of several, the first that is an object."""
    for candidate in (schema, *schema.get("anyOf", ())):
        if "$ref" in candidate:
            found: dict[str, Any] = document["components"]["schemas"][candidate["$ref"].rpartition("/")[2]]
            return found
    return schema


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(each) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _row(name: str, where: str, kind: str, required: bool) -> str:
    needed = "required" if required else ""
    return f"<tr><td><code>{escape(name)}</code><td>{where}<td>{escape(kind)}<td>{needed}</tr>"
