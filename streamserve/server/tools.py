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
from streamserve.types import StructuredOutputs

NONE, AUTO, REQUIRED, NAMED = "none", "auto", "required", "named"
MAX_TOOLS = 512
"""Tools of one request."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_TYPE_WORDS = ("type", "$ref", "anyOf", "oneOf", "allOf")


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says about calling tools.

    tools     as templates know them
    choice    none, auto, required or named
    name      the function that must be called, when named
    parallel  whether there may be several calls
    """

    tools: list[dict[str, Any]] = []
    choice: str = NONE
    name: str = ""
    parallel: bool = True

    @property
    def is_forced(self) -> bool:
        """Whether the whole answer must be calls."""
        return self.choice in (REQUIRED, NAMED)

    def grammar(self) -> StructuredOutputs:
        """The language of a forced answer: the arguments of the named function, or an array of name and parameters."""
        if self.choice == NAMED:
            return StructuredOutputs(json=next(_schema(tool) for tool in self.tools if _name(tool) == self.name))
        return StructuredOutputs(json=_schema_of_calls(self.tools, parallel=self.parallel))


def tool_use(asked: ChatRequest) -> ToolUse:
    """Check `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises `InvalidParameter` or `UnsupportedParameter` naming the place.
    """
    tools = checked_tools(asked.tools or [])
    choice, name = _choice(asked.tool_choice, tools)
    return ToolUse(tools=tools, choice=choice, name=name, parallel=asked.parallel_tool_calls is not False)


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


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, which are always an object."""
    parameters: dict[str, Any] = tool["function"]["parameters"]
    return parameters if any(word in parameters for word in _TYPE_WORDS) else {"type": "object", **parameters}


def _schema_of_calls(tools: Sequence[Mapping[str, Any]], *, parallel: bool) -> dict[str, Any]:
    """An array of calls; each tool's own schema is a definition, with its references moved along."""
    calls = [_schema_of_call(_name(tool), f"#/$defs/{place}") for place, tool in enumerate(tools)]
    bounds = {"minItems": 1} if parallel else {"minItems": 1, "maxItems": 1}
    definitions = {str(place): _moved(_schema(tool), f"#/$defs/{place}") for place, tool in enumerate(tools)}
    return {"type": "array", **bounds, "items": {"anyOf": calls}, "$defs": definitions}


def _schema_of_call(name: str, reference: str) -> dict[str, Any]:
    # The name comes first, so that a client learns what is called before the arguments.
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": reference}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references from its own root start at `root`; what is data in it stays as it is."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {
        key: value if key in ("const", "enum", "default", "examples") else _moved(value, root) for key, value in schema.items()
    }
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved
