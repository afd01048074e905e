"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import UnsupportedParameter
from streamserve.server.answering import Identity, Plan, answer, identify
from streamserve.server.frames import ChatFrames, Opening
from streamserve.server.messages import checked
from streamserve.server.parameters import for_chat
from streamserve.server.results import ChatResult
from streamserve.server.schemas import ChatRequest, TokenizeRequest, decode
from streamserve.server.service import Service


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
    params = for_chat(asked, service.limits)
    prompt = await frontend.prepare(
        render(service, asked),
        params,
        request_id=f"{identity.answer_id}-0",
        # Templates write the special tokens themselves.
        add_special_tokens=bool(asked.add_special_tokens),
        priority=asked.priority or 0,
        cache_salt=asked.cache_salt or "",
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
    )


def render(service: Service, asked: ChatRequest | TokenizeRequest) -> str:
    """The conversation as the model reads it. Raises `InvalidParameter` or `UnsupportedParameter`."""
    if asked.chat_template is not None and not service.config.trust_request_chat_template:
        raise UnsupportedParameter("chat_template", "start the server with --trust-request-chat-template to allow it")
    continues = bool(asked.continue_final_message)
    return service.frontend.render_chat(
        checked(asked.messages or []),
        chat_template=asked.chat_template,
        add_generation_prompt=asked.add_generation_prompt if asked.add_generation_prompt is not None else not continues,
        continue_final_message=continues,
        variables=asked.chat_template_kwargs,
    )
