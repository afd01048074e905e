"""How models of each dialect write calls: a function of names and arguments per dialect, as their chat templates do it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Calls = list[tuple[str, dict[str, Any]]]
Writer = Callable[[Calls], str]

FUNCTIONS: Mapping[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "places": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""What the tests offer."""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _objects(calls: Calls, key: str = "arguments") -> str:
    return _json([{"name": name, key: arguments} for name, arguments in calls])


def _tagged(opens: str, closes: str) -> Writer:
    return lambda calls: "\n".join(
        f"{opens}\n{_json({'name': name, 'arguments': arguments})}\n{closes}" for name, arguments in calls
    )


def _bare(calls: Calls) -> str:
    return "; ".join(_json({"name": name, "parameters": arguments}) for name, arguments in calls)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _functions(opens: str, closes: str) -> Writer:
    def write(calls: Calls) -> str:
        written = []
        for name, arguments in calls:
            inside = "".join(f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in arguments.items())
            written.append(f"{opens}\n<function={name}>\n{inside}</function>\n{closes}")
        return "\n".join(written)

    return write


def _invoked(calls: Calls) -> str:
    written = []
    for name, arguments in calls:
        inside = "".join(f'<parameter name="{key}">{_text(value)}</parameter>\n' for key, value in arguments.items())
        written.append(f'<invoke name="{name}">\n{inside}</invoke>\n')
    return f"<minimax:tool_call>\n{''.join(written)}</minimax:tool_call>"


def _glm(newline: str) -> Writer:
    def write(calls: Calls) -> str:
        return "\n".join(
            f"<tool_call>{name}{newline}"
            + "".join(
                f"<arg_key>{key}</arg_key>{newline}<arg_value>{_text(value)}</arg_value>{newline}"
                for key, value in arguments.items()
            )
            + "</tool_call>"
            for name, arguments in calls
        )

    return write


def _python(value: Any) -> str:
    return repr(value)


def _pythonic(calls: Calls) -> str:
    written = (
        f"{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})" for name, arguments in calls
    )
    return f"[{', '.join(written)}]"


def _olmo(calls: Calls) -> str:
    written = (f"{name}({', '.join(f'{k}={_python(v)}' for k, v in arguments.items())})" for name, arguments in calls)
    return "<function_calls>" + "\n".join(written) + "</function_calls>"


def _gemma(opens: str, quote: str, closes: str) -> Writer:
    def value_of(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{value_of(each)}" for key, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(value_of, value)) + "]"
        return _json(value)

    return lambda calls: "".join(f"{opens}call:{name}{value_of(arguments)}{closes}" for name, arguments in calls)


def _deepseek_v3(calls: Calls) -> str:
    written = (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return "<｜tool▁calls▁begin｜>" + "\n".join(written) + "<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Calls) -> str:
    written = (f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{_json(arguments)}<｜tool▁call▁end｜>" for name, arguments in calls)
    return "<｜tool▁calls▁begin｜>" + "".join(written) + "<｜tool▁calls▁end｜>"


def _kimi(calls: Calls) -> str:
    written = (
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{_json(arguments)}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    )
    return "<|tool_calls_section_begin|>" + "".join(written) + "<|tool_calls_section_end|>"


def _cohere(calls: Calls) -> str:
    written = [
        {"tool_call_id": str(place), "tool_name": name, "parameters": arguments}
        for place, (name, arguments) in enumerate(calls)
    ]
    return f"<|START_ACTION|>{_json(written)}<|END_ACTION|>"


def _step3(calls: Calls) -> str:
    written = []
    for name, arguments in calls:
        inside = "".join(
            f'<steptml:parameter name="{key}">{_text(value)}</steptml:parameter>\n' for key, value in arguments.items()
        )
        call = f'function<｜tool_sep｜><steptml:invoke name="{name}">\n{inside}</steptml:invoke>'
        written.append(f"<｜tool_call_begin｜>{call}<｜tool_call_end｜>\n")
    return f"<｜tool_calls_begin｜>\n{''.join(written)}<｜tool_calls_end｜>"


WRITERS: Mapping[str, Writer] = {
    "cohere_command3": _cohere,
    "cohere_command4": _cohere,
    "step3": _step3,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "functiongemma": _gemma("<start_function_call>", "<escape>", "<end_function_call>"),
    "gemma4": _gemma("<|tool_call>", '<|"|>', "<tool_call|>"),
    "glm45": _glm("\n"),
    "glm47": _glm(""),
    "granite": lambda calls: "<|tool_call|>" + _objects(calls),
    "granite-20b-fc": lambda calls: "\n".join(
        "<function_call> " + _json({"name": name, "arguments": arguments}) for name, arguments in calls
    ),
    "granite4": _tagged("<tool_call>", "</tool_call>"),
    "hermes": _tagged("<tool_call>", "</tool_call>"),
    "hunyuan_a13b": lambda calls: f"<tool_calls>{_objects(calls)}</tool_calls>",
    "jamba": lambda calls: f"<tool_calls>{_objects(calls)}</tool_calls>",
    "kimi_k2": _kimi,
    "lfm2": lambda calls: f"<|tool_call_start|>{_pythonic(calls)}<|tool_call_end|>",
    "llama3_json": _bare,
    "llama4_json": _bare,
    "llama4_pythonic": _pythonic,
    "longcat": _tagged("<longcat_tool_call>", "</longcat_tool_call>"),
    "mimo": _functions("<tool_call>", "</tool_call>"),
    "minimax_m2": _invoked,
    "mistral": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}" for name, arguments in calls),
    "olmo3": _olmo,
    "phi4_mini_json": lambda calls: "functools" + _objects(calls),
    "pythonic": _pythonic,
    "qwen3_coder": _functions("<tool_call>", "</tool_call>"),
    "qwen3_xml": _functions("<tool_call>", "</tool_call>"),
    "seed_oss": _functions("<seed:tool_call>", "</seed:tool_call>"),
    "xlam": _objects,
}


def openai(calls: Calls) -> str:
    """Calls of gpt-oss, after a prompt that ends with the role."""
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{_json(arguments)}<|call|>"
        for name, arguments in calls
    )
