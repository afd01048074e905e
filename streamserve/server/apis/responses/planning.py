"""From the body of a response request to a record with a producer that has not run yet; the same for HTTP and WebSockets."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import msgspec

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.chat import plan_chat
from streamserve.server.apis.openai.parameter_names import naming_parameters, response_names
from streamserve.server.apis.responses.items import Message, as_items, as_messages
from streamserve.server.apis.responses.schema import ResponseRequest, as_chat
from streamserve.server.apis.responses.script import ResponseScript
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.delivery.answering import Identity, begin_trace, new_usage, opener
from streamserve.server.delivery.producer import FOR_EVER, Producer
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import NotKeptHere
from streamserve.server.telemetry.accounting import Account


class PreviousResponseNotFound(NotKeptHere):
    """`previous_response_id` names nothing that is kept here."""

    code = "previous_response_not_found"


async def plan_response(service: Service, asked: ResponseRequest, *, is_resumable: bool = False) -> StoredResponse:
    """Check and tokenise; whatever can be refused before admission is refused here.

    is_resumable  whether it goes on for a while when nobody reads; a background response always goes on to its end
    """
    id = f"resp_{asked.request_id or uuid4().hex}"
    items = as_items(asked.input)
    messages = [*_history(service, asked.previous_response_id), *as_messages(items)]
    system: list[Message] = [] if asked.instructions is None else [{"role": "system", "content": asked.instructions}]
    chat = as_chat(asked, [*system, *messages])
    with naming_parameters(response_names({})):
        plan = await plan_chat(service, chat, [], Identity(id, id))
    plan = msgspec.structs.replace(plan, names=response_names(plan.names))
    usage = new_usage(plan)
    record = StoredResponse(id, plan.model, asked, plan.params, items=items, messages=messages, usage=usage)
    record.producer = Producer(
        id,
        opener(service, plan),
        ResponseScript(record, reading=plan.reading, top_logprobs=plan.logprobs),
        Account(usage, service.metrics, num_prompts=1, n=1, trace=begin_trace(service, plan)),
        active_requests=service.active_requests,
        unread_s=FOR_EVER if asked.background else service.config.resume_s if is_resumable else 0.0,
        on_admitted=partial(service.responses.put, id, record) if asked.is_stored else None,
    )
    return record


def _history(service: Service, previous_id: str | None) -> list[Message]:
    if previous_id is None:
        return []
    previous = service.responses.get(previous_id)
    if previous is None:
        raise PreviousResponseNotFound(
            previous_id, f"no response {previous_id!r} is kept: it was not stored, or has expired", param="previous_response_id"
        )
    if not previous.is_ended:
        raise InvalidParameter("previous_response_id", "that response is still being generated")
    return previous.conversation()
