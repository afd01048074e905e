"""Streams of typed chunks over one HTTP response each.

`ChunkDecoder` turns bytes into chunks without I/O; `Stream` and `AsyncStream` feed it from httpx. Leaving a stream early closes
its connection, at which the server stops generating.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import httpx

from streamserve_client import calls
from streamserve_client.errors import ProtocolError, StreamInterrupted, TimedOut, detail_of, from_event
from streamserve_client.sse import SSEDecoder
from streamserve_client.types import Usage


class Chunk(Protocol):
    """The fields that every chunk of a stream has."""

    @property
    def text(self) -> str: ...

    @property
    def usage(self) -> Usage | None: ...


ChunkT = TypeVar("ChunkT", bound=Chunk)

DONE = "[DONE]"


class ChunkDecoder(Generic[ChunkT]):
    """Bytes of an event stream in, chunks out. `is_done` after `[DONE]`; whatever follows is ignored."""

    def __init__(self, kind: type[ChunkT], path: str, request_id: str | None) -> None:
        self.is_done = False
        self._events = SSEDecoder()
        self._kind = kind
        self._path = path
        self._request_id = request_id

    def feed(self, data: bytes) -> Iterator[ChunkT]:
        """The chunks that `data` completes. Raises `StreamFailed` at an error event, `ProtocolError` at an invalid one."""
        for event in self._events.feed(data):
            if self.is_done:
                return
            if event.data == DONE:
                self.is_done = True
            else:
                yield self._chunk(event.data)

    def _chunk(self, data: str) -> ChunkT:
        if '"error"' in data and (detail := detail_of(data)) is not None:
            raise from_event(detail, self._request_id)
        return calls.decode(data, self._kind, self._path)


class _StreamState(Generic[ChunkT]):
    """The state of a stream, sync or async.

    request_id  the server's id of this request, from its headers
    usage       token counts, once the server has sent them
    """

    def __init__(self, response: httpx.Response, call: calls.Call[ChunkT]) -> None:
        self.request_id: str | None = response.headers.get("x-request-id")
        self.usage: Usage | None = None
        self._response = response
        self._path = call.path
        self._decoder = ChunkDecoder(call.response_type, call.path, self.request_id)

    def _check_is_events(self) -> None:
        kind = self._response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise ProtocolError(f"{self._path}: expected an event stream, got {kind or 'no content type'}")

    def _interrupted(self) -> StreamInterrupted:
        return StreamInterrupted("the connection ended before the stream did")

    def _lost(self, error: httpx.TransportError) -> StreamInterrupted | TimedOut:
        if isinstance(error, httpx.TimeoutException):
            return TimedOut("the server sent nothing for too long")
        return StreamInterrupted(f"the connection was lost: {str(error) or type(error).__name__}")


class Stream(_StreamState[ChunkT]):
    """Chunks as the server sends them; iterate it inside its `with` block.

    Raises `StreamFailed` when the server ends it with an error, `StreamInterrupted` when it ends without an ending, `TimedOut`.
    """

    def __init__(self, response: httpx.Response, call: calls.Call[ChunkT]) -> None:
        super().__init__(response, call)
        self._chunks = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[ChunkT]:
        return self._chunks

    def __next__(self) -> ChunkT:
        return next(self._chunks)

    def _read(self) -> Iterator[ChunkT]:
        self._check_is_events()
        # Read past [DONE] to the end of the body: only then can the connection serve another request.
        try:
            for data in self._response.iter_bytes():
                for chunk in self._decoder.feed(data):
                    self.usage = chunk.usage or self.usage
                    yield chunk
        except httpx.TransportError as error:
            if not self._decoder.is_done:
                raise self._lost(error) from error
        if not self._decoder.is_done:
            raise self._interrupted()

    def text(self) -> Iterator[str]:
        """Only the first choice's text, piece by piece."""
        return (chunk.text for chunk in self if chunk.text)

    def close(self) -> None:
        """Close the connection, at which the server stops generating. Idempotent."""
        self._response.close()


class AsyncStream(_StreamState[ChunkT]):
    """Chunks as the server sends them; iterate it inside its `async with` block. Raises as `Stream`."""

    def __init__(self, response: httpx.Response, call: calls.Call[ChunkT]) -> None:
        super().__init__(response, call)
        self._incoming = response.aiter_bytes()
        self._chunks: Iterator[ChunkT] = iter(())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChunkT:
        while (chunk := next(self._chunks, None)) is None:
            self._chunks = self._decoder.feed(await self._more_bytes())
        self.usage = chunk.usage or self.usage
        return chunk

    async def _more_bytes(self) -> bytes:
        self._check_is_events()
        # Read past [DONE] to the end of the body: only then can the connection serve another request.
        try:
            data = await anext(self._incoming, None)
        except httpx.TransportError as error:
            if not self._decoder.is_done:
                raise self._lost(error) from error
            data = None
        if data is not None:
            return data
        if self._decoder.is_done:
            raise StopAsyncIteration
        raise self._interrupted()

    async def text(self) -> AsyncIterator[str]:
        """Only the first choice's text, piece by piece."""
        async for chunk in self:
            if chunk.text:
                yield chunk.text

    async def aclose(self) -> None:
        """Close the connection, at which the server stops generating. Idempotent."""
        await self._response.aclose()
