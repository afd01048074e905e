"""From the body of a response request to a response that has not been started; the same for HTTP and WebSockets."""

from __future__ import annotations

import msgspec

from streamserve.errors import InvalidRequest
from streamserve.server.api import CreateMessage
from streamserve.server.apis.openai.chat import conversation, prepare_chat
from streamserve.server.apis.openai.prepared_request import PreparedRequest, at_most, new_run, prompt_only
from streamserve.server.apis.openai.requests.parameter_names import response_names
from streamserve.server.apis.responses.conversation import finder, read_conversation
from streamserve.server.apis.responses.events import ResponseEvent, error_event
from streamserve.server.apis.responses.ids import response_id
from streamserve.server.apis.responses.schema import ResponseRequest, as_chat, without_effect
from streamserve.server.apis.responses.script import ResponseScript, WarmUpScript
from streamserve.server.apis.responses.stored_response import ResponseState, StoredResponse
from streamserve.server.delivery.events import Script
from streamserve.server.delivery.identity import Identity
from streamserve.server.delivery.logged_run import FOR_EVER, LoggedRun
from streamserve.server.delivery.retention import Expiring, TtlStore
from streamserve.server.http.bodies.request_body import Decoded, convert
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.service import Service
from streamserve.types import Tenant


async def create_response_over_socket(service: Service, message: CreateMessage) -> LoggedRun[ResponseEvent]:
    """`response.create`, with the body of POST /v1/responses.

    As in OpenAI's API, what a refused request continues is kept by its socket no longer.
    """
    decoded = await convert(message.body, ResponseRequest)
    try:
        response, _ = await prepare_response(
            service, decoded, message.tenant, is_resumable=message.is_resumable, kept=message.kept
        )
    except InvalidRequest:
        message.kept.remove(decoded.request.previous_response_id or "")
        raise
    return response.logged


async def prepare_response(
    service: Service,
    decoded: Decoded[ResponseRequest],
    tenant: Tenant,
    *,
    is_resumable: bool = False,
    kept: TtlStore[str, Expiring] | None = None,
    most_tokens: int | None = None,
    patience_s: float | None = None,
) -> tuple[StoredResponse, list[str]]:
    """The response, and the names of ignored parameters; whatever can be refused before admission is refused here.

    tenant        who sends it
    is_resumable  whether it goes on for a while without a reader; a background response always goes on to its end
    kept          what the request's socket keeps: responses that are not stored, for requests that continue them
    most_tokens   generated, where the request sets no limit
    patience_s    as of `Identity`
    """
    request = decoded.request
    id = response_id(request.request_id)
    identity = Identity(id, id, tenant, patience_s)
    read = await read_conversation(
        request.input, request.previous_response_id, response_id=id, find=finder(service, tenant, kept), run=decoded.run
    )
    chat = as_chat(request, read.messages)
    names = response_names({})
    with naming_parameters(names):
        prepared = await prepare_chat(
            service,
            Decoded(chat, [*decoded.ignored, *without_effect(request)], read.runner(decoded.run, service.large_work)),
            identity,
        )
    prepared = msgspec.structs.replace(prepared, names=response_names(prepared.names))
    if not request.generates:
        prepared = prompt_only(prepared)
    elif most_tokens is not None and request.max_output_tokens is None:
        prepared = at_most(prepared, most_tokens)
    answering = new_run(service, prepared)
    usage = answering.account.usage
    state = ResponseState(
        id,
        prepared.model,
        request,
        prepared.params,
        items=read.items,
        messages=read.messages,
        usage=usage,
    )

    def keep() -> None:
        if request.is_stored:
            service.stored.put(identity.owned_id, stored)
        elif kept is not None:
            kept.put(id, state)

    logged = LoggedRun(
        answering,
        _script(request, state, prepared),
        gap_event=error_event,
        unread_s=FOR_EVER if request.background else service.delivery.resume_s if is_resumable else 0.0,
        on_admitted=keep,
    )
    stored = StoredResponse(state, logged)
    return stored, [names.get(name, name) for name in prepared.ignored]


async def count_input(service: Service, decoded: Decoded[ResponseRequest], tenant: Tenant) -> int:
    """The number of tokens that a response would read."""
    request = decoded.request
    read = await read_conversation(
        request.input,
        request.previous_response_id,
        response_id=response_id(None),
        find=finder(service, tenant),
        run=decoded.run,
    )
    service.resolve_model(request.model)
    chat = as_chat(request, read.messages)
    with naming_parameters(response_names({"prompt": "input"})):
        run = read.runner(decoded.run, service.large_work)
        text = await conversation(service, Decoded(chat, decoded.ignored, run))
        return len(await service.frontend.encode(text, add_special_tokens=False))


def _script(request: ResponseRequest, state: ResponseState, prepared: PreparedRequest) -> Script[ResponseEvent]:
    if not request.generates:
        return WarmUpScript(state)
    return ResponseScript(state, reading=prepared.reading, top_logprobs=prepared.logprobs)
