"""A server that is replaced, or gets other certificates, while clients are connected: none of them is cut off."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamserve.errors import ConfigError
from streamserve.server.http.bodies.body_memory import BodyMemory
from streamserve.server.http.connections.listen import Listen
from streamserve.server.http.connections.server import HttpServer, http_server
from streamserve.server.ws.protocol import SocketProtocol

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parents[2] / "data" / "tls"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers two pieces, the second once the client has sent its body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    while (await receive()).get("more_body"):
        continue
    await send({"type": "http.response.body", "body": b"last"})


@asynccontextmanager
async def serving(**tls: Any) -> AsyncIterator[tuple[HttpServer, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listen = Listen(log_level="error", access_log=False, **tls)
        protocol = partial(SocketProtocol, memory=BodyMemory())
        server = http_server(app, listen, websocket_protocol=protocol, shutdown_timeout_s=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listening.dup()])
            await server.listening.wait()
            yield server, listening
            server.should_exit = True


async def read_until(stream: Any, mark: bytes) -> bytes:
    data = b""
    with anyio.fail_after(5):
        while mark not in data:
            data += await stream.receive()
    return data


GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


async def test_a_server_that_is_replaced_finishes_what_it_answers_and_serves_those_connected_once_more() -> None:
    async with serving() as (server, listening):
        port = listening.getsockname()[1]
        async with await anyio.connect_tcp("127.0.0.1", port) as streaming, await anyio.connect_tcp("127.0.0.1", port) as idle:
            await idle.send(GET)
            await read_until(idle, b"last\r\n0\r\n\r\n")
            await streaming.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n")
            await read_until(streaming, b"first")
            server.retire()
            await streaming.send(b"body")
            assert b"last" in await read_until(streaming, b"0\r\n\r\n")
            await idle.send(GET)
            assert b"connection: close" in await read_until(idle, b"last")
            for stream in (streaming, idle):
                with pytest.raises(anyio.EndOfStream), anyio.fail_after(5):
                    while True:
                        await stream.receive()
        # What nobody accepts waits in the queue of the socket, for whoever takes its place.
        async with await anyio.connect_tcp("127.0.0.1", port) as waiting:
            await waiting.send(GET)
            async with server.accepting_from(listening):
                assert b"last" in await read_until(waiting, b"0\r\n\r\n")
                while len(server.server_state.connections) > 1:  # noqa: ASYNC110
                    await anyio.sleep(0.01)


async def name_of(port: int) -> str:
    """The name in the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(TLS / "one.crt"))
    context.load_verify_locations(str(TLS / "two.crt"))
    context.check_hostname = False
    async with await anyio.connect_tcp("127.0.0.1", port, ssl_context=context, tls_standard_compatible=False) as stream:
        certificate = stream.extra(anyio.streams.tls.TLSAttribute.peer_certificate)
    return str(certificate["subject"][0][0][1])


async def test_new_certificates_are_shown_to_new_connections_and_unusable_ones_change_nothing(tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"

    def renew(name: str, key_of: str) -> None:
        shutil.copy(TLS / f"{name}.crt", certificate)
        shutil.copy(TLS / f"{key_of}.key", key)

    renew("one", "one")
    async with serving(ssl_certfile=str(certificate), ssl_keyfile=str(key)) as (server, listening):
        port = listening.getsockname()[1]
        assert await name_of(port) == "one.test"
        renew("two", "one")
        with pytest.raises(ConfigError, match="TLS certificate or key"):
            server.reload_certificates()
        assert await name_of(port) == "one.test"
        renew("two", "two")
        server.reload_certificates()
        assert await name_of(port) == "two.test"
