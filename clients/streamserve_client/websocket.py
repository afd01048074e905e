"""Streams over one WebSocket: many at a time, each cancelled on its own, all of them resumed after a dropped connection.

For asyncio. One task owns the socket and fills a queue per stream, so a stream that is not read keeps what arrived (at most
its `max_tokens`) and delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Generic, Literal, Self, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from streamserve_client import calls
from streamserve_client.errors import (
    AuthenticationFailed,
    ClientError,
    ConnectionFailed,
    StreamInterrupted,
    TimedOut,
    from_response,
)
from streamserve_client.multiplex import Finished, Kind, Multiplex, StreamEvent
from streamserve_client.retries import RetryPolicy
from streamserve_client.streams import ChunkT
from streamserve_client.types import ChatCompletion, ChatOptions, Completion, CompletionOptions, Message, Prompt, Usage

RETRIED_CLOSE_CODES = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1015, 4408})
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
FLUSH_TIMEOUT_S = 1.0
CLOSE_TIMEOUT_S = 2.0


class WebSocketStream(Generic[ChunkT]):
    """Chunks of one stream; leaving its `async with` block early cancels it on the server.

    status  "completed" or "cancelled" once it is over
    usage   token counts, once the server has sent them

    Raises `StreamFailed` when the server ends it with an error, a subclass of `APIError` when the server refuses it, and
    `StreamInterrupted` when the connection was lost for good.
    """

    def __init__(
        self, stream_id: str, cancel: Callable[[str], None], answer_now: Callable[[str], None], kind: type[ChunkT]
    ) -> None:
        self.status: str | None = None
        self.usage: Usage | None = None
        self._stream_id = stream_id
        self._send_cancel = cancel
        self._send_answer_now = answer_now
        self._kind = kind
        self._events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self._is_over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChunkT:
        if self._is_over:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, self._kind):
            self.usage = event.usage or self.usage
            return event
        self._is_over = True
        if isinstance(event, ClientError):
            raise event
        if isinstance(event, Finished):
            self.status = event.status
        raise StopAsyncIteration

    async def text(self) -> AsyncIterator[str]:
        """Only the first choice's text, piece by piece."""
        async for chunk in self:
            if chunk.text:
                yield chunk.text

    def cancel(self) -> None:
        """Ask the server to end the stream; what it had generated still arrives, then the stream ends. Never blocks."""
        if not self._is_over:
            self._send_cancel(self._stream_id)

    def answer_now(self) -> None:
        """Have the model end its reasoning and answer, in this stream. Never blocks."""
        if not self._is_over:
            self._send_answer_now(self._stream_id)

    def deliver(self, event: StreamEvent) -> None:
        """Queue an event of this stream; called by its session."""
        self._events.put_nowait(event)


