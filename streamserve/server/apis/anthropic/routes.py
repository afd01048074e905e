"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.server.apis.anthropic.errors import error_body
from streamserve.server.apis.anthropic.schema import BUDGET, CountRequest, MessagesRequest, as_chat, without_effect
from streamserve.server.apis.anthropic.script import MessageCollector, MessageForm, MessageScript, failure_event
from streamserve.server.apis.openai.chat import conversation, prepare_chat
from streamserve.server.apis.openai.prepared_request import at_most, new_run
from streamserve.server.delivery.event_ids import RESUME, asks_to_resume
from streamserve.server.delivery.identity import answer_headers, identify
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.bodies.request_body import Decoded, decode, read_body
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.resumption import continuation
from streamserve.server.service import Service

MESSAGE_PREFIX = "msg_"
"""What ids of messages begin with."""

_NAMES = {
    "stop": "stop_sequences",
    "prompt": "messages",
    "response_format": "output_config.format",
    "thinking_token_budget": BUDGET,
}
"""What parameters of a chat are called here."""


@post("/v1/messages", status_code=200, opt=ADMITS)
async def create_message(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The next message of a conversation; as in Anthropic's API, `max_tokens` may be more than the context has room for."""
    if (continued := await continuation(request, service)) is not None:
        return continued
    is_resumable = asks_to_resume(request.headers.get(RESUME, ""))
    decoded = await decode(await read_body(request, service.large_work), MessagesRequest, service.large_work)
    body = decoded.request
    header = request.headers.get("x-request-id", "")
    identity = identify(
        MESSAGE_PREFIX,
        None,
        header,
        tenant=tenant_of(request.scope),
        taken=service.delivery.active_requests,
        patience_s=service.patience_s(request.headers, is_stream=bool(body.stream)),
    )
    with naming_parameters(_NAMES):
        chat = await decoded.run(partial(as_chat, body))
        prepared = await prepare_chat(service, Decoded(chat, decoded.ignored, decoded.run), identity)
    run = new_run(service, at_most(prepared, body.max_tokens))
    form = MessageForm(id=identity.answer_id, model=prepared.model, usage=run.account.usage, reading=prepared.reading)
    headers = answer_headers(identity.header_id, without_effect(body, prepared.ignored))
    # The header that Anthropic's SDKs read.
    headers.append((b"request-id", identity.header_id.encode()))
    if body.stream and is_resumable:
        logged = LoggedRun(run, MessageScript(form), gap_event=failure_event, unread_s=service.delivery.resume_s)
        return service.delivery.log_stream(logged, headers, is_new=True)
    if body.stream:
        return service.delivery.event_stream(run, MessageScript(form), headers)
    return service.delivery.whole_answer(run, MessageCollector(form), error_body, headers)


@post("/v1/messages/count_tokens", status_code=200)
async def count_tokens(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> dict[str, int]:
    """The number of tokens that a message would read, whether they fit the model's context or not."""
    decoded = await decode(await read_body(request, service.large_work), CountRequest, service.large_work)
    service.resolve_model(decoded.request.model)
    with naming_parameters(_NAMES):
        chat = await decoded.run(partial(as_chat, decoded.request))
        text = await conversation(service, Decoded(chat, decoded.ignored, decoded.run))
        return {"input_tokens": len(await service.frontend.encode(text, add_special_tokens=False))}
