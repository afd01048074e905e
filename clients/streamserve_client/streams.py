"""Streams of typed chunks over HTTP responses.

`ChunkDecoder` turns bytes into chunks without I/O; `Stream` and `AsyncStream` feed it from httpx. A stream whose connection is
lost goes on over another one, where its server can continue it. Leaving a stream early ends it on the server, too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio
import httpx

from streamserve_client import calls
from streamserve_client.errors import ClientError, ProtocolError, StreamInterrupted, TimedOut, detail_of, from_event
from streamserve_client.resumption import Resumption
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
    """Bytes of an event stream in, chunks out. `is_done` after `[DONE]`; whatever follows is ignored.

    on_event  called with the id of each event before its chunk comes out; "" where it has none
    """

    def __init__(
        self, kind: type[ChunkT], path: str, request_id: str | None, on_event: Callable[[str], None] = lambda _: None
    ) -> None:
        self.is_done = False
        self._events = SSEDecoder()
        self._on_event = on_event
        self._kind = kind
        self._path = path
        self._request_id = request_id

    def feed(self, data: bytes) -> Iterator[ChunkT]:
        """The chunks that `data` completes. Raises `StreamFailed` at an error event, `ProtocolError` at an invalid one."""
        for event in self._events.feed(data):
            if self.is_done:
                return
            self._on_event(event.id)
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

    def __init__(self, response: httpx.Response, call: calls.Call[ChunkT], resumption: Resumption) -> None:
        self.request_id: str | None = response.headers.get("x-request-id")
        self.usage: Usage | None = None
        self._call = call
        self._resumption = resumption
        self._is_over = False
        self._begin(response)

    def _begin(self, response: httpx.Response) -> None:
        """Read from this response from now on."""
        self._response = response
        self._resumption.answered(response.headers)
        self._decoder = ChunkDecoder(self._call.response_type, self._call.path, self.request_id, self._resumption.arrived)

    def _check_is_events(self) -> None:
        kind = self._response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise ProtocolError(f"{self._call.path}: expected an event stream, got {kind or 'no content type'}")

    @property
    def _left_id(self) -> str | None:
        """The id of the stream that its server goes on with when the connection is closed; None when it does not."""
        return None if self._decoder.is_done or self._is_over else self._resumption.stream_id

    @property
    def _running_id(self) -> str:
        """What the server calls the request. Raises `ProtocolError` when it has not said so."""
        found = self._resumption.stream_id or self.request_id
        if found is None:
            raise ProtocolError(f"{self._call.path}: the server names no request that could be told to answer")
        return found


def _lost(error: httpx.TransportError | None) -> StreamInterrupted | TimedOut:
    """The failure of a stream whose connection ended with this error, or without an ending."""
    if error is None:
        return StreamInterrupted("the connection ended before the stream did")
    if isinstance(error, httpx.TimeoutException):
        failure: StreamInterrupted | TimedOut = TimedOut("the server sent nothing for too long")
    else:
        failure = StreamInterrupted(f"the connection was lost: {str(error) or type(error).__name__}")
    failure.__cause__ = error
    return failure


class Stream(_StreamState[ChunkT]):
    """Chunks as the server sends them; iterate it inside its `with` block.

    Raises `StreamFailed` when the server ends it with an error, `StreamInterrupted` when it ends without an ending, `TimedOut`.
    """

    def __init__(
        self,
        response: httpx.Response,
        call: calls.Call[ChunkT],
        resumption: Resumption,
        *,
        send: Callable[[calls.Call[Any]], httpx.Response],
        cancel: Callable[[str], None],
        answer_now: Callable[[str], None],
    ) -> None:
        super().__init__(response, call, resumption)
        self._send = send
        self._cancel = cancel
        self._answer_now = answer_now
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
        try:
            while not self._decoder.is_done:
                self._check_is_events()
                lost: httpx.TransportError | None = None
                # Read past [DONE] to the end of the body: only then can the connection serve another request.
                try:
                    for data in self._response.iter_bytes():
                        for chunk in self._decoder.feed(data):
                            self.usage = chunk.usage or self.usage
                            yield chunk
                except httpx.TransportError as error:
                    lost = error
                if not self._decoder.is_done:
                    self._continue(_lost(lost))
        except ClientError:
            self._is_over = True
            raise

    def _continue(self, failure: ClientError) -> None:
        """Go on over another connection; raises `failure` when that can't be done."""
        wait_s = self._resumption.wait_s()
        if wait_s is None:
            raise failure
        time.sleep(wait_s)
        try:
            response = self._send(self._resumption.call(self._call))
        except ClientError as error:
            raise failure from error
        self._response.close()
        self._begin(response)

    def text(self) -> Iterator[str]:
        """Only the first choice's text, piece by piece."""
        return (chunk.text for chunk in self if chunk.text)

    def answer_now(self) -> None:
        """Have the model end its reasoning and answer, in this stream; see `Client.answer_now`."""
        self._answer_now(self._running_id)

    def close(self) -> None:
        """Close the connection, and have the server stop generating. Idempotent."""
        stream_id, self._is_over = self._left_id, True
        self._response.close()
        if stream_id is not None:
            self._cancel(stream_id)


class AsyncStream(_StreamState[ChunkT]):
    """Chunks as the server sends them; iterate it inside its `async with` block. Raises as `Stream`."""

    def __init__(
        self,
        response: httpx.Response,
        call: calls.Call[ChunkT],
        resumption: Resumption,
        *,
        send: Callable[[calls.Call[Any]], Awaitable[httpx.Response]],
        cancel: Callable[[str], Awaitable[None]],
        answer_now: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__(response, call, resumption)
        self._send = send
        self._cancel = cancel
        self._answer_now = answer_now
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
        try:
            while (chunk := next(self._chunks, None)) is None:
                # Not in one expression: the decoder is another one when the connection is.
                data = await self._more_bytes()
                self._chunks = self._decoder.feed(data)
        except ClientError:
            self._is_over = True
            raise
        self.usage = chunk.usage or self.usage
        return chunk

    async def _more_bytes(self) -> bytes:
        while True:
            self._check_is_events()
            lost: httpx.TransportError | None = None
            # Read past [DONE] to the end of the body: only then can the connection serve another request.
            try:
                data = await anext(self._incoming, None)
            except httpx.TransportError as error:
                data, lost = None, error
            if data is not None:
                return data
            if self._decoder.is_done:
                raise StopAsyncIteration
            await self._continue(_lost(lost))

    async def _continue(self, failure: ClientError) -> None:
        """Go on over another connection; raises `failure` when that can't be done."""
        wait_s = self._resumption.wait_s()
        if wait_s is None:
            raise failure
        await anyio.sleep(wait_s)
        try:
            response = await self._send(self._resumption.call(self._call))
        except ClientError as error:
            raise failure from error
        await self._response.aclose()
        self._begin(response)
        self._incoming = response.aiter_bytes()

    async def text(self) -> AsyncIterator[str]:
        """Only the first choice's text, piece by piece."""
        async for chunk in self:
            if chunk.text:
                yield chunk.text

    async def answer_now(self) -> None:
        """Have the model end its reasoning and answer, in this stream; see `AsyncClient.answer_now`."""
        await self._answer_now(self._running_id)

    async def aclose(self) -> None:
        """Close the connection, and have the server stop generating. Idempotent."""
        stream_id, self._is_over = self._left_id, True
        await self._response.aclose()
        if stream_id is not None:
            # Shielded: a reader that was cancelled leaves a stream like any other.
            with anyio.CancelScope(shield=True):
                await self._cancel(stream_id)
