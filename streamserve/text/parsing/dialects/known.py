"""The dialects that are known, by vLLM's names of their parsers.

What models write is from their chat templates and model cards, and from vLLM's documentation
(https://docs.vllm.ai/en/latest/features/tool_calling/, …/reasoning_outputs/).
"""

from __future__ import annotations

from collections.abc import Mapping

from streamserve.text.parsing.formats import (
    PYTHON_WORDS,
    CallFormat,
    CallList,
    ChannelFormat,
    Literals,
    Mark,
    NamedCall,
    ObjectCall,
    Parameters,
    ReasoningFormat,
)


def _marks(*texts: str) -> tuple[Mark, ...]:
    return tuple(Mark((text,)) for text in texts)


def _array(call: ObjectCall | NamedCall) -> CallList:
    return CallList(call=call, opens="[", separator=",", closes="]")


_OBJECT = CallList(call=ObjectCall())
_OBJECTS = _array(ObjectCall())
_PYTHON = Literals(opens="(", closes=")", assigns="=", quotes=("'", '"'), escapes=True, words=PYTHON_WORDS)
_PYTHON_CALL = NamedCall(arguments=_PYTHON)


def _invoked(opens: str, closes: str, function: tuple[str, str, str], parameter: Parameters) -> CallFormat:
    """Calls as elements that name their function, of elements that name their parameters."""
    before, between, after = (_marks(text) for text in function)
    call = NamedCall(before=before, between=between, arguments=parameter, after=after)
    return CallFormat(opens=(opens,), closes=(closes,), lists=(CallList(call=call, separator=""),))


def _named_functions(opens: str, closes: str) -> CallFormat:
    parameter = Parameters(opens="<parameter=", middle=(">",), closes="</parameter>", padded=True)
    return _invoked(opens, closes, ("<function=", ">", "</function>"), parameter)


def _gemma(opens: str, quote: str, closes: str) -> CallFormat:
    arguments = Literals(opens="{", closes="}", assigns=":", quotes=(quote,))
    call = NamedCall(before=_marks(opens, "call:"), arguments=arguments, after=_marks(closes))
    return CallFormat(lists=(CallList(call=call, separator=""),))


def _deepseek(before: tuple[str, ...], between: tuple[str, ...], after: tuple[str, ...]) -> CallFormat:
    call = NamedCall(
        before=_marks("<｜tool▁call▁begin｜>", *before),
        between=_marks(*between),
        after=_marks(*after, "<｜tool▁call▁end｜>"),
    )
    return CallFormat(
        opens=("<｜tool▁calls▁begin｜>",), closes=("<｜tool▁calls▁end｜>",), lists=(CallList(call=call, separator=""),)
    )


_COHERE = CallFormat(
    opens=("<|START_ACTION|>",),
    closes=("<|END_ACTION|>",),
    lists=(_array(ObjectCall(id_key="tool_call_id", name_key="tool_name", arguments_key="parameters")),),
)
_GLM_PARAMETER = Parameters(opens="<arg_key>", middle=("</arg_key>", "<arg_value>"), closes="</arg_value>")
_GLM = CallFormat(opens=("<tool_call>",), closes=("</tool_call>",), lists=(CallList(call=NamedCall(arguments=_GLM_PARAMETER)),))
_HERMES = CallFormat(opens=("<tool_call>",), closes=("</tool_call>",), lists=(_OBJECT,))
_QWEN_XML = _named_functions("<tool_call>", "</tool_call>")
_JAMBA = CallFormat(opens=("<tool_calls>",), closes=("</tool_calls>",), lists=(_OBJECTS,))
_LLAMA_JSON = CallFormat(
    is_bare=True,
    leads=("<|python_tag|>",),
    lists=(CallList(call=ObjectCall(arguments_key="parameters"), separator=";"),),
)

