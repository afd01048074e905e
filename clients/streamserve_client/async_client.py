"""The asynchronous client. One `AsyncClient` holds a pool of connections, for one event loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import anyio
import httpx

from streamserve_client import calls
from streamserve_client.calls import DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Call
from streamserve_client.errors import ClientError, from_response
from streamserve_client.resumption import CANCEL_TIMEOUT_S, NOT_KEPT, Resumption, after_lost_answer, cancel_path, continuable
from streamserve_client.retries import RetryPolicy
from streamserve_client.streams import AsyncStream, ChunkT
from streamserve_client.types import (
    ChatCompletion,
    ChatOptions,
    Completion,
    CompletionOptions,
    Health,
    Message,
    Model,
    Prompt,
)

if TYPE_CHECKING:
    from streamserve_client.websocket import WebSocketSession

T = TypeVar("T")


class AsyncClient:
    """Talks to a streamserve server, or to any other that speaks OpenAI's API.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            async with await client.stream_completion("Once upon a time") as stream:
                async for chunk in stream:
                    print(chunk.text, end="", flush=True)

    base_url   the server's root, with or without `/v1`
    api_key    sent as a bearer token; None for that of STREAMSERVE_API_KEY or VLLM_API_KEY, "" for none
    timeout    seconds, or an `httpx.Timeout`; reading times out on silence, however long the stream
    retry      when to send a failed request again, and when to continue a stream whose connection was lost, where a server can
    headers    added to every request
    transport  an httpx transport to use instead of the network

    Every method raises the errors of `streamserve_client.errors`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._base_url = base_url
        self._headers = calls.request_headers(api_key, headers)
        self._http = httpx.AsyncClient(
            base_url=calls.api_root(base_url),
            headers=self._headers,
            timeout=timeout,
            transport=transport,
            trust_env=not calls.is_loopback(base_url),
        )
        self._default_model: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self._http.aclose()

    async def complete(self, prompt: Prompt, *, model: str | None = None, **options: Unpack[CompletionOptions]) -> Completion:
        """Complete a prompt (or several) and wait for the whole answer."""
        return await self._fetch(calls.completion_call(prompt, await self._model(model), options, stream=False))

    async def stream_completion(
        self, prompt: Prompt, *, model: str | None = None, **options: Unpack[CompletionOptions]
    ) -> AsyncStream[Completion]:
        """Complete a prompt (or several), chunk by chunk. Returns once the server has accepted the request."""
        return await self._stream(calls.completion_call(prompt, await self._model(model), options, stream=True))

    async def chat(
        self, messages: Iterable[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Answer a conversation and wait for the whole answer."""
        return await self._fetch(calls.chat_call(messages, await self._model(model), options, stream=False))

    async def stream_chat(
        self, messages: Iterable[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncStream[ChatCompletion]:
        """Answer a conversation, chunk by chunk. Returns once the server has accepted the request."""
        return await self._stream(calls.chat_call(messages, await self._model(model), options, stream=True))

    async def answer_now(self, request_id: str) -> None:
        """End the reasoning of a request that runs, by its id or its answer's; it goes on with its answer.

        Nothing changes where reasoning is over. Raises `NotFound` when nothing runs under that id.
        """
        await self._fetch(calls.answer_now_call(request_id))

    async def models(self) -> list[Model]:
        """The models the server serves."""
        return (await self._fetch(calls.models_call())).data

    async def health(self) -> Health:
        """Whether the server is alive and ready. Raises `ConnectionFailed` when there is no response; never retries."""
        try:
            alive, ready = await self._http.get("/live"), await self._http.get("/ready")
        except httpx.TransportError as error:
            raise calls.transport_failure(error, str(self._http.base_url)) from error
        return Health(is_alive=alive.is_success, is_ready=ready.is_success)

    def websocket(self) -> WebSocketSession:
        """A socket for many streams that outlive a dropped connection; for asyncio only. Use it in an `async with` block."""
        from streamserve_client.websocket import WebSocketSession

        return WebSocketSession(
            self._base_url, headers=self._headers, retry=self._retry, default_model=lambda: self._model(None)
        )

    async def _model(self, name: str | None) -> str:
        if name is not None:
            return name
        if self._default_model is None:
            self._default_model = calls.first_model(await self.models())
        return self._default_model

    async def _stream(self, call: Call[ChunkT]) -> AsyncStream[ChunkT]:
        if self._retry.max_retries:
            call = continuable(call)
        return AsyncStream(
            await self._send(call),
            call,
            Resumption(self._retry),
            send=self._send,
            cancel=self._cancel,
            answer_now=self.answer_now,
        )

    async def _cancel(self, stream_id: str) -> None:
        """Have the server end a stream; one that can't be reached ends it by itself after a while."""
        with suppress(httpx.TransportError):
            await self._http.post(cancel_path(stream_id), timeout=CANCEL_TIMEOUT_S)

    async def _fetch(self, call: Call[T]) -> T:
        response = await self._send(call)
        try:
            body = await response.aread()
        except httpx.TransportError as error:
            raise calls.transport_failure(error, str(response.url)) from error
        finally:
            await response.aclose()
        return calls.decode(body, call.response_type, call.path)

    async def _send(self, call: Call[Any]) -> httpx.Response:
        """An open, successful response whose body is unread."""
        attempt, wanted = 0, call
        while True:
            failure: ClientError
            request = self._http.build_request(call.method, call.path, json=call.body, headers=call.headers)
            try:
                response = await self._http.send(request, stream=True)
            except httpx.TransportError as error:
                failure = calls.transport_failure(error, str(request.url))
                failure.__cause__ = error
                wait_s = self._retry.after_failure(attempt) if calls.may_repeat(error) else None
                call = after_lost_answer(call, error)
            else:
                if response.is_success:
                    return response
                if call is not wanted and response.status_code in NOT_KEPT:
                    await response.aclose()
                    call = wanted
                    continue
                failure = from_response(response.status_code, response.headers, await _rest_of(response))
                wait_s = self._retry.after_response(attempt, response.status_code, response.headers)
            if wait_s is None:
                raise failure
            await anyio.sleep(wait_s)
            attempt += 1


async def _rest_of(response: httpx.Response) -> bytes:
    """The body of an error, or as much of it as arrives."""
    try:
        return await response.aread()
    except httpx.TransportError:
        return b""
    finally:
        await response.aclose()


__all__ = ["AsyncClient"]