class WebSocketSession:
    """A socket and its streams; use it in an `async with` block. Made by `AsyncClient.websocket`.

    A socket that drops is opened again, by the client's retry policy, and every stream is resumed after the last token that
    had arrived: no token is lost or repeated. While there is no stream, it is opened again with the next one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        retry: RetryPolicy,
        default_model: Callable[[], Awaitable[str]],
        open_timeout_s: float = 10.0,
    ) -> None:
        self._url = f"ws{calls.api_root(base_url).removeprefix('http')}/v1/ws"
        self._headers = {name: value for name, value in headers.items() if name != "Accept-Encoding"}
        self._proxy: Literal[True] | None = None if calls.is_loopback(base_url) else True
        self._retry = retry
        self._default_model = default_model
        self._open_timeout_s = open_timeout_s
        self._multiplex = Multiplex()
        self._readers: dict[str, WebSocketStream[Any]] = {}
        self._outbox: asyncio.Queue[str] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._failure: ClientError | None = None
        self._is_connected = asyncio.Event()
        self._has_opened = asyncio.Event()

    async def __aenter__(self) -> Self:
        socket = await self._connect()
        self._task = asyncio.create_task(self._run(socket), name="streamserve websocket")
        # A task that is cancelled before its first step never runs: the socket would not be closed.
        await self._is_connected.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without a cancel the server would keep generating for a client that might resume.
        for message in self._multiplex.cancel_all():
            self._outbox.put_nowait(message)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(StreamInterrupted("the session was closed"))

    async def stream_completion(
        self, prompt: Prompt, *, model: str | None = None, **options: Unpack[CompletionOptions]
    ) -> WebSocketStream[Completion]:
        """Complete a prompt (or several), chunk by chunk; a refusal is raised by the first read."""
        call = calls.completion_call(prompt, model or await self._default_model(), options, stream=True)
        return self._open("completion", call)

    async def stream_chat(
        self, messages: Iterable[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> WebSocketStream[ChatCompletion]:
        """Answer a conversation, chunk by chunk; a refusal is raised by the first read."""
        call = calls.chat_call(messages, model or await self._default_model(), options, stream=True)
        return self._open("chat.completion", call)

    def _open(self, kind: Kind, call: calls.Call[ChunkT]) -> WebSocketStream[ChunkT]:
        if self._failure is not None:
            raise self._failure
        stream_id, message = self._multiplex.open(kind, call.body or {})
        stream = WebSocketStream(stream_id, self._cancel, self._answer_now, call.response_type)
        self._readers[stream_id] = stream
        self._outbox.put_nowait(message)
        self._has_opened.set()
        return stream

    def _cancel(self, stream_id: str) -> None:
        message = self._multiplex.cancel(stream_id)
        if message is not None:
            self._outbox.put_nowait(message)

    def _answer_now(self, stream_id: str) -> None:
        message = self._multiplex.answer_now(stream_id)
        if message is not None:
            self._outbox.put_nowait(message)

    async def _run(self, socket: ClientConnection) -> None:
        silent_sockets = 0
        try:
            while True:
                silent_sockets = 0 if await self._run_socket(socket) else silent_sockets + 1
                if not self._readers:
                    # Nothing was to come: a silent socket says nothing about the next.
                    silent_sockets = 0
                    self._has_opened.clear()
                    await self._has_opened.wait()
                wait_s = self._retry.after_failure(silent_sockets)
                if wait_s is None:
                    raise StreamInterrupted("the connection keeps dropping")
                await asyncio.sleep(wait_s)
                socket = await self._connect()
        except ClientError as error:
            self._fail(error)

    async def _run_socket(self, socket: ClientConnection) -> bool:
        """Send and receive until the socket closes; returns whether anything was received.

        Raises when its close code rules out another socket.
        """
        self._outbox = asyncio.Queue()
        for message in self._multiplex.reconnected():
            self._outbox.put_nowait(message)
        sender = asyncio.create_task(self._send(socket), name="streamserve websocket sender")
        self._is_connected.set()
        has_received = False
        try:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self._deliver(await socket.recv())
                    has_received = True
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await self._flush_and_close(socket)
        if socket.close_code not in RETRIED_CLOSE_CODES:
            raise _closed(socket.close_code, socket.close_reason)
        return has_received

    async def _flush_and_close(self, socket: ClientConnection) -> None:
        """Send what is queued, within `FLUSH_TIMEOUT_S`, and close."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                while not self._outbox.empty():
                    await socket.send(self._outbox.get_nowait())
        await socket.close()

    async def _send(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.send(await self._outbox.get())

    def _deliver(self, text: str | bytes) -> None:
        arrival = self._multiplex.receive(text)
        for reply in self._multiplex.take_replies():
            self._outbox.put_nowait(reply)
        if arrival is None:
            return
        stream_id, event = arrival
        is_last = isinstance(event, Finished | ClientError)
        reader = self._readers.pop(stream_id) if is_last else self._readers[stream_id]
        reader.deliver(event)

    def _fail(self, error: ClientError) -> None:
        self._failure = error
        for stream_id in self._multiplex.fail_all():
            self._readers.pop(stream_id).deliver(error)

    async def _connect(self) -> ClientConnection:
        attempt = 0
        while True:
            failure: ClientError
            try:
                return await connect(
                    self._url,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    open_timeout=self._open_timeout_s,
                    close_timeout=CLOSE_TIMEOUT_S,
                    proxy=self._proxy,
                )
            except InvalidStatus as error:
                response = error.response
                headers = {name.lower(): value for name, value in response.headers.raw_items()}
                failure = from_response(response.status_code, headers, bytes(response.body or b""))
                wait_s = self._retry.after_response(attempt, response.status_code, headers)
            except TimeoutError:
                failure = TimedOut(f"{self._url}: no answer in time")
                wait_s = self._retry.after_failure(attempt)
            except (OSError, InvalidHandshake) as error:
                failure = ConnectionFailed(f"{self._url}: {str(error) or type(error).__name__}")
                wait_s = self._retry.after_failure(attempt)
            if wait_s is None:
                raise failure
            await asyncio.sleep(wait_s)
            attempt += 1


def _closed(code: int | None, reason: str | None) -> ClientError:
    message = f"the server closed the connection: {reason or 'no reason given'} ({code})"
    if code == 4401:
        return AuthenticationFailed(message, status=401, code="invalid_api_key")
    return StreamInterrupted(message)
