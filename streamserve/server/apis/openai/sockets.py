"""Chats and completions over a WebSocket, with the very JSON that their SSE streams carry."""

from __future__ import annotations

from streamserve.server.api import CreateMessage
from streamserve.server.apis.openai.answers.script import ChatScript, CompletionScript
from streamserve.server.apis.openai.chat import CHAT_PREFIX, prepare_chat
from streamserve.server.apis.openai.completions import COMPLETION_PREFIX, prepare_completion
from streamserve.server.apis.openai.prepared_request import identity_of, logged
from streamserve.server.apis.openai.requests.schemas import ChatRequest, CompletionRequest
from streamserve.server.delivery.events import SocketEvent
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.http.bodies.request_body import convert
from streamserve.server.service import Service


async def create_chat(service: Service, message: CreateMessage) -> LoggedRun[SocketEvent]:
    """`chat.completion.create`, with the body of POST /v1/chat/completions."""
    decoded = await convert(message.body, ChatRequest)
    prepared = await prepare_chat(service, decoded, identity_of(service, decoded.request, CHAT_PREFIX, message.tenant))
    return logged(service, prepared, ChatScript, is_resumable=message.is_resumable)


async def create_completion(service: Service, message: CreateMessage) -> LoggedRun[SocketEvent]:
    """`completion.create`, with the body of POST /v1/completions."""
    decoded = await convert(message.body, CompletionRequest)
    prepared = await prepare_completion(
        service, decoded, identity_of(service, decoded.request, COMPLETION_PREFIX, message.tenant)
    )
    return logged(service, prepared, CompletionScript, is_resumable=message.is_resumable)
