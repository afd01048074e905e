"""A third API in miniature, after Anthropic's: events of its own, a whole answer of its own, errors of its own shape.

Stands for what an API brings: a schema, a script, a collector, a shape of errors, a route, and one `Api`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import orjson
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import StreamserveError
from streamserve.server.api import Api
from streamserve.server.delivery.events import members
from streamserve.server.delivery.identity import answer_headers, identify
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.bodies.request_body import decode
from streamserve.server.service import Service
from streamserve.types import SamplingParams, TextDelta

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class MessagesRequest(msgspec.Struct, kw_only=True):
    """POST /v2/messages."""

    messages: list[dict[str, Any]]
    max_tokens: int
    model: str | None = None
    stream: bool = False


class MessageEvent(NamedTuple):
    """One event: its type and the further members of its JSON object."""

    type: str
    fields: bytes

    def server_sent(self) -> bytes:
        kind = self.type.encode()
        return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind, kind, self.fields)


class MessageScript:
    """message_start, a delta per text, message_stop."""

    def __init__(self, id: str) -> None:
        self._id = id

    def opening(self) -> list[MessageEvent]:
        return [MessageEvent("message_start", members(message={"id": self._id, "role": "assistant", "content": []}))]

    def delta(self, delta: TextDelta) -> list[MessageEvent]:
        events = []
        if delta.text:
            text = {"type": "text_delta", "text": delta.text}
            events.append(MessageEvent("content_block_delta", members(index=0, delta=text)))
        if delta.finish_reason is not None:
            events.append(MessageEvent("message_delta", members(delta={"stop_reason": STOP_REASONS.get(delta.finish_reason)})))
        return events

    def text_frame(self, index: int) -> tuple[bytes, bytes]:
        before = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
        )
        return before, b"}}\n\n"

    def end(self) -> list[MessageEvent]:
        return [MessageEvent("message_stop", members(id=self._id))]

    def failure(self, error: StreamserveError) -> list[MessageEvent]:
        return [MessageEvent("error", members(error=_error(error)))]


class Message:
    """The message as one object."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._texts: list[str] = []

    def add(self, delta: TextDelta) -> None:
        self._texts.append(delta.text)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self._texts))

    def body(self) -> bytes:
        return orjson.dumps({"id": self._id, "type": "message", "content": [{"type": "text", "text": "".join(self._texts)}]})


def error_body(error: StreamserveError) -> bytes:
    return orjson.dumps({"type": "error", "error": _error(error)})


def _error(error: StreamserveError) -> dict[str, str]:
    return {"type": error.type, "message": error.message}


@post("/v2/messages", status_code=200)
async def create_message(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    body, ignored, _ = await decode(await request.body(), MessagesRequest, service.large_work)
    model = service.resolve_model(body.model)
    tenant, header = tenant_of(request.scope), request.headers.get("x-request-id", "")
    identity = identify("memo_", None, header, tenant=tenant, taken=service.delivery.active_requests)
    id = identity.answer_id
    params = SamplingParams(**service.limits.with_defaults({"max_tokens": body.max_tokens}))
    text = service.frontend.render_chat(body.messages, add_generation_prompt=True)
    prompt = await service.frontend.prepare(
        text, params, request_id=f"{identity.engine_id}-0", tenant=tenant, add_special_tokens=False
    )
    run = service.new_run(identity, model, [prompt])
    headers = answer_headers(identity.header_id, ignored)
    if body.stream:
        return service.delivery.event_stream(run, MessageScript(id), headers)
    return service.delivery.whole_answer(run, Message(id), error_body, headers)


MESSAGES = Api(routes=[create_message], paths=["/v2/messages"], id_prefixes=["memo_"], error_body=error_body)
