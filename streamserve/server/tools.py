"""The tools of a chat request: checked, written for the template, and turned into what the answer must be.

Pure functions. A call that the request demands is enforced by a grammar, so it needs no model that was trained on tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.schemas import ChatRequest
from streamserve.text.call_schema import ANY_ARGUMENTS, Function, arguments_schema, call_schema
from streamserve.types import StructuredOutputs

NONE, AUTO, REQUIRED, NAMED = "none", "auto", "required", "named"
MAX_TOOLS = 512
"""Tools of one request."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says about calling tools.

    tools     as templates know them
    choice    none, auto, required or named
    name      the function that must be called, when named
    parallel  whether there may be several calls
    strict    names of the functions whose arguments must keep to their schemas in free answers, too
    """

    tools: list[dict[str, Any]] = []
    choice: str = NONE
    name: str = ""
    parallel: bool = True
    strict: frozenset[str] = frozenset()

    @property
    def is_forced(self) -> bool:
        """Whether the whole answer must be calls."""
        return self.choice in (REQUIRED, NAMED)

    def grammar(self) -> StructuredOutputs:
        """The language of a forced answer: the arguments of the named function, or an array of name and parameters."""
        functions = self.functions(every=True)
        if self.choice == NAMED:
            return StructuredOutputs(json=next(dict(one.arguments) for one in functions if one.name == self.name))
        call, definitions = call_schema(functions, "parameters")
        bounds = {"minItems": 1} if self.parallel else {"minItems": 1, "maxItems": 1}
        return StructuredOutputs(json={"type": "array", **bounds, "items": call, "$defs": definitions})

    def functions(self, *, every: bool = False) -> list[Function]:
        """The functions with the schemas that their arguments must keep to: all of them, or only where the tool is strict."""
        return [
            Function(
                _name(tool),
                arguments_schema(tool["function"]["parameters"]) if every or _name(tool) in self.strict else ANY_ARGUMENTS,
            )
            for tool in self.tools
        ]


def tool_use(asked: ChatRequest) -> ToolUse:
    """Check `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises `InvalidParameter` or `UnsupportedParameter` naming the place.
    """
    tools = checked_tools(asked.tools or [])
    choice, name = _choice(asked.tool_choice, tools)
    strict = frozenset(tool["function"]["name"] for tool in asked.tools or [] if tool["function"].get("strict"))
    return ToolUse(tools=tools, choice=choice, name=name, parallel=asked.parallel_tool_calls is not False, strict=strict)


def checked_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as templates know them. Raises `InvalidParameter` or `UnsupportedParameter` naming the place."""
    if len(tools) > MAX_TOOLS:
        raise InvalidParameter("tools", f"must be at most {MAX_TOOLS}, got {len(tools)}")
    written = [_written(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    names: set[str] = set()
    for index, tool in enumerate(written):
        if _name(tool) in names:
            raise InvalidParameter(f"tools[{index}].function.name", f"{_name(tool)!r} is there already")
        names.add(_name(tool))
    return written


def _written(where: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    """One tool with its fields in the order that models were trained on, and nothing else."""
    kind = tool.get("type", "function")
    if kind != "function":
        raise UnsupportedParameter(f"{where}.type", f"{kind!r}: the only type is function")
    function = tool.get("function")
    where = f"{where}.function"
    if not isinstance(function, dict):
        raise InvalidParameter(where, "must be an object")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidParameter(f"{where}.name", "must be 1 to 128 letters, digits or any of _ - . : /")
    if not isinstance(parameters, dict | None):
        raise InvalidParameter(f"{where}.parameters", "must be a JSON schema")
    if parameters and parameters.get("type", "object") != "object":
        raise InvalidParameter(f"{where}.parameters.type", 'must be "object"')
    for field, type_, what in (("description", str, "a string"), ("strict", bool, "a boolean")):
        if not isinstance(function.get(field), type_ | None):
            raise InvalidParameter(f"{where}.{field}", f"must be {what}")
    described = {} if function.get("description") is None else {"description": function["description"]}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters or _NO_PARAMETERS}}


def _choice(choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The kind of choice, and the name of a named one."""
    if choice is None or choice == AUTO:
        return (AUTO if tools else NONE), ""
    if choice == NONE:
        return NONE, ""
    if choice != REQUIRED and isinstance(choice, str):
        raise InvalidParameter("tool_choice", "must be none, auto, required or a function to call")
    if not tools:
        raise InvalidParameter("tool_choice", "needs tools")
    if isinstance(choice, str):
        return REQUIRED, ""
    return NAMED, _named(choice, tools)


def _named(choice: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str:
    if choice.get("type", "function") != "function":
        raise UnsupportedParameter("tool_choice.type", f"{choice['type']!r}: name one function, or say required")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidParameter("tool_choice.function.name", "must be a string")
    if not any(_name(tool) == name for tool in tools):
        raise InvalidParameter("tool_choice.function.name", f"{name!r} is not among the tools")
    return name


def _name(tool: Mapping[str, Any]) -> str:
    name: str = tool["function"]["name"]
    return name
