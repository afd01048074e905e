"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import UnsupportedParameter
from streamserve.server.answering import Identity, Plan, answer, identify
from streamserve.server.frames import ChatFrames, Opening
from streamserve.server.messages import checked, text_of
from streamserve.server.parameters import for_chat, is_constrained
from streamserve.server.reading import Reading, new_mistral_call_id
from streamserve.server.reading import new_call_id as plain_call_id
from streamserve.server.results import ChatResult
from streamserve.server.schemas import ChatRequest, TokenizeRequest, decode
from streamserve.server.service import Service
from streamserve.server.tools import AUTO, NAMED, NONE, REQUIRED, ToolUse, checked_tools, tool_use
from streamserve.text.chat_template import ChatTemplate
from streamserve.text.parsing.dialect import Dialect
from streamserve.text.parsing.first_call import FirstCallParser
from streamserve.text.parsing.forced import ForcedCallParser
from streamserve.text.parsing.mistral import ArrayParser
from streamserve.text.parsing.pieces import Parser


@post("/v1/chat/completions", status_code=200)
async def create_chat_completion(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The next message of a conversation."""
    asked, ignored = decode(await request.body(), ChatRequest)
    identity = identify(service, asked, "chatcmpl", request.headers.get("x-request-id", ""))
    return answer(service, await plan_chat(service, asked, ignored, identity), ChatFrames, ChatResult)


async def plan_chat(service: Service, asked: ChatRequest, ignored: list[str], identity: Identity) -> Plan:
    """Check and tokenise a conversation; whatever can be refused before admission is refused here."""
    frontend = service.frontend
    model = service.resolve_model(asked.model)
    tools = tool_use(asked)
    params = for_chat(asked, service.limits, tools)
    template = _template(service, asked)
    dialect = service.dialect(template)
    text = _render(template, asked, tools.tools if _shows_tools(service, tools) else None, _variables(template, asked))
    reading = _reading(dialect, asked, tools, text)
    prompt = await frontend.prepare(
        text,
        params,
        request_id=f"{identity.answer_id}-0",
        # Templates write the special tokens themselves.
        add_special_tokens=bool(asked.add_special_tokens),
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
        shown_special_ids=frozenset() if reading is None else frontend.special_ids_of(dialect.marks),
    )
    return Plan(
        identity=identity,
        model=model,
        asked=asked,
        ignored=ignored,
        params=params,
        prompts=[prompt],
        openings=[Opening(prompt_token_ids=prompt.prompt_token_ids)],
        logprobs=params.logprobs,
        reading=reading,
    )


def conversation(service: Service, asked: TokenizeRequest) -> str:
    """The conversation as the model reads it. Raises `InvalidParameter` or `UnsupportedParameter`."""
    return _render(_template(service, asked), asked, checked_tools(asked.tools or []), asked.chat_template_kwargs or {})


def _template(service: Service, asked: ChatRequest | TokenizeRequest) -> ChatTemplate:
    if asked.chat_template is not None and not service.config.trust_request_chat_template:
        raise UnsupportedParameter("chat_template", "start the server with --trust-request-chat-template to allow it")
    return service.frontend.template(asked.chat_template)


def _shows_tools(service: Service, tools: ToolUse) -> bool:
    return tools.choice != NONE or not service.config.exclude_tools_when_tool_choice_none


def _variables(template: ChatTemplate, asked: ChatRequest) -> dict[str, Any]:
    """What a template is told beside the messages. Raises `UnsupportedParameter` for an effort that it knows nothing of."""
    variables = dict(asked.chat_template_kwargs or {})
    if asked.reasoning_effort is None:
        return variables
    if "reasoning_effort" in template.variables:
        return {"reasoning_effort": asked.reasoning_effort, **variables}
    if "enable_thinking" in template.variables and asked.reasoning_effort == "none":
        return {"enable_thinking": False, **variables}
    raise UnsupportedParameter("reasoning_effort", "the model's chat template does not know it; see chat_template_kwargs")


def _render(
    template: ChatTemplate,
    asked: ChatRequest | TokenizeRequest,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> str:
    continues = bool(asked.continue_final_message)
    return template.render(
        checked(asked.messages or []),
        tools=tools,
        add_generation_prompt=asked.add_generation_prompt if asked.add_generation_prompt is not None else not continues,
        continue_final_message=continues,
        variables=variables,
    )


def _reading(dialect: Dialect, asked: ChatRequest, tools: ToolUse, prompt: str) -> Reading | None:
    """How answers to `prompt` become messages. Raises `UnsupportedParameter` when calls could not be told from content."""
    new_call_id = new_mistral_call_id if dialect.tool_calls == "mistral" else plain_call_id
    if tools.choice == NAMED:
        return Reading(new_parser=partial(ForcedCallParser, tools.name), new_call_id=new_call_id, is_named=True)
    if tools.choice == REQUIRED:
        return Reading(new_parser=ArrayParser, new_call_id=new_call_id)
    if tools.choice == AUTO and dialect.tool_calls is None:
        raise UnsupportedParameter(
            "tools", 'this model is not known to call any; name a --tool-call-parser or use tool_choice "required"'
        )
    if is_constrained(asked):
        # A grammar leaves room for neither reasoning nor calls.
        return None
    continued = text_of(asked.messages[-1]) if asked.continue_final_message else None
    new_parser = dialect.parser_factory(prompt, calls=tools.choice == AUTO, continued=continued)
    if new_parser is None:
        return None
    return Reading(new_parser=new_parser if tools.parallel else partial(_first_call, new_parser), new_call_id=new_call_id)


def _first_call(new_parser: Callable[[], Parser]) -> Parser:
    return FirstCallParser(new_parser())
