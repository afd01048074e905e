"""HTTP by hand over connections that are kept: a tenth of the processor time of a library's client.

For loads whose client shares its processors with the server. Runs on one event loop; reads whole answers, and the first event
of a stream. A connection is closed where an answer is given up.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import NamedTuple
from urllib.parse import urlsplit

LARGEST_ANSWER = 1 << 20
_HEAD_END = b"\r\n\r\n"
_FIRST_EVENT = b"data: {"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RawClient:
    """Sends requests with one key.

    patience_s  after which it gives an answer up; the server is told, unless `is_silent`
    """

    def __init__(self, base_url: str, key: str, *, patience_s: float, is_silent: bool = False) -> None:
        address = urlsplit(base_url)
        assert address.hostname is not None
        assert address.port is not None
        self._address = (address.hostname, address.port)
        self._patience_s = patience_s
        prefer = "" if is_silent else f"Prefer: wait={patience_s:g}\r\n"
        self._head = f"Host: localhost\r\nAuthorization: Bearer {key}\r\n{prefer}"
        self._idle: list[Connection] = []

    async def post(self, path: str, fields: dict[str, object]) -> int:
        """The status of a whole answer.

        Raises `TimeoutError` when it is not there in time, `OSError` or `asyncio.IncompleteReadError` when the server hangs up.
        """
        async with asyncio.timeout(self._patience_s):
            connection = await self._send(path, fields)
            try:
                head = await _read_head(connection)
                await connection[0].readexactly(head.length)
            except BaseException:
                connection[1].transport.abort()
                raise
        self._idle.append(connection)
        return head.status

    async def first_event_s(self, path: str, fields: dict[str, object]) -> float:
        """Seconds until the first event of a stream, which is then read to its end; infinite where it is refused.

        Raises as `post`, without giving up.
        """
        started = time.perf_counter()
        connection = await self._send(path, fields)
        reader = connection[0]
        head = await _read_head(connection)
        if head.status != 200:
            await reader.readexactly(head.length)
            self._idle.append(connection)
            return float("inf")
        await reader.readuntil(_FIRST_EVENT)
        first_s = time.perf_counter() - started
        await reader.readuntil(b"0\r\n\r\n")
        self._idle.append(connection)
        return first_s

    async def close(self) -> None:
        """Close the connections that are idle."""
        for _, writer in self._idle:
            writer.close()

    async def _send(self, path: str, fields: dict[str, object]) -> Connection:
        body = json.dumps(fields).encode()
        connection = await self._connection()
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        connection[1].write(head.encode() + body)
        return connection

    async def _connection(self) -> Connection:
        """One that is idle, or a new one; servers close those that are idle for long."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address, limit=LARGEST_ANSWER)


class _Head(NamedTuple):
    """What of a head matters: the status, and the length of the body if it says so."""

    status: int
    length: int


async def _read_head(connection: Connection) -> _Head:
    lines = (await connection[0].readuntil(_HEAD_END)).lower().split(b"\r\n")
    lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    return _Head(int(lines[0].split()[1]), lengths[0] if lengths else 0)
