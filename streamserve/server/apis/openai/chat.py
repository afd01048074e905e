"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import UnsupportedParameter
from streamserve.server.apis.openai.chat_form import chat_form
from streamserve.server.apis.openai.frames import ChatFrames, ChoicePreamble
from streamserve.server.apis.openai.messages import checked
from streamserve.server.apis.openai.parameter_names import chat_names, naming_parameters
from streamserve.server.apis.openai.parameters import for_chat
from streamserve.server.apis.openai.results import ChatResult
from streamserve.server.apis.openai.schemas import ChatRequest, TokenizeRequest, decode
from streamserve.server.apis.openai.tools import NONE, ToolUse, checked_tools, tool_use
from streamserve.server.delivery.answering import Identity, Plan, answer, identify
from streamserve.server.service import Service


@post("/v1/chat/completions", status_code=200)
async def create_chat_completion(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The next message of a conversation."""
    asked, ignored = decode(await request.body(), ChatRequest)
    identity = identify(service, asked, "chatcmpl", request.headers.get("x-request-id", ""))
    return answer(service, await plan_chat(service, asked, ignored, identity), ChatFrames, ChatResult)


async def plan_chat(service: Service, asked: ChatRequest, ignored: list[str], identity: Identity) -> Plan:
    """Check and tokenise a conversation; whatever can be refused before admission is refused here."""
    names = chat_names(asked)
    with naming_parameters(names):
        return await _plan(service, asked, ignored, identity, names)


async def _plan(service: Service, asked: ChatRequest, ignored: list[str], identity: Identity, names: Mapping[str, str]) -> Plan:
    frontend = service.frontend
    model = service.resolve_model(asked.model)
    tools = tool_use(asked)
    params = for_chat(asked, service.limits, tools)
    dialect = service.dialect(_source(service, asked))
    text = await _render(service, asked, tools.tools if _shows_tools(service, tools) else None)
    form = chat_form(frontend, dialect, asked, tools, text)
    if form.grammar is not None:
        params = msgspec.structs.replace(params, structured_outputs=form.grammar)
    prompt = await frontend.prepare(
        text,
        params,
        request_id=f"{identity.answer_id}-0",
        # Templates write the special tokens themselves.
        add_special_tokens=bool(asked.add_special_tokens),
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
        shown_special_ids=form.shown_special_ids,
    )
    return Plan(
        identity=identity,
        model=model,
        asked=asked,
        ignored=ignored,
        params=params,
        prompts=[prompt],
        preambles=[ChoicePreamble(prompt_token_ids=prompt.prompt_token_ids)],
        logprobs=params.logprobs,
        reading=form.reading,
        names=names,
    )


async def conversation(service: Service, asked: TokenizeRequest) -> str:
    """The conversation as the model reads it. Raises `InvalidParameter` or `UnsupportedParameter`."""
    return await _render(service, asked, checked_tools(asked.tools or []))


def _source(service: Service, asked: ChatRequest | TokenizeRequest) -> str:
    """The text of the template to use."""
    if asked.chat_template is None:
        return service.frontend.template().source
    if not service.config.trust_request_chat_template:
        raise UnsupportedParameter("chat_template", "start the server with --trust-request-chat-template to allow it")
    return asked.chat_template


def _shows_tools(service: Service, tools: ToolUse) -> bool:
    return tools.choice != NONE or not service.config.exclude_tools_when_tool_choice_none


async def _render(service: Service, asked: ChatRequest | TokenizeRequest, tools: Sequence[Mapping[str, Any]] | None) -> str:
    frontend, source = service.frontend, _source(service, asked)
    messages = checked(asked.messages or [])
    continues = bool(asked.continue_final_message)
    options: dict[str, Any] = {
        "tools": tools,
        "add_generation_prompt": asked.add_generation_prompt if asked.add_generation_prompt is not None else not continues,
        "continue_final_message": continues,
        "variables": asked.chat_template_kwargs or {},
        "reasoning_effort": asked.reasoning_effort if isinstance(asked, ChatRequest) else None,
    }
    if asked.chat_template is None:
        return frontend.render_chat(messages, **options)
    return await service.request_templates.render(source, frontend.tokenizer.special_tokens, messages, options)
