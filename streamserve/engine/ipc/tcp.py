"""Engines, and API workers, of other hosts: a gateway in front of a socket, and connections to it.

Runs on the event loop of either side. The gateway sends a number used once; whoever connects proves with it that it knows the
secret (HMAC-SHA-256), and is then connected with the engine as any API worker of its own host is. Nothing is encrypted: engines
belong in a network of their own, as ranks do. Knows no frame.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
import msgspec

HANDSHAKE_TIMEOUT_S = 10.0
"""Seconds that either side gets to connect and for its part of the handshake."""

SILENCE_TIMEOUT_S = 10
"""Seconds after which a host that acknowledges nothing is lost: one that has gone closes no connection."""

_NONCE_BYTES = _PROOF_BYTES = 32
_CHUNK_BYTES = 1 << 16

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Connect = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[_Streams | None]]


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
    """Connects whoever knows the secret with the socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._secret = secrets.token_bytes(32)
        self._relays = _Relays()

    async def listen(self, host: str) -> TcpAddress:
        """Begin to accept on a free port of an address of this host; returns where."""
        server = await asyncio.start_server(partial(self._relays.run, self._connect), host, 0)
        self._relays.server = server
        return TcpAddress(host, server.sockets[0].getsockname()[1], self._secret)

    async def close(self) -> None:
        """Accept nothing more and close every connection. Idempotent."""
        await self._relays.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Streams | None:
        """The socket, once the other side has proved that it knows the secret; None when it does not."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        writer.write(nonce)
        with suppress(TimeoutError, asyncio.IncompleteReadError):
            with anyio.fail_after(HANDSHAKE_TIMEOUT_S):
                proof = await reader.readexactly(_PROOF_BYTES)
            if hmac.compare_digest(proof, _proof(self._secret, nonce)):
                _detect_silence(writer.get_extra_info("socket"))
                return await asyncio.open_unix_connection(self._path)
        return None


class Outlet:
    """Connects whoever connects to a socket of this host with the gateway of another."""

    def __init__(self) -> None:
        self._relays = _Relays()
        self._path = ""

    async def listen(self, address: TcpAddress, path: str) -> None:
        """Begin to accept on an AF_UNIX socket at `path` that only this user may connect to."""

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Streams:
            return await asyncio.open_connection(sock=await open_tcp(address))

        self._relays.server = await asyncio.start_unix_server(partial(self._relays.run, connect), path)
        os.chmod(path, 0o600)
        self._path = path

    async def close(self) -> None:
        """Accept nothing more, close every connection and remove the socket. Idempotent."""
        await self._relays.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


class _Relays:
    """A server's connections, each passed on to another one in both directions."""

    def __init__(self) -> None:
        self.server: asyncio.Server | None = None
        self._writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def run(self, connect: _Connect, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection's bytes on until either side closes."""
        task = asyncio.current_task()
        assert task is not None
        self._writers[task] = writer
        try:
            if (other := await connect(reader, writer)) is not None:
                await _relay((reader, writer), other)
        except OSError:
            # Either side has gone, and the other learns it now.
            return
        finally:
            del self._writers[task]
            writer.transport.abort()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for writer in self._writers.values():
            writer.transport.abort()
        if self._writers:
            await asyncio.wait(list(self._writers))


async def _relay(one: _Streams, other: _Streams) -> None:
    """Pass bytes on both ways until either side closes; both are closed then."""
    ways = [asyncio.create_task(_pass_on(one[0], other[1])), asyncio.create_task(_pass_on(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        other[1].transport.abort()
        await asyncio.wait(ways)


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
