"""HTTP by hand over a bare socket: what arrives is seen write by write; a client may leave or stop reading when it likes."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream


class RawResponse:
    """One response on an open connection.

    chunks  the transfer chunks of the body; the server writes each at once, so a chunk is a write
    """

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.has_ended = False

    async def read_head(self) -> None:
        head = await self._read_until(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        self.status = int(status_line.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    async def chunk(self) -> bytes | None:
        """The next chunk; None at the end of the body."""
        if self.has_ended:
            return None
        size = int(await self._read_until(b"\r\n"), 16)
        data = await self._read_exactly(size + 2)
        self.has_ended = size == 0
        return None if self.has_ended else data[:-2]

    async def chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self.chunk()) is not None:
            yield chunk

    async def body(self) -> bytes:
        """The rest of the body, by its length or chunks."""
        if "content-length" in self.headers:
            return await self._read_exactly(int(self.headers["content-length"]))
        return b"".join([chunk async for chunk in self.chunks()])

    async def leave(self) -> None:
        """Close the connection without reading on."""
        await self._stream.aclose()

    async def received_after(self, seconds: float) -> bytes:
        """Whatever else arrives within a while; the end of the connection adds nothing."""
        data = self._buffer
        with anyio.move_on_after(seconds):
            while True:
                try:
                    data += await self._stream.receive()
                except anyio.EndOfStream:
                    break
        return data

    async def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._buffer += await self._stream.receive()
        data, _, self._buffer = self._buffer.partition(mark)
        return data

    async def _read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._stream.receive()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


@asynccontextmanager
async def request(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[RawResponse]:
    """Send one request and give its response once the head has come; `body` is JSON unless it is bytes.

    receive_buffer  bytes the kernel may hold for this client, for one that is slow to read
    """
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"Host": "test", "Content-Length": len(data), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    async with await _connect(port, receive_buffer) as stream:
        await stream.send("\r\n".join([*lines, "", ""]).encode() + data)
        response = RawResponse(stream)
        with anyio.fail_after(10):
            await response.read_head()
        yield response


async def _connect(port: int, receive_buffer: int | None) -> SocketStream:
    if receive_buffer is None:
        return await anyio.connect_tcp("127.0.0.1", port)
    raw = socket.socket()
    # Before it connects: the window that TCP offers is agreed on then.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.connect(("127.0.0.1", port))
    return await SocketStream.from_socket(raw)


def events(body: bytes) -> list[Any]:
    """The JSON of each server-sent event, and "[DONE]". Fails on anything else in the body but keepalives."""
    found: list[Any] = []
    for block in body.decode().split("\n\n"):
        if not block.strip("\n"):
            continue
        assert block.startswith("data: "), block
        assert "\n" not in block, block
        payload = block.removeprefix("data: ")
        found.append(payload if payload == "[DONE]" else json.loads(payload))
    return found
