"""The synchronous client. One `Client` holds a pool of connections and may be used from several threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from streamserve_client import calls
from streamserve_client.calls import DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Call
from streamserve_client.errors import ClientError, from_response
from streamserve_client.resumption import CANCEL_TIMEOUT_S, NOT_KEPT, Resumption, after_lost_answer, cancel_path, continuable
from streamserve_client.retries import RetryPolicy
from streamserve_client.streams import ChunkT, Stream
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

T = TypeVar("T")


class Client:
    """Talks to a streamserve server, or to any other that speaks OpenAI's API.

        with Client("http://127.0.0.1:8000") as client, client.stream_completion("Once upon a time") as stream:
            for chunk in stream:
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._http = httpx.Client(
            base_url=calls.api_root(base_url),
            headers=calls.request_headers(api_key, headers),
            timeout=timeout,
            transport=transport,
            trust_env=not calls.is_loopback(base_url),
        )
        self._default_model: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection. Idempotent."""
        self._http.close()

    def complete(self, prompt: Prompt, *, model: str | None = None, **options: Unpack[CompletionOptions]) -> Completion:
        """Complete a prompt (or several) and wait for the whole answer."""
        return self._fetch(calls.completion_call(prompt, self._model(model), options, stream=False))

    def stream_completion(
        self, prompt: Prompt, *, model: str | None = None, **options: Unpack[CompletionOptions]
    ) -> Stream[Completion]:
        """Complete a prompt (or several), chunk by chunk. Returns once the server has accepted the request."""
        return self._stream(calls.completion_call(prompt, self._model(model), options, stream=True))

    def chat(self, messages: Iterable[Message], *, model: str | None = None, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answer a conversation and wait for the whole answer."""
        return self._fetch(calls.chat_call(messages, self._model(model), options, stream=False))

    def stream_chat(
        self, messages: Iterable[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> Stream[ChatCompletion]:
        """Answer a conversation, chunk by chunk. Returns once the server has accepted the request."""
        return self._stream(calls.chat_call(messages, self._model(model), options, stream=True))

    def answer_now(self, request_id: str) -> None:
        """End the reasoning of a request that runs, by its id or its answer's; it goes on with its answer.

        Nothing changes where reasoning is over. Raises `NotFound` when nothing runs under that id.
        """
        self._fetch(calls.answer_now_call(request_id))

    def models(self) -> list[Model]:
        """The models the server serves."""
        return self._fetch(calls.models_call()).data

    def health(self) -> Health:
        """Whether the server is alive and ready. Raises `ConnectionFailed` when there is no response; never retries."""
        try:
            alive, ready = self._http.get("/live"), self._http.get("/ready")
        except httpx.TransportError as error:
            raise calls.transport_failure(error, str(self._http.base_url)) from error
        return Health(is_alive=alive.is_success, is_ready=ready.is_success)

    def _model(self, name: str | None) -> str:
        if name is not None:
            return name
        if self._default_model is None:
            self._default_model = calls.first_model(self.models())
        return self._default_model

    def _stream(self, call: Call[ChunkT]) -> Stream[ChunkT]:
        if self._retry.max_retries:
            call = continuable(call)
        return Stream(
            self._send(call),
            call,
            Resumption(self._retry),
            send=self._send,
            cancel=self._cancel,
            answer_now=self.answer_now,
        )

    def _cancel(self, stream_id: str) -> None:
        """Have the server end a stream; one that can't be reached ends it by itself after a while."""
        with suppress(httpx.TransportError):
            self._http.post(cancel_path(stream_id), timeout=CANCEL_TIMEOUT_S)

    def _fetch(self, call: Call[T]) -> T:
        response = self._send(call)
        try:
            body = response.read()
        except httpx.TransportError as error:
            raise calls.transport_failure(error, str(response.url)) from error
        finally:
            response.close()
        return calls.decode(body, call.response_type, call.path)

    def _send(self, call: Call[Any]) -> httpx.Response:
        """An open, successful response whose body is unread."""
        attempt, wanted = 0, call
        while True:
            failure: ClientError
            request = self._http.build_request(call.method, call.path, json=call.body, headers=call.headers)
            try:
                response = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                failure = calls.transport_failure(error, str(request.url))
                failure.__cause__ = error
                wait_s = self._retry.after_failure(attempt) if calls.may_repeat(error) else None
                call = after_lost_answer(call, error)
            else:
                if response.is_success:
                    return response
                if call is not wanted and response.status_code in NOT_KEPT:
                    response.close()
                    call = wanted
                    continue
                failure = from_response(response.status_code, response.headers, _rest_of(response))
                wait_s = self._retry.after_response(attempt, response.status_code, response.headers)
            if wait_s is None:
                raise failure
            time.sleep(wait_s)
            attempt += 1


def _rest_of(response: httpx.Response) -> bytes:
    """The body of an error, or as much of it as arrives."""
    try:
        return response.read()
    except httpx.TransportError:
        return b""
    finally:
        response.close()


__all__ = ["Client"]
