"""The tools of a chat request: checked, written for the template, and turned into what the answer must be.

Pure functions. A call that the request demands is enforced by a grammar, so it needs no model that was trained on tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.openai.requests.schemas import ChatRequest
from streamserve.text.schemas.call_schema import ANY_ARGUMENTS, Function, arguments_schema, call_schema
from streamserve.text.schemas.weakening import weakened
from streamserve.types import StructuredOutputs

NONE, AUTO, REQUIRED, NAMED = "none", "auto", "required", "named"
ALLOWED = "allowed_tools"
MAX_TOOLS = 512
"""Tools of one request."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request and how they may be called.

    tools     as templates know them
    choice    none, auto, required or named
    name      the function that must be called, when named
    parallel  whether there may be several calls
    strict    names of the functions whose arguments must keep to their schemas in free answers, too
    allowed   names of the only functions that may be called; None for all of them
    """

    tools: list[dict[str, Any]] = []
    choice: str = NONE
    name: str = ""
    parallel: bool = True
    strict: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None

    @property
    def is_confined(self) -> bool:
        """Whether calls in free answers must be other than the model likes."""
        return self.allowed is not None or bool(self.strict)

    @property
    def is_forced(self) -> bool:
        """Whether the whole answer must be calls."""
        return self.choice in (REQUIRED, NAMED)

    def grammar(self) -> StructuredOutputs:
        """The language of a forced answer without a dialect: the arguments of the named function, or an array of calls."""
        functions = self.functions(every=True)
        if self.choice == NAMED:
            return StructuredOutputs(json=next(dict(one.arguments) for one in functions if one.name == self.name))
        call, definitions = call_schema(functions, "parameters")
        bounds = {"minItems": 1} if self.parallel else {"minItems": 1, "maxItems": 1}
        return StructuredOutputs(json={"type": "array", **bounds, "items": call, "$defs": definitions})

    def functions(self, *, every: bool = False) -> list[Function]:
        """What may or must be called, with the schemas that arguments must keep to: those of all tools, or of strict ones."""
        return [
            Function(
                _name(tool),
                weakened(_arguments(tool))[0] if every or _name(tool) in self.strict else ANY_ARGUMENTS,
            )
            for tool in self.tools
            if (self.allowed is None or _name(tool) in self.allowed) and (self.choice != NAMED or _name(tool) == self.name)
        ]

    def not_enforced(self) -> list[str]:
        """What of the schemas that arguments must keep to is beyond grammars: `tools.NAME.KEYWORD`."""
        enforced = [tool for tool in self.tools if self.is_forced or _name(tool) in self.strict]
        return [f"tools.{_name(tool)}.{keyword}" for tool in enforced for keyword in sorted(weakened(_arguments(tool))[1])]


def tool_use(request: ChatRequest) -> ToolUse:
    """Check `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises `InvalidParameter` or `UnsupportedParameter` naming the place.
    """
    tools = checked_tools(request.tools or [])
    choice = _choice(request.tool_choice, tools)
    strict = frozenset(tool["function"]["name"] for tool in request.tools or [] if tool["function"].get("strict"))
    parallel = request.parallel_tool_calls is not False
    return ToolUse(tools=tools, parallel=parallel, strict=strict, **choice._asdict())


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


class _ToolChoice(NamedTuple):
    """`tool_choice`, in the fields of `ToolUse`."""

    choice: str
    name: str = ""
    allowed: frozenset[str] | None = None


def _choice(choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> _ToolChoice:
    if choice is None or choice == AUTO:
        return _ToolChoice(AUTO if tools else NONE)
    if choice == NONE:
        return _ToolChoice(NONE)
    if choice != REQUIRED and isinstance(choice, str):
        raise InvalidParameter("tool_choice", "must be none, auto, required or a function to call")
    if not tools:
        raise InvalidParameter("tool_choice", "needs tools")
    if isinstance(choice, str):
        return _ToolChoice(REQUIRED)
    kind = choice.get("type", "function")
    if kind == ALLOWED:
        return _allowed(choice.get(ALLOWED), tools)
    if kind != "function":
        raise UnsupportedParameter("tool_choice.type", f"{kind!r}: name one function, or say required or {ALLOWED}")
    return _ToolChoice(NAMED, _named("tool_choice", choice, tools))


def _allowed(value: Any, tools: Sequence[Mapping[str, Any]]) -> _ToolChoice:
    """`allowed_tools`: all tools are in the prompt, and some of them may be called."""
    where = f"tool_choice.{ALLOWED}"
    if not isinstance(value, dict):
        raise InvalidParameter(where, "must be an object")
    mode, named = value.get("mode"), value.get("tools")
    if mode not in (AUTO, REQUIRED):
        raise InvalidParameter(f"{where}.mode", f"must be {AUTO} or {REQUIRED}")
    if not isinstance(named, list) or not named:
        raise InvalidParameter(f"{where}.tools", "must name at least one tool")
    return _ToolChoice(
        mode, allowed=frozenset(_allowed_name(f"{where}.tools[{index}]", tool, tools) for index, tool in enumerate(named))
    )


def _allowed_name(where: str, value: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    kind = value.get("type", "function") if isinstance(value, dict) else None
    if kind != "function":
        raise UnsupportedParameter(f"{where}.type", f"{kind!r}: the only type is function")
    return _named(where, value, tools)


def _named(where: str, value: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str:
    """The function that is named at this place."""
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise InvalidParameter(f"{where}.function.name", "must be a string")
    if not any(_name(tool) == name for tool in tools):
        raise InvalidParameter(f"{where}.function.name", f"{name!r} is not among the tools")
    return name


def _arguments(tool: Mapping[str, Any]) -> dict[str, Any]:
    return arguments_schema(tool["function"]["parameters"])


def _name(tool: Mapping[str, Any]) -> str:
    name: str = tool["function"]["name"]
    return name
