"""The tools of a Responses request as chat has them, functions all, and the calls a model makes as items again.

    function         the same                         function_call
    custom           one string, `input`              custom_tool_call     (its grammar goes into the description)
    local_shell      a function of that name          local_shell_call
    namespace        each tool under `space__name`    function_call with `namespace`, or custom_tool_call

Tools that a provider of Responses runs itself (file search, computers, containers, MCP) have nobody to run them behind
chat and are refused by name. So is a web search, unless it is one offer among others that nobody insists on, as Codex
makes it in every request: then the model is not offered it, and the response's `tools`, which repeat what the model was
given, do not have it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, Struct

from penstock.dialects import json_fields
from penstock.dialects.json_fields import plain
from penstock.errors import InvalidRequest

Item = dict[str, Any]

LOCAL_SHELL = "local_shell"
_INPUT_SCHEMA: Item = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as it is."}},
    "required": ["input"],
    "additionalProperties": False,
}
_SHELL_SCHEMA: Item = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The command and its arguments."},
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "timeout_ms": {"type": "integer"},
        "user": {"type": "string"},
        "working_directory": {"type": "string"},
    },
    "required": ["command"],
}
_KNOWN = {
    "function": frozenset({"type", "name", "description", "parameters", "strict"}),
    "custom": frozenset({"type", "name", "description", "format"}),
    "namespace": frozenset({"type", "name", "description", "tools"}),
    LOCAL_SHELL: frozenset({"type"}),
}
_SEARCHES = frozenset({"web_search", "web_search_preview"})
_PREFIXES = {"function": "fc", "custom": "ctc", LOCAL_SHELL: "lsh"}


class Tool(Struct, frozen=True, gc=False):
    """A tool as its caller knows it: `kind` is `function`, `custom` or `local_shell`."""

    kind: str
    name: str
    namespace: str | None = None

    @property
    def prefix(self) -> str:
        """What the ids of its calls begin with."""
        return _PREFIXES[self.kind]


class Tools:
    """The tools of one request. `definitions` are chat's, `given` the caller's that the model gets; `named`
    finds the caller's tool by its name in chat."""

    def __init__(self, fields: Mapping[str, Raw]) -> None:
        self.definitions: list[Item] = []
        self._named: dict[str, Tool] = {}
        tools = plain(fields.get("tools")) or []
        if not isinstance(tools, list):
            raise InvalidRequest("'tools' must be a list.", param="tools")
        insisted = plain(fields.get("tool_choice")) not in (None, "auto", "none")
        keeps_searches = insisted or all(_is_search(tool) for tool in tools)
        self.given: list[Any] = []
        for place, tool in enumerate(tools):
            if keeps_searches or not _is_search(tool):
                self.given.append(tool)
                self._add(tool, f"tools[{place}]", None)

    def __repr__(self) -> str:
        return f"Tools({', '.join(self._named)})"

    def named(self, name: str) -> Tool:
        """The caller's tool that is called so in chat; one it did not name is a function."""
        return self._named.get(name) or Tool("function", name)

    def choice(self, fields: Mapping[str, Raw]) -> tuple[list[Item], Any]:
        """`(the definitions to send, chat's tool_choice)`; None for a choice that need not be said."""
        choice = plain(fields.get("tool_choice"))
        if not self.definitions:
            if choice in (None, "auto", "none"):
                return [], None
            raise InvalidRequest("'tool_choice' asks for a tool, and there are none.", param="tool_choice")
        if choice is None or choice in ("auto", "none", "required"):
            return self.definitions, choice
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            return self._allowed(choice)
        return self.definitions, {"type": "function", "function": {"name": self._chosen(choice, "tool_choice")}}

    def _allowed(self, choice: Item) -> tuple[list[Item], Any]:
        """Only the allowed tools are shown: every server understands that."""
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or choice.get("mode") not in ("auto", "required"):
            raise InvalidRequest("'tool_choice' must have a 'mode' and a list of 'tools'.", param="tool_choice")
        names = {self._chosen(each, f"tool_choice.tools[{place}]") for place, each in enumerate(allowed)}
        return [each for each in self.definitions if each["function"]["name"] in names], choice["mode"]

    def _chosen(self, choice: Any, where: str) -> str:
        kind = choice.get("type") if isinstance(choice, dict) else None
        if isinstance(kind, str) and kind in _PREFIXES:
            name, namespace = choice.get("name"), choice.get("namespace")
            name = flat_name(LOCAL_SHELL if kind == LOCAL_SHELL else name, namespace)
            if name in self._named and self._named[name].kind == kind:
                return name
        raise InvalidRequest(f"'{where}' names no tool of this request that can be served here.", param=where)

    def _add(self, tool: Any, where: str, namespace: str | None) -> None:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind not in _KNOWN or (namespace is not None and kind not in _PREFIXES):
            shown = f" of type '{kind[:50]}'" if isinstance(kind, str) else ""
            raise InvalidRequest(f"'{where}' is a tool{shown} that the provider of this model cannot run.", param=where)
        unknown = next((name for name in tool if name not in _KNOWN[kind] and tool[name] not in (None, False)), None)
        if unknown is not None:
            raise InvalidRequest(
                f"'{where}.{unknown[:50]}' cannot be carried to the provider of this model.",
                param=f"{where}.{unknown[:50]}",
            )
        if kind == "namespace":
            self._add_namespace(tool, where)
            return
        name = LOCAL_SHELL if kind == LOCAL_SHELL else tool.get("name")
        flat = flat_name(name, namespace)
        if not flat or flat in self._named:
            raise InvalidRequest(f"'{where}.name' must be a name that no other tool has.", param=f"{where}.name")
        self._named[flat] = Tool(kind, str(name), namespace)
        self.definitions.append({"type": "function", "function": {"name": flat, **_definition(kind, tool)}})

    def _add_namespace(self, tool: Item, where: str) -> None:
        inner, name = tool.get("tools"), tool.get("name")
        if not isinstance(inner, list) or not isinstance(name, str) or not name:
            raise InvalidRequest(f"'{where}' must have a name and a list of 'tools'.", param=where)
        for place, each in enumerate(inner):
            self._add(each, f"{where}.tools[{place}]", name)


def _is_search(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") in _SEARCHES


def flat_name(name: Any, namespace: Any) -> str:
    """What a tool is called in chat, which has no namespaces; empty when it has no name."""
    if not isinstance(name, str) or not isinstance(namespace, str) or not namespace:
        return name if isinstance(name, str) else ""
    return f"{namespace.removesuffix('__')}__{name}"


def _definition(kind: str, tool: Item) -> Item:
    described = {"description": tool["description"]} if tool.get("description") else {}
    if kind == "custom":
        return {"description": _with_format(tool), "parameters": _INPUT_SCHEMA}
    if kind == LOCAL_SHELL:
        return {"description": "Run a command on the user's machine.", "parameters": _SHELL_SCHEMA}
    strict = {"strict": tool["strict"]} if tool.get("strict") is not None else {}
    parameters = {"parameters": tool["parameters"]} if tool.get("parameters") is not None else {}
    return {**described, **parameters, **strict}


def _with_format(tool: Item) -> str:
    """What a model is told about a tool whose input chat cannot hold to a grammar."""
    description = str(tool.get("description") or "")
    format = tool.get("format")
    if not isinstance(format, dict) or format.get("type") != "grammar":
        return description
    rule = f"The input must match this {format.get('syntax')} grammar:\n\n{format.get('definition')}"
    return f"{description}\n\n{rule}".strip()


# Calls, there and back.


def call_arguments(item: Item) -> str:
    """The arguments, in chat, of a call that an input item repeats."""
    match item.get("type"):
        case "custom_tool_call":
            return json_fields.join({"input": item.get("input") or ""}).decode()
        case "local_shell_call":
            action = item.get("action")
            given = action if isinstance(action, dict) else {}
            return json_fields.join({k: v for k, v in given.items() if k != "type" and v is not None}).decode()
    return str(item.get("arguments") or "")


def new_call(tool: Tool, *, id: str, call_id: str) -> Item:
    """The item of a call that begins."""
    space = {"namespace": tool.namespace} if tool.namespace else {}
    if tool.kind == "custom":
        return {"id": id, "type": "custom_tool_call", "call_id": call_id, "name": tool.name, **space, "input": ""}
    if tool.kind == LOCAL_SHELL:
        action = {"type": "exec", "command": [], "env": {}}
        return {"id": id, "type": "local_shell_call", "call_id": call_id, "action": action, "status": "in_progress"}
    begun = {"id": id, "type": "function_call", "status": "in_progress", "call_id": call_id, "name": tool.name}
    return {**begun, **space, "arguments": ""}


def input_of(arguments: str) -> str:
    """The input of a custom tool, from the arguments a model gave; all of them when it did not keep to the form."""
    given = plain(Raw(arguments.encode(errors="surrogatepass")))
    if isinstance(given, dict):
        texts = [
            value for name, value in given.items() if isinstance(value, str) and (name == "input" or len(given) == 1)
        ]
        if texts:
            return texts[0]
    return given if isinstance(given, str) else arguments


def action_of(arguments: str) -> Item:
    """The action of a local shell, from the arguments a model gave."""
    given = plain(Raw(arguments.encode(errors="surrogatepass")))
    given = given if isinstance(given, dict) else {}
    command, env = given.get("command"), given.get("env")
    words = command if isinstance(command, list) else [] if command is None else ["sh", "-c", str(command)]
    action: Item = {"type": "exec", "command": [str(word) for word in words]}
    action["env"] = {str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {}
    more = {"timeout_ms": int, "user": str, "working_directory": str}
    return action | {name: given[name] for name, kind in more.items() if isinstance(given.get(name), kind)}
