"""The form of answers to one chat: the grammar that confines them, and how a message is parsed from them.

Pure functions of the request, its prompt and the model's dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from streamserve.errors import UnsupportedParameter
from streamserve.frontend import Frontend
from streamserve.server.apis.openai.answers.reading import Reading, new_call_id, new_mistral_call_id
from streamserve.server.apis.openai.requests.messages import text_of
from streamserve.server.apis.openai.requests.parameters import answer_schema, is_constrained
from streamserve.server.apis.openai.requests.schemas import ChatRequest
from streamserve.server.apis.openai.requests.tools import AUTO, NAMED, ToolUse
from streamserve.text.grammars.call_grammar import AnswerForm
from streamserve.text.parsing.dialects.dialect import Dialect
from streamserve.text.parsing.first_call import FirstCallParser
from streamserve.text.parsing.forced import ForcedCallParser, RequiredCallsParser
from streamserve.text.parsing.pieces import Parser
from streamserve.types import ReasoningMarks, StructuredOutputs


class ChatForm(msgspec.Struct, frozen=True, kw_only=True):
    """The form of answers to one chat.

    reading            None when the text is the message
    grammar            in place of the one that the request's own parameters make, None to leave that as it is
    shown_special_ids  special tokens that reading needs to see
    reasoning          how reasoning is told by its tokens; None for answers without
    """

    reading: Reading | None = None
    grammar: StructuredOutputs | None = None
    shown_special_ids: frozenset[int] = frozenset()
    reasoning: ReasoningMarks | None = None


def chat_form(frontend: Frontend, dialect: Dialect, request: ChatRequest, tools: ToolUse, prompt: str) -> ChatForm:
    """The form of answers to `prompt`. Raises `UnsupportedParameter` when calls can not be distinguished from content."""
    if tools.is_forced and not dialect.can_call:
        return _forced_form(tools)
    if tools.choice == AUTO and not dialect.can_call:
        reason = 'this model is not known to call any; name a --tool-call-parser or use tool_choice "required"'
        raise UnsupportedParameter("tools", reason)
    if is_constrained(request) and answer_schema(request) is None:
        # The client's own grammar defines the whole answer.
        return ChatForm()
    return _form(frontend, dialect, request, tools, prompt)


def _forced_form(tools: ToolUse) -> ChatForm:
    """Required calls of a model that is not known to call: JSON, whose grammar is the request's own."""
    if tools.choice == NAMED:
        return ChatForm(reading=Reading(new_parser=partial(ForcedCallParser, tools.name), is_named=True))
    return ChatForm(reading=Reading(new_parser=RequiredCallsParser))


def _form(frontend: Frontend, dialect: Dialect, request: ChatRequest, tools: ToolUse, prompt: str) -> ChatForm:
    """The form of an answer that may reason, then call tools or hold content, or must call."""
    schema = None if tools.is_forced else answer_schema(request)
    calls = tools.is_forced or (tools.choice == AUTO and (schema is None or dialect.marks_calls))
    continued = text_of(request.messages[-1]) if request.continue_final_message else None
    offered = {function.name: function.arguments for function in tools.functions(every=True)} if calls else {}
    new_parser = dialect.parser_factory(prompt, functions=offered, continued=continued)
    if new_parser is None:
        return ChatForm()
    special = frontend.special_ids_of(dialect.marks)
    thinks = dialect.thinks(prompt, continued)
    form = AnswerForm(
        calls=dialect.calls if calls else None,
        channels=dialect.channels,
        reasoning=dialect.reasoning,
        functions=tools.functions(every=tools.is_forced) if calls else [],
        parallel=tools.parallel and tools.choice != NAMED,
        is_required=tools.is_forced,
        answer=schema,
        thinks=thinks,
        special=special,
    )
    is_confined = schema is not None or (calls and (tools.is_forced or tools.is_confined))
    return ChatForm(
        reading=Reading(
            new_parser=new_parser if tools.parallel else partial(_first_call, new_parser),
            new_call_id=new_mistral_call_id if dialect.tool_calls == "mistral" else new_call_id,
            is_named=tools.choice == NAMED,
            shows_reasoning=request.include_reasoning is not False,
        ),
        grammar=StructuredOutputs(grammar=form.lark()) if is_confined else None,
        shown_special_ids=frozenset(special.values()),
        reasoning=frontend.mark_tokens.reasoning(dialect, thinks, may_call=bool(offered)),
    )


def _first_call(new_parser: Callable[[], Parser]) -> Parser:
    return FirstCallParser(new_parser())
