"""From the body of a response request to a response that has not been started; the same for HTTP and WebSockets."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import msgspec

from streamserve.errors import InvalidParameter, quoted
from streamserve.server.apis.openai.chat import prepare_chat
from streamserve.server.apis.openai.parameter_names import response_names
from streamserve.server.apis.openai.prepared_request import new_run
from streamserve.server.apis.responses.events import ResponseEvent
from streamserve.server.apis.responses.items import ChatMessage, as_items, as_messages
from streamserve.server.apis.responses.schema import ResponseRequest, as_chat, without_effect
from streamserve.server.apis.responses.script import ResponseScript
from streamserve.server.apis.responses.stored_response import ResponseState, StoredResponse
from streamserve.server.delivery.identity import Identity
from streamserve.server.delivery.logged_run import FOR_EVER, LoggedRun
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.http.request_body import Body, Decoded, convert
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import NotKeptHere

RESPONSE_PREFIX = "resp_"
"""What ids of responses begin with."""


class PreviousResponseNotFound(NotKeptHere):
    """`previous_response_id` names nothing that is kept here."""

    code = "previous_response_not_found"


async def create_response_over_socket(service: Service, body: Body, is_resumable: bool) -> LoggedRun[ResponseEvent]:
    """`response.create`, with the body of POST /v1/responses."""
    response, _ = await prepare_response(service, await convert(body, ResponseRequest), is_resumable=is_resumable)
    return response.logged


async def prepare_response(
    service: Service, decoded: Decoded[ResponseRequest], *, is_resumable: bool = False
) -> tuple[StoredResponse, list[str]]:
    """The response, and the names of ignored parameters; whatever can be refused before admission is refused here.

    is_resumable  whether it goes on for a while without a reader; a background response always goes on to its end
    """
    request = decoded.request
    id = RESPONSE_PREFIX + (request.request_id or uuid4().hex)
    run = decoded.run
    items = await run(partial(as_items, request.input))
    messages = [*_history(service, request.previous_response_id), *await run(partial(as_messages, items))]
    system: list[ChatMessage] = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    chat = as_chat(request, [*system, *messages])
    names = response_names({})
    with naming_parameters(names):
        prepared = await prepare_chat(
            service, Decoded(chat, [*decoded.ignored, *without_effect(request)], decoded.run), Identity(id, id)
        )
    prepared = msgspec.structs.replace(prepared, names=response_names(prepared.names))
    answering = new_run(service, prepared)
    usage = answering.account.usage
    state = ResponseState(id, prepared.model, request, prepared.params, items=items, messages=messages, usage=usage)

    def store() -> None:
        service.stored.put(id, stored)

    logged = LoggedRun(
        answering,
        ResponseScript(state, reading=prepared.reading, top_logprobs=prepared.logprobs),
        unread_s=FOR_EVER if request.background else service.delivery.resume_s if is_resumable else 0.0,
        on_admitted=store if request.is_stored else None,
    )
    stored = StoredResponse(state, logged)
    return stored, [names.get(name, name) for name in prepared.ignored]


def find_response(service: Service, response_id: str) -> StoredResponse | None:
    """A response that is stored here."""
    stored = service.stored.get(response_id)
    return stored if isinstance(stored, StoredResponse) else None


def _history(service: Service, previous_id: str | None) -> list[ChatMessage]:
    if previous_id is None:
        return []
    previous = find_response(service, previous_id)
    if previous is None:
        raise PreviousResponseNotFound(
            previous_id,
            f"no response {quoted(previous_id)} is kept: it was not stored, or has expired",
            param="previous_response_id",
        )
    if not previous.is_ended:
        raise InvalidParameter("previous_response_id", "that response is still being generated")
    return previous.state.conversation()
