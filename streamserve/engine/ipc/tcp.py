"""Engines of other hosts: a gateway in front of an engine's socket, and connections to it.

Runs on the event loop of either side. The gateway sends a number used once; whoever connects proves with it that it knows the
secret (HMAC-SHA-256), and is then connected with the engine as any API worker of its own host. Nothing is encrypted: engines
belong in a network of their own, as ranks do. Knows no frame.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from contextlib import suppress

import anyio
import msgspec

HANDSHAKE_TIMEOUT_S = 10.0
"""Seconds that either side gets to connect and for its part of the handshake."""

SILENCE_TIMEOUT_S = 10
"""Seconds after which a host that acknowledges nothing is lost: one that has gone closes no connection."""

_NONCE_BYTES = _PROOF_BYTES = 32
_CHUNK_BYTES = 1 << 16


class TcpAddress(msgspec.Struct, frozen=True):
    """Where a gateway listens, and the secret that it asks for."""

    host: str
    port: int
    secret: bytes


class Place:
    """Where one engine after another listens, each at an address of its own.

    address    of the engine that is there; None while there is none
    is_closed  no engine will come here any more
    """

    def __init__(self, address: TcpAddress | None = None) -> None:
        self.address = address
        self.is_closed = False


class Gateway:
    """Connects whoever knows the secret with the engine that listens at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._server: asyncio.Server | None = None
        self._relays: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def listen(self, host: str) -> TcpAddress:
        """Begin to accept on a free port of an address of this host; returns where."""
        self._server = await asyncio.start_server(self._accept, host, 0)
        return TcpAddress(host, self._server.sockets[0].getsockname()[1], self._secret)

    async def close(self) -> None:
        """Accept nothing more and close every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
        for writer in self._relays.values():
            writer.transport.abort()
        if self._relays:
            await asyncio.wait(list(self._relays))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        assert relay is not None
        self._relays[relay] = writer
        try:
            if await self._is_known(reader, writer):
                await self._relay(reader, writer)
        except OSError:
            # Either side has gone, and the other learns it now.
            return
        finally:
            del self._relays[relay]
            writer.transport.abort()

    async def _is_known(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the other side knows the secret."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        writer.write(nonce)
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                return hmac.compare_digest(await reader.readexactly(_PROOF_BYTES), _proof(self._secret, nonce))
        return False

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on both ways until either side closes."""
        _detect_silence(writer.get_extra_info("socket"))
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._path)
        try:
            ways = [asyncio.create_task(_pass_on(reader, engine_writer)), asyncio.create_task(_pass_on(engine_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        finally:
            engine_writer.transport.abort()


async def open_tcp(address: TcpAddress) -> socket.socket:
    """A connection with the engine behind a gateway. Raises `OSError` when it can't be had."""
    loop = asyncio.get_running_loop()
    connection = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _detect_silence(connection)
        with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
            await loop.sock_connect(connection, (address.host, address.port))
            nonce = b""
            while len(nonce) < _NONCE_BYTES:
                part = await loop.sock_recv(connection, _NONCE_BYTES - len(nonce))
                if not part:
                    raise ConnectionResetError("the gateway has closed the connection")
                nonce += part
            await loop.sock_sendall(connection, _proof(address.secret, nonce))
    except BaseException:
        connection.close()
        raise
    return connection


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Write what is read until the end; reads no faster than the other side takes it."""
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def _proof(secret: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, nonce, "sha256")


def _detect_silence(connection: socket.socket) -> None:
    """Have the kernel close the connection once the other host is gone, whether anything is being sent to it or not."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_USER_TIMEOUT", SILENCE_TIMEOUT_S * 1000)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
