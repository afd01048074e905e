"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import UnsupportedParameter
from streamserve.server.apis.openai.answers.collectors import ChatCollector
from streamserve.server.apis.openai.answers.script import ChatScript, ChoicePreamble
from streamserve.server.apis.openai.prepared_request import PreparedRequest, answer, identity_of, is_resumable
from streamserve.server.apis.openai.requests.chat_form import chat_form
from streamserve.server.apis.openai.requests.messages import checked
from streamserve.server.apis.openai.requests.parameter_names import chat_names
from streamserve.server.apis.openai.requests.parameters import HINTS, for_chat, with_reasoning
from streamserve.server.apis.openai.requests.schemas import ChatRequest, TokenizeRequest
from streamserve.server.apis.openai.requests.tools import NONE, ToolUse, checked_tools, tool_use
from streamserve.server.delivery.identity import Identity
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.bodies.large_work import CallRunner
from streamserve.server.http.bodies.request_body import Body, Decoded, convert, read
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.resumption import continuation
from streamserve.server.service import Service
from streamserve.text.parsing.dialects.dialect import Dialect

CHAT_PREFIX = "chatcmpl-"
"""What ids of chat completions begin with."""


@post("/v1/chat/completions", status_code=200, opt=ADMITS)
async def create_chat_completion(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The next message of a conversation."""
    if (continued := await continuation(request, service)) is not None:
        return continued
    body = await read(request, service.large_work)
    return await answer_chat(service, body, request)


async def answer_chat(service: Service, body: Body, request: Request[Any, Any, Any]) -> ASGIApp:
    """The answer to the body of a request."""
    decoded = await convert(body, ChatRequest)
    identity = identity_of(service, decoded.request, CHAT_PREFIX, tenant_of(request.scope), request.headers)
    resumable = is_resumable(decoded.request, request)
    prepared = await prepare_chat(service, decoded, identity)
    return answer(service, prepared, ChatScript, ChatCollector, is_resumable=resumable)


async def prepare_chat(service: Service, decoded: Decoded[ChatRequest], identity: Identity) -> PreparedRequest:
    """Check and tokenise a conversation; whatever can be refused before admission is refused here."""
    names = chat_names(decoded.request)
    with naming_parameters(names):
        return await _prepare(service, decoded, identity, names)


async def _prepare(
    service: Service, decoded: Decoded[ChatRequest], identity: Identity, names: Mapping[str, str]
) -> PreparedRequest:
    request, frontend = with_reasoning(decoded.request), service.frontend
    run = decoded.run
    model = service.resolve_model(request.model)
    tools = await run(partial(tool_use, request))
    params = await run(partial(for_chat, request, service.limits, tools))
    shown = tools.tools if _shows_tools(service, tools) else []
    dialect = service.dialect(_source(service, request, shown))
    if decoded.request.thinking_token_budget is not None and not dialect.can_reason:
        raise UnsupportedParameter("thinking_token_budget", "this model is not known to reason; name a --reasoning-parser")
    text = await _render(service, request, shown, run)
    form = await run(partial(chat_form, frontend, dialect, request, tools, text))
    if form.grammar is not None:
        params = msgspec.structs.replace(params, structured_outputs=form.grammar)
    prompt = await frontend.prepare(
        text,
        params,
        request_id=f"{identity.engine_id}-0",
        # Templates write the special tokens themselves.
        add_special_tokens=bool(request.add_special_tokens),
        priority=request.priority or 0,
        tenant=identity.tenant,
        cache_salt=service.cache_salt(identity.tenant, request.cache_salt),
        shown_special_ids=form.shown_special_ids,
        reasoning=form.reasoning,
    )
    return PreparedRequest(
        identity=identity,
        model=model,
        request=request,
        ignored=[*decoded.ignored, *_without_effect(service, request, dialect, shown), *tools.not_enforced()],
        params=params,
        prompts=[prompt],
        preambles=[ChoicePreamble(prompt_token_ids=prompt.prompt_token_ids)],
        logprobs=params.logprobs,
        reading=form.reading,
        names=names,
    )


async def conversation(service: Service, decoded: Decoded[ChatRequest] | Decoded[TokenizeRequest]) -> str:
    """The conversation as the model reads it. Raises `InvalidParameter` or `UnsupportedParameter`."""
    run, request = decoded.run, decoded.request
    if isinstance(request, ChatRequest):
        use = await run(partial(tool_use, request))
        tools = use.tools if _shows_tools(service, use) else []
    else:
        tools = await run(partial(checked_tools, request.tools or []))
    return await _render(service, request, tools, run)


def _source(service: Service, request: ChatRequest | TokenizeRequest, tools: Sequence[Mapping[str, Any]]) -> str:
    """The text of the template to use."""
    if request.chat_template is None:
        return service.frontend.template(has_tools=bool(tools)).source
    if not service.config.trust_request_chat_template:
        raise UnsupportedParameter("chat_template", "start the server with --trust-request-chat-template to allow it")
    return request.chat_template


def _without_effect(
    service: Service, request: ChatRequest, dialect: Dialect, tools: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Names of the hints that change nothing here."""
    for name in HINTS:
        if getattr(request, name):
            yield name
    effort = request.reasoning_effort
    if effort and request.chat_template is None and not service.frontend.template(has_tools=bool(tools)).knows_effort(effort):
        yield "reasoning_effort"
    if request.thinking_token_budget is not None and not dialect.can_reason:
        yield "thinking_token_budget"


def _shows_tools(service: Service, tools: ToolUse) -> bool:
    return tools.choice != NONE or not service.config.exclude_tools_when_tool_choice_none


async def _render(
    service: Service, request: ChatRequest | TokenizeRequest, tools: Sequence[Mapping[str, Any]], run: CallRunner
) -> str:
    frontend, source = service.frontend, _source(service, request, tools)
    messages = await run(partial(checked, request.messages or []))
    continues = bool(request.continue_final_message)
    options: dict[str, Any] = {
        "tools": tools,
        "add_generation_prompt": request.add_generation_prompt if request.add_generation_prompt is not None else not continues,
        "continue_final_message": continues,
        "variables": request.chat_template_kwargs or {},
        "defaults": service.config.default_chat_template_kwargs,
        "reasoning_effort": request.reasoning_effort if isinstance(request, ChatRequest) else None,
        "documents": request.documents if isinstance(request, ChatRequest) else None,
    }
    if request.chat_template is None:
        if options["documents"] and "documents" not in frontend.template(has_tools=bool(tools)).variables:
            raise UnsupportedParameter("documents", "this model's template has no place for them: put them into a message")
        return await run(partial(frontend.render_chat, messages, **options))
    special_tokens = frontend.tokenizer.special_tokens
    return await service.request_templates.render(source, special_tokens, messages, options, frontend.kept_out)
