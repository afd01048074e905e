"""A TCP proxy that passes bytes on until it is told to drop every connection, that no server is behind it, or how far to go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class DroppingProxy:
    """Forwards to `port` of this machine, to none while it is None; `drop` resets whatever is open and counts it.

    answer_bytes  how much a connection brings back before it is cut
    """

    def __init__(self, port: int | None, answer_bytes: Callable[[], int] | None) -> None:
        self._answer_bytes = answer_bytes
        self.dropped = 0
        self.accepted = 0
        self.port = port
        self._open: set[asyncio.StreamWriter] = set()

    def drop(self) -> None:
        """Cut every connection at once, without a goodbye."""
        for writer in list(self._open):
            writer.transport.abort()
            self.dropped += 1

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.port is None:
            writer.transport.abort()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._open |= {writer, inner_writer}
        try:
            most = None if self._answer_bytes is None else self._answer_bytes()
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer, most))
        finally:
            self._open -= {writer, inner_writer}
            writer.close()
            inner_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None = None) -> None:
    try:
        while data := await reader.read(65536 if most is None else most):
            writer.write(data)
            await writer.drain()
            if most is not None:
                most -= len(data)
    except ConnectionError:
        return
    finally:
        writer.close()


@asynccontextmanager
async def dropping_proxy(
    port: int | None = None, *, answer_bytes: Callable[[], int] | None = None
) -> AsyncIterator[tuple[DroppingProxy, str]]:
    """The proxy in front of `port`, and its base URL."""
    proxy = DroppingProxy(port, answer_bytes)
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    async with server:
        yield proxy, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        proxy.drop()
