"""Chats and completions over a WebSocket, with the very JSON that their SSE streams carry."""

from __future__ import annotations

from streamserve.server.apis.openai.chat import CHAT_PREFIX, prepare_chat
from streamserve.server.apis.openai.completions import COMPLETION_PREFIX, prepare_completion
from streamserve.server.apis.openai.prepared_request import identity_of, logged
from streamserve.server.apis.openai.schemas import ChatRequest, CompletionRequest
from streamserve.server.apis.openai.script import ChatScript, CompletionScript
from streamserve.server.delivery.events import SocketEvent
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.http.request_body import Body, convert
from streamserve.server.service import Service


async def create_chat(service: Service, body: Body, is_resumable: bool) -> LoggedRun[SocketEvent]:
    """`chat.completion.create`, with the body of POST /v1/chat/completions."""
    decoded = await convert(body, ChatRequest)
    prepared = await prepare_chat(service, decoded, identity_of(service, decoded.request, CHAT_PREFIX))
    return logged(service, prepared, ChatScript, is_resumable=is_resumable)


async def create_completion(service: Service, body: Body, is_resumable: bool) -> LoggedRun[SocketEvent]:
    """`completion.create`, with the body of POST /v1/completions."""
    decoded = await convert(body, CompletionRequest)
    prepared = await prepare_completion(service, decoded, identity_of(service, decoded.request, COMPLETION_PREFIX))
    return logged(service, prepared, CompletionScript, is_resumable=is_resumable)
