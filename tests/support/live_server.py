"""A real uvicorn on a free port of loopback, in the test's own event loop.

Test clients that call an app directly buffer whole responses, so nothing about streams can be seen through them.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from litestar import Litestar

from streamserve.frontend import Frontend
from streamserve.server.api import Api
from streamserve.server.app import APIS, create_app
from streamserve.server.config import ServerConfig
from streamserve.server.http.bodies.body_memory import BodyMemory
from streamserve.server.http.connections.connection_limit import ConnectionLimit
from streamserve.server.http.connections.listen import Listen
from streamserve.server.http.connections.server import http_server
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.tracing import Tracer
from streamserve.server.ws.protocol import SocketProtocol
from tests.support.byte_tokenizer import EOS, byte_tokenizer
from tests.support.scripted_engine import ScriptedEngine


class LiveServer:
    """A server and what is behind it."""

    def __init__(self, app: Litestar, service: Service, engine: ScriptedEngine, port: int) -> None:
        self.app = app
        self.service = service
        self.engine = engine
        self.port = port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def live_server(
    engine: ScriptedEngine,
    *,
    ready: bool = True,
    defaults: dict[str, Any] | None = None,
    send_buffer: int | None = None,
    tracer: Tracer | None = None,
    siblings: Siblings | None = None,
    internal_socket: str | None = None,
    apis: Sequence[Api] = APIS,
    connection_limit: ConnectionLimit | None = None,
    **config: Any,
) -> AsyncIterator[LiveServer]:
    """Serve `engine`; `config` are fields of `ServerConfig`.

    defaults, tracer, siblings  as in `Service`
    send_buffer, internal_socket  as in `serving`
    connection_limit              as in `http_server`
    apis                          what is mounted
    """
    service = Service(ServerConfig(**{"model_names": ["scripted"], **config}), tracer=tracer, siblings=siblings)
    if ready:
        frontend = Frontend(
            engine,
            byte_tokenizer(),
            eos_token_ids=[EOS],
            max_logprobs=service.config.max_logprobs,
            chat_template=service.config.chat_template,
            allow_special_tokens_in_messages=service.config.allow_special_tokens_in_messages,
            next_seed=lambda: 7,
        )
        service.attach(frontend, defaults or {})
    app = create_app(service, apis)
    limits: dict[str, Any] = {
        "root_path": service.config.root_path,
        "max_message_bytes": service.config.max_body_bytes,
        "receive_timeout_s": service.config.receive_timeout_s,
        "pong_timeout_s": service.config.send_timeout_s + 5,
        "connection_limit": connection_limit,
        "on_buffered": service.metrics.client_buffer_bytes.set,
        "memory": service.large_work.memory,
    }
    async with (
        service.delivery.running(),
        serving(app, send_buffer=send_buffer, internal_socket=internal_socket, **limits) as port,
    ):
        yield LiveServer(app, service, engine, port)


@asynccontextmanager
async def serving(
    app: Any,
    *,
    root_path: str = "",
    send_buffer: int | None = None,
    internal_socket: str | None = None,
    memory: BodyMemory | None = None,
    **limits: Any,
) -> AsyncIterator[int]:
    """Run an ASGI app under uvicorn; yields its port.

    send_buffer  bytes that the kernel holds for a client that does not read; megabytes when not given
    internal_socket         the path of a further socket, for other workers
    memory       of the messages of sockets; bounded as a server's is when not given
    limits       as in `http_server`
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listen = Listen(log_level="error", access_log=False, root_path=root_path)
        protocol = partial(SocketProtocol, memory=memory or BodyMemory())
        server = http_server(app, listen, websocket_protocol=protocol, shutdown_timeout_s=1, **limits)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listening])
            await server.listening.wait()
            if internal_socket is not None:
                await server.open_internal_socket(internal_socket)
            yield listening.getsockname()[1]
            server.should_exit = True
