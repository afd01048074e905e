"""uvicorn, run inside an event loop that is already there and told what to do by us: no signals of its own, no log of its own.

Lives on one API worker's event loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import uvicorn
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.engine.launch import listening_socket
from streamserve.errors import ConfigError
from streamserve.server.http.protocol import RequestProtocol
from streamserve.server.process.listen import Listen
from streamserve.server.ws.protocol import SocketProtocol

BACKLOG = 2048
MAX_MESSAGE_BYTES = 64 << 20
PONG_TIMEOUT_S = 65.0
RECEIVE_TIMEOUT_S = 20.0
BUFFER_TICKS = 5
"""uvicorn's ticks, ten a second, from one look at what waits for clients to the next."""


class HttpServer(uvicorn.Server):
    """A uvicorn server whose process listens to signals elsewhere."""

    def __init__(self, config: uvicorn.Config, *, on_buffered: Callable[[float], None] | None = None) -> None:
        super().__init__(config)
        self.listening = anyio.Event()
        self._on_buffered = on_buffered

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def open_door(self, path: str) -> None:
        """Serve on an AF_UNIX socket at `path`, too, that only this user may connect to; for a server that has started."""
        config, state = self.config, self.server_state
        door = await asyncio.get_running_loop().create_unix_server(
            lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
            sock=listening_socket(path),
        )
        self.servers.append(door)

    async def on_tick(self, counter: int) -> bool:
        if self._on_buffered is not None and counter % BUFFER_TICKS == 0:
            self._on_buffered(self._buffered_bytes())
        return await super().on_tick(counter)

    def _buffered_bytes(self) -> int:
        transports = (getattr(connection, "transport", None) for connection in self.server_state.connections)
        return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(
    app: Any,
    listen: Listen,
    *,
    shutdown_timeout_s: float,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    pong_timeout_s: float = PONG_TIMEOUT_S,
    receive_timeout_s: float = RECEIVE_TIMEOUT_S,
    on_buffered: Callable[[float], None] | None = None,
) -> HttpServer:
    """The server for `app`; `serve(sockets=[...])` runs it until `should_exit` is set.

    max_message_bytes  a WebSocket that sends a larger message is closed with 1009
    pong_timeout_s     one that does not answer a ping for this long is closed with 1011: longer than it may take nothing
    receive_timeout_s  a client that stops in the middle of a request, or never begins one, is hung up on after this long
    on_buffered        told twice a second how many bytes wait for clients to read them

    Raises `ConfigError` for unusable TLS files.
    """
    config = uvicorn.Config(
        _under(listen.root_path, app) if listen.root_path else app,
        log_config=None,
        access_log=listen.access_log,
        lifespan="off",
        backlog=BACKLOG,
        http=partial(RequestProtocol, receive_timeout_s=receive_timeout_s),  # type: ignore[arg-type]
        ws=SocketProtocol,
        ws_max_size=max_message_bytes,
        ws_ping_timeout=pong_timeout_s,
        ws_per_message_deflate=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(shutdown_timeout_s)),
        ssl_keyfile=listen.ssl_keyfile,
        ssl_certfile=listen.ssl_certfile,
        ssl_ca_certs=listen.ssl_ca_certs,
        ssl_cert_reqs=listen.ssl_cert_reqs,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the TLS certificate or key can't be used: {error}") from error
    return HttpServer(config, on_buffered=on_buffered)


def _under(root_path: str, app: ASGIApp) -> ASGIApp:
    """`app` under a path and at the root as well: some proxies strip the prefix they add and some do not."""
    prefix = root_path.rstrip("/")

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :]}  # type: ignore[assignment]
        await app(scope, receive, send)

    return mounted
