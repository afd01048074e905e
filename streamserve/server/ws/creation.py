"""The superset: chats and completions over a socket, with the very JSON that their SSE streams carry."""

from __future__ import annotations

from typing import Any

import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.chat import plan_chat
from streamserve.server.apis.openai.completions import plan_completion
from streamserve.server.apis.openai.frames import LINES, ChatFrames, CompletionFrames, Frames
from streamserve.server.apis.openai.schemas import ChatRequest, CompletionRequest, convert
from streamserve.server.delivery.answering import (
    Plan,
    begin_trace,
    choice_preambles,
    identify,
    new_usage,
    opener,
    stream_format,
)
from streamserve.server.delivery.event_log import Entry
from streamserve.server.delivery.producer import Producer
from streamserve.server.http.errors import error_object
from streamserve.server.service import Service
from streamserve.server.telemetry.accounting import Account
from streamserve.server.ws.messages import take_resumable
from streamserve.types import TextDelta


async def create_chat(service: Service, body: dict[str, Any]) -> Producer:
    """`chat.completion.create`: the body of POST /v1/chat/completions, and `resumable`."""
    is_resumable = take_resumable(body)
    asked, ignored = convert(body, ChatRequest)
    plan = await plan_chat(service, asked, ignored, identify(service, asked, "chatcmpl"))
    return _producer(service, plan, ChatFrames, "chat.completion", is_resumable)


async def create_completion(service: Service, body: dict[str, Any]) -> Producer:
    """`completion.create`: the body of POST /v1/completions, and `resumable`."""
    is_resumable = take_resumable(body)
    asked, ignored = convert(body, CompletionRequest)
    plan = await plan_completion(service, asked, ignored, identify(service, asked, "cmpl"))
    return _producer(service, plan, CompletionFrames, "completion", is_resumable)


def _producer(service: Service, plan: Plan, frames: type[Frames], kind: str, is_resumable: bool) -> Producer:
    usage = new_usage(plan)
    lines = frames(stream_format(service, plan), choice_preambles(plan), usage, LINES)
    return Producer(
        plan.identity.answer_id,
        opener(service, plan),
        FrameScript(lines, kind, plan.identity.answer_id),
        Account(usage, service.metrics, num_prompts=len(plan.prompts), n=plan.params.n, trace=begin_trace(service, plan)),
        active_requests=service.active_requests,
        unread_s=service.config.resume_s if is_resumable else 0.0,
    )


class FrameScript:
    """The events of one chat or completion.

    frames  framed as lines, so that each of their events can be taken out again
    kind    "chat.completion" or "completion"
    """

    def __init__(self, frames: Frames, kind: str, response_id: str) -> None:
        self._frames = frames
        self._chunk = f"{kind}.chunk"
        self._done = f"{kind}.done"
        self._response_id = response_id
        self._is_cancelled = False

    def opening(self) -> list[Entry]:
        return []

    def delta(self, delta: TextDelta) -> list[Entry]:
        if delta.finish_reason == "abort":
            self._is_cancelled = True
        return self._chunks(self._frames.delta(delta))

    def end(self) -> list[Entry]:
        status = "cancelled" if self._is_cancelled else "completed"
        chunks = self._chunks(self._frames.end().removesuffix(self._frames.done))
        return [*chunks, _entry(self._done, {"response_id": self._response_id, "status": status})]

    def failure(self, error: StreamserveError) -> list[Entry]:
        return [_entry("error", {"status": error.status, **error_object(error)})]

    def _chunks(self, lines: bytes) -> list[Entry]:
        return [Entry(self._chunk, b'"data":' + line) for line in lines.splitlines()]


def _entry(kind: str, fields: dict[str, Any]) -> Entry:
    return Entry(kind, orjson.dumps(fields)[1:-1])
