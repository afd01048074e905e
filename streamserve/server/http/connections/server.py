"""uvicorn in a running event loop, without its own signal handling and logging.

Lives on one API worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import uvicorn
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.engine.process.launch import listening_socket
from streamserve.errors import ConfigError
from streamserve.server.http.connections.connection_limit import ConnectionLimit
from streamserve.server.http.connections.listen import Listen
from streamserve.server.http.connections.protocol import RequestProtocol

logger = logging.getLogger("streamserve.server")

BACKLOG = 2048
MAX_MESSAGE_BYTES = 64 << 20
PONG_TIMEOUT_S = 65.0
RECEIVE_TIMEOUT_S = 20.0
BUFFER_TICKS = 5
"""uvicorn ticks, of which there are ten a second, between two measurements of the clients' write buffers."""


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves signals to its process.

    on_buffered  called twice a second with the bytes in the clients' write buffers
    """

    def __init__(self, config: uvicorn.Config, *, on_buffered: Callable[[float], None] | None = None) -> None:
        super().__init__(config)
        self.listening = anyio.Event()
        self._is_retired = False
        self._on_buffered = on_buffered

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def open_internal_socket(self, path: str) -> None:
        """Also serve on an AF_UNIX socket at `path` that only this user may connect to. The server must have started."""
        server = await asyncio.get_running_loop().create_unix_server(self._new_connection, sock=listening_socket(path))
        self.servers.append(server)

    @asynccontextmanager
    async def accepting_from(self, listening: socket.socket) -> AsyncIterator[None]:
        """Accept from another socket of the same port, too, while the block runs. The server must have started."""
        try:
            server = await self._accept_from(listening)
        except OSError as error:
            logger.error("can't accept another API worker's connections, which wait for it: %s", error.strerror)
            yield
            return
        try:
            yield
        finally:
            server.close()

    async def _accept_from(self, listening: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._new_connection, sock=listening.dup(), ssl=self.config.ssl, backlog=self.config.backlog
        )

    def _new_connection(self) -> asyncio.Protocol:
        connection = self.config.http_protocol_class(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]
        if self._is_retired and isinstance(connection, RequestProtocol):
            connection.retire()
        return connection

    def retire(self) -> None:
        """Accept no more connections from clients; close each that there is, or still comes, after its next response."""
        self._is_retired = True
        self.servers[0].close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, RequestProtocol):
                connection.retire()

    @property
    def is_connected(self) -> bool:
        """Whether a client or another worker has a connection."""
        return bool(self.server_state.connections)

    def reload_certificates(self) -> None:
        """Read the TLS files again, for connections from now on. Raises `ConfigError` and changes nothing for unusable ones."""
        config = self.config
        if config.ssl is None or config.ssl_certfile is None:
            return
        try:
            # First into a context that nothing uses: a key that is not the certificate's must not replace one that is.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config.ssl):
                context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
                if config.ssl_ca_certs is not None:
                    context.load_verify_locations(config.ssl_ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(error) from error

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
    websocket_protocol: Callable[..., asyncio.Protocol],
    shutdown_timeout_s: float,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    pong_timeout_s: float = PONG_TIMEOUT_S,
    receive_timeout_s: float = RECEIVE_TIMEOUT_S,
    connection_limit: ConnectionLimit | None = None,
    on_buffered: Callable[[float], None] | None = None,
) -> HttpServer:
    """The server for `app`; `serve(sockets=[...])` runs it until `should_exit` is set.

    websocket_protocol  makes uvicorn's protocol for connections that are upgraded
    max_message_bytes   a WebSocket that sends a larger message is closed with 1009
    pong_timeout_s      one that does not answer a ping for this long is closed with 1011: longer than its send timeout
    receive_timeout_s   read timeout of a request's head and body
    connection_limit    None for as many connections as there are descriptors
    on_buffered         called twice a second with the bytes in the clients' write buffers

    Raises `ConfigError` for unusable TLS files.
    """
    config = uvicorn.Config(
        _under(listen.root_path, app) if listen.root_path else app,
        log_config=None,
        access_log=listen.access_log,
        lifespan="off",
        backlog=BACKLOG,
        http=partial(RequestProtocol, receive_timeout_s=receive_timeout_s, connection_limit=connection_limit),  # type: ignore[arg-type]
        ws=websocket_protocol,  # type: ignore[arg-type]
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
        raise _unusable(error) from error
    return HttpServer(config, on_buffered=on_buffered)


def _unusable(error: OSError) -> ConfigError:
    return ConfigError(f"the TLS certificate or key can't be used: {error}")


def _under(root_path: str, app: ASGIApp) -> ASGIApp:
    """`app` under a path and at the root as well: some proxies strip the prefix they add and some do not."""
    prefix = root_path.rstrip("/")

    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :]}  # type: ignore[assignment]
        await app(scope, receive, send)

    return mounted
