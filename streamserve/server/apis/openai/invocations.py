"""POST /invocations: SageMaker's one path for every request; its fields tell a chat from a completion, as in vLLM."""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import InvalidRequest
from streamserve.server.apis.openai.chat import answer_chat
from streamserve.server.apis.openai.completions import answer_completion
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.bodies.request_body import read
from streamserve.server.resumption import continuation
from streamserve.server.service import Service


@post("/invocations", status_code=200, opt=ADMITS)
async def invoke(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The answer to a body with `messages` as /v1/chat/completions gives it, to one with `prompt` as /v1/completions."""
    if (continued := await continuation(request, service)) is not None:
        return continued
    body = await read(request, service.large_work)
    if "messages" in body.fields:
        return await answer_chat(service, body, request)
    if "prompt" in body.fields:
        return await answer_completion(service, body, request)
    raise InvalidRequest("give messages, as for /v1/chat/completions, or a prompt, as for /v1/completions")
