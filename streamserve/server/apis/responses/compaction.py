"""POST /v1/responses/compact: a conversation in, a shorter one out that goes on in its place.

The model writes a summary, as the answer to a request of its own. What system and developer messages say stays as it is; the
summary stands for all the rest, since many chat templates want the roles to take turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, StreamFailed
from streamserve.server.apis.responses.compacted import encoded
from streamserve.server.apis.responses.conversation import finder, read_conversation
from streamserve.server.apis.responses.ids import output_id, response_id
from streamserve.server.apis.responses.items import COMPACTION, ChatMessage, Item, message_item
from streamserve.server.apis.responses.preparation import prepare_response
from streamserve.server.apis.responses.schema import ReasoningConfig, ResponseRequest
from streamserve.server.apis.responses.stored_response import ResponseState
from streamserve.server.apis.responses.writers import WholeResponse
from streamserve.server.delivery.identity import answer_headers
from streamserve.server.http.bodies.request_body import Decoded
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.service import Service
from streamserve.types import Tenant

MAX_SUMMARY_TOKENS = 2048

_KEPT_ROLES = ("system", "developer")
_REQUEST = """\
Below is a conversation between a user and an assistant.

<conversation>
{}
</conversation>

Summarize it for the assistant, who will continue it and will see nothing but your summary. Keep every fact, name, number, \
decision, result of a tool and open question that may still matter. Answer with the summary alone."""


class CompactRequest(msgspec.Struct, kw_only=True):
    """POST /v1/responses/compact: OpenAI's fields."""

    model: str
    input: str | list[dict[str, Any]] | None = None
    previous_response_id: str | None = None
    instructions: str | None = None
    prompt_cache_key: str | None = None


async def compact_conversation(service: Service, decoded: Decoded[CompactRequest], tenant: Tenant) -> WholeResponse:
    """The app that has a summary written and sends the compacted conversation. Raises `InvalidParameter` when it is empty."""
    request = decoded.request
    conversation = await read_conversation(
        request.input,
        request.previous_response_id,
        response_id=response_id(None),
        find=finder(service, tenant),
        run=decoded.run,
    )
    if not conversation.messages:
        raise InvalidParameter("input", "there is nothing to compact")
    run = conversation.runner(decoded.run, service.large_work)
    asked = await run(partial(_summary_request, request, conversation.messages))
    with naming_parameters({"max_output_tokens": "input"}):
        response, _ = await prepare_response(
            service, Decoded(asked, decoded.ignored, run), tenant, most_tokens=MAX_SUMMARY_TOKENS
        )
    kept = [message for message in conversation.messages if message["role"] in _KEPT_ROLES]
    headers = answer_headers(response.id, decoded.ignored)
    return WholeResponse(service.delivery, response, headers, as_object=partial(_compacted, kept))


def _summary_request(request: CompactRequest, messages: Sequence[ChatMessage]) -> ResponseRequest:
    instructions = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    transcript = "\n\n".join(_line(message) for message in [*instructions, *messages])
    return ResponseRequest(
        model=request.model, input=_REQUEST.format(transcript), store=False, reasoning=ReasoningConfig(effort="none")
    )


def _line(message: ChatMessage) -> str:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    called = [f"(calls {call['name']} with {json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls]
    return " ".join([f"{message['role']}:", *filter(None, [message["content"]]), *called])


def _compacted(kept: Sequence[ChatMessage], state: ResponseState) -> dict[str, Any]:
    """The compacted conversation, once its summary is there. Raises `StreamFailed` when the model wrote none."""
    summary = state.text.strip()
    if not summary:
        raise StreamFailed("the model wrote no summary")
    items: list[Item] = [message_item(message["role"], message["content"]) for message in kept]
    items.append({"type": COMPACTION, "encrypted_content": encoded(summary)})
    return {
        "id": state.id,
        "object": "response.compaction",
        "created_at": state.created_at,
        "output": [
            {"id": output_id("cmp" if item["type"] == COMPACTION else "msg", state.id, index), **item}
            for index, item in enumerate(items)
        ],
        "usage": state.usage_object(),
    }