CALL_FORMATS: Mapping[str, CallFormat] = {
    "cohere_command3": _COHERE,
    "cohere_command4": _COHERE,
    "deepseek_v3": _deepseek(("function", "<｜tool▁sep｜>"), ("```json",), ("```",)),
    "deepseek_v31": _deepseek((), ("<｜tool▁sep｜>",), ()),
    "functiongemma": _gemma("<start_function_call>", "<escape>", "<end_function_call>"),
    "gemma4": _gemma("<|tool_call>", '<|"|>', "<tool_call|>"),
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": CallFormat(opens=("<|tool_call|>", "<tool_call>"), closes=("</tool_call>",), lists=(_OBJECTS,)),
    "granite-20b-fc": CallFormat(opens=("<function_call>",), lists=(_OBJECT,)),
    "granite4": _HERMES,
    "hermes": _HERMES,
    "hunyuan_a13b": _JAMBA,
    "jamba": _JAMBA,
    "kimi_k2": CallFormat(
        opens=("<|tool_calls_section_begin|>",),
        closes=("<|tool_calls_section_end|>",),
        lists=(
            CallList(
                call=NamedCall(
                    before=_marks("<|tool_call_begin|>"),
                    prefix="functions.",
                    name_is_id=True,
                    between=_marks("<|tool_call_argument_begin|>"),
                    after=_marks("<|tool_call_end|>"),
                ),
                separator="",
            ),
        ),
    ),
    "lfm2": CallFormat(opens=("<|tool_call_start|>",), closes=("<|tool_call_end|>",), lists=(_array(_PYTHON_CALL),)),
    "llama3_json": _LLAMA_JSON,
    "llama4_json": _LLAMA_JSON,
    "llama4_pythonic": CallFormat(
        is_bare=True, leads=("<|python_start|>",), closes=("<|python_end|>",), lists=(_array(_PYTHON_CALL),)
    ),
    "longcat": CallFormat(opens=("<longcat_tool_call>",), closes=("</longcat_tool_call>",), lists=(_OBJECT,)),
    "mimo": _QWEN_XML,
    "minimax_m2": _invoked(
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        ('<invoke name="', '">', "</invoke>"),
        Parameters(opens='<parameter name="', middle=('">',), closes="</parameter>"),
    ),
    "mistral": CallFormat(
        opens=("[TOOL_CALLS]",),
        lists=(_OBJECTS, CallList(call=NamedCall(id_mark="[CALL_ID]", between=(Mark(("[ARGS]",), optional=True),)))),
    ),
    "olmo3": CallFormat(
        opens=("<function_calls>",), closes=("</function_calls>",), lists=(CallList(call=_PYTHON_CALL, separator=""),)
    ),
    "phi4_mini_json": CallFormat(opens=("functools", "<|tool_call|>"), closes=("<|/tool_call|>",), lists=(_OBJECTS,)),
    "pythonic": CallFormat(is_bare=True, lists=(_array(_PYTHON_CALL),)),
    "qwen3_coder": _QWEN_XML,
    "qwen3_xml": _QWEN_XML,
    "seed_oss": _named_functions("<seed:tool_call>", "</seed:tool_call>"),
    "step3": CallFormat(
        opens=("<｜tool_calls_begin｜>",),
        closes=("<｜tool_calls_end｜>",),
        lists=(
            CallList(
                call=NamedCall(
                    before=_marks("<｜tool_call_begin｜>", "function", "<｜tool_sep｜>", '<steptml:invoke name="'),
                    between=_marks('">'),
                    arguments=Parameters(opens='<steptml:parameter name="', middle=('">',), closes="</steptml:parameter>"),
                    after=_marks("</steptml:invoke>", "<｜tool_call_end｜>"),
                ),
                separator="",
            ),
        ),
    ),
    "xlam": CallFormat(is_bare=True, lists=(_OBJECTS,)),
}

CHANNELS = ChannelFormat(
    begins="<|start|>",
    role="assistant",
    channel="<|channel|>",
    constraint="<|constrain|>",
    body="<|message|>",
    ends=("<|end|>", "<|call|>", "<|return|>"),
    recipient="to=",
    prefix="functions.",
    reasoning="analysis",
    calls="commentary",
    final="final",
)
CHANNEL_CALLS, CHANNEL_REASONING = "openai", "openai_gptoss"
"""The names of the parsers of what is one format here."""

_THINK = ReasoningFormat(opens=("<think>",), closes=("</think>",))
_ALWAYS_THINK = ReasoningFormat(opens=("<think>",), closes=("</think>",), always=True)
_COHERE_THINKING = ReasoningFormat(opens=("<|START_THINKING|>",), closes=("<|END_THINKING|>",))

REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "cohere_command3": _COHERE_THINKING,
    "cohere_command4": _COHERE_THINKING,
    "deepseek_r1": _ALWAYS_THINK,
    "deepseek_v3": _THINK,
    "gemma4": ReasoningFormat(opens=("<|channel>thought",), closes=("<channel|>",)),
    "glm45": _THINK,
    "glm47": _THINK,
    "granite": ReasoningFormat(
        opens=("Here is my thought process:", "Here's my thought process:"),
        closes=("Here is my response:", "Here's my response:"),
    ),
    "kimi_k2": ReasoningFormat(opens=("<think>",), closes=("</think>",), ended_by=("<|tool_calls_section_begin|>",)),
    "mimo": _THINK,
    "minimax_m2": _ALWAYS_THINK,
    "mistral": ReasoningFormat(opens=("[THINK]",), closes=("[/THINK]",)),
    "olmo3": _THINK,
    "qwen3": _THINK,
    "seed_oss": ReasoningFormat(opens=("<seed:think>",), closes=("</seed:think>",)),
    "step3": _ALWAYS_THINK,
}

TOOL_CALL_PARSERS = tuple(sorted([*CALL_FORMATS, CHANNEL_CALLS]))
"""What --tool-call-parser takes."""

REASONING_PARSERS = tuple(sorted([*REASONING_FORMATS, CHANNEL_REASONING]))
"""What --reasoning-parser takes."""
