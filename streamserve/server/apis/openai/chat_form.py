"""The form of answers to one chat: the grammar that confines them, and how a message is parsed from them.

Pure functions of the request, its prompt and the model's dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from streamserve.errors import UnsupportedParameter
from streamserve.frontend import Frontend
from streamserve.server.apis.openai.messages import text_of
from streamserve.server.apis.openai.parameters import answer_schema, is_constrained
from streamserve.server.apis.openai.reading import Reading, new_call_id, new_mistral_call_id
from streamserve.server.apis.openai.schemas import ChatRequest
from streamserve.server.apis.openai.tools import AUTO, NAMED, REQUIRED, ToolUse
from streamserve.text.grammars.call_grammar import MARKED_DIALECTS, AnswerForm
from streamserve.text.parsing.dialect import Dialect
from streamserve.text.parsing.first_call import FirstCallParser
from streamserve.text.parsing.forced import ForcedCallParser, RequiredCallsParser
from streamserve.text.parsing.pieces import Parser
from streamserve.types import StructuredOutputs


class ChatForm(msgspec.Struct, frozen=True, kw_only=True):
    """The form of answers to one chat.

    reading            None when the text is the message
    grammar            in place of the one that the request's own parameters make, None to leave that as it is
    shown_special_ids  special tokens that reading needs to see
    """

    reading: Reading | None = None
    grammar: StructuredOutputs | None = None
    shown_special_ids: frozenset[int] = frozenset()


def chat_form(frontend: Frontend, dialect: Dialect, request: ChatRequest, tools: ToolUse, prompt: str) -> ChatForm:
    """The form of answers to `prompt`. Raises `UnsupportedParameter` when calls can not be distinguished from content."""
    call_id = new_mistral_call_id if dialect.tool_calls == "mistral" else new_call_id
    if tools.choice == NAMED:
        return ChatForm(reading=Reading(new_parser=partial(ForcedCallParser, tools.name), new_call_id=call_id, is_named=True))
    if tools.choice == REQUIRED:
        return ChatForm(reading=Reading(new_parser=RequiredCallsParser, new_call_id=call_id))
    if tools.choice == AUTO and dialect.tool_calls is None:
        reason = 'this model is not known to call any; name a --tool-call-parser or use tool_choice "required"'
        raise UnsupportedParameter("tools", reason)
    if is_constrained(request) and answer_schema(request) is None:
        # The client's own grammar defines the whole answer.
        return ChatForm()
    return _free_form(frontend, dialect, request, tools, prompt, call_id)


def _free_form(
    frontend: Frontend, dialect: Dialect, request: ChatRequest, tools: ToolUse, prompt: str, call_id: Callable[[], str]
) -> ChatForm:
    """The form of an answer that may reason, then call tools or hold content."""
    schema = answer_schema(request)
    calls = tools.choice == AUTO and (schema is None or dialect.tool_calls in MARKED_DIALECTS)
    continued = text_of(request.messages[-1]) if request.continue_final_message else None
    functions = tools.functions() if calls else []
    new_parser = dialect.parser_factory(prompt, functions=[function.name for function in functions], continued=continued)
    if new_parser is None:
        return ChatForm()
    special = frontend.special_ids_of(dialect.marks)
    form = AnswerForm(
        dialect=dialect.tool_calls if calls else None,
        functions=functions,
        parallel=tools.parallel,
        answer=schema,
        thinks=dialect.thinks(prompt, continued),
        special=special,
    )
    is_confined = schema is not None or (calls and tools.is_confined)
    return ChatForm(
        reading=Reading(
            new_parser=new_parser if tools.parallel else partial(_first_call, new_parser),
            new_call_id=call_id,
            shows_reasoning=request.include_reasoning is not False,
        ),
        grammar=StructuredOutputs(grammar=form.lark()) if is_confined else None,
        shown_special_ids=frozenset(special.values()),
    )


def _first_call(new_parser: Callable[[], Parser]) -> Parser:
    return FirstCallParser(new_parser())
