"""streamserve-client: a typed client for streamserve and other servers with OpenAI's API. Needs no part of streamserve.

with Client() as client, client.stream_chat([{"role": "user", "content": "描述一下北京的秋天"}]) as stream:
    for chunk in stream:
        print(chunk.text, end="", flush=True)
"""

from streamserve_client.async_client import AsyncClient
from streamserve_client.client import Client
from streamserve_client.errors import (
    APIError,
    AuthenticationFailed,
    BadRequest,
    ClientError,
    ConnectionFailed,
    ContextLengthExceeded,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    ServerError,
    StreamFailed,
    StreamInterrupted,
    TimedOut,
    TooLarge,
    Unavailable,
)
from streamserve_client.retries import RetryPolicy
from streamserve_client.sse import ServerSentEvent, SSEDecoder
from streamserve_client.streams import AsyncStream, Stream
from streamserve_client.types import ChatCompletion, Completion, Health, Message, Model, PartialJson, Progress, Usage

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationFailed",
    "BadRequest",
    "ChatCompletion",
    "Client",
    "ClientError",
    "Completion",
    "ConnectionFailed",
    "ContextLengthExceeded",
    "Health",
    "Message",
    "Model",
    "ModelNotFound",
    "NotFound",
    "PartialJson",
    "PermissionDenied",
    "Progress",
    "ProtocolError",
    "RateLimited",
    "RetryPolicy",
    "SSEDecoder",
    "ServerError",
    "ServerSentEvent",
    "Stream",
    "StreamFailed",
    "StreamInterrupted",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "Usage",
]
