"""API calls as data: method, path, body and response type. Shared by the sync and async clients; no I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import httpx
import msgspec

from streamserve_client.errors import ConnectionFailed, ProtocolError, TimedOut
from streamserve_client.types import Answering, ChatCompletion, Completion, Message, Model, ModelList, Prompt

T = TypeVar("T")

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLES = ("STREAMSERVE_API_KEY", "VLLM_API_KEY")
"""Of these the first that is set is the key, as for the server."""

DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request.

    response_type  of the whole response, or of each chunk of its stream
    headers        beside those of every request
    """

    path: str
    response_type: type[T]
    body: dict[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def with_headers(self, headers: Mapping[str, str]) -> Call[T]:
        """The same call, with these headers too."""
        return replace(self, headers={**self.headers, **headers})


def completion_call(prompt: Prompt, model: str, options: Mapping[str, Any], *, stream: bool) -> Call[Completion]:
    return Call("/v1/completions", Completion, _body({"model": model, "prompt": prompt}, options, stream))


def chat_call(messages: Iterable[Message], model: str, options: Mapping[str, Any], *, stream: bool) -> Call[ChatCompletion]:
    return Call("/v1/chat/completions", ChatCompletion, _body({"model": model, "messages": list(messages)}, options, stream))


def answer_now_call(request_id: str) -> Call[Answering]:
    return Call(f"/v1/requests/{request_id}/answer", Answering, {})


def models_call() -> Call[ModelList]:
    return Call("/v1/models", ModelList)


def _body(required: dict[str, Any], options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    named = {name: value for name, value in options.items() if name != "extra_body"}
    body = {**required, **named, **options.get("extra_body", {})}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True, **body.get("stream_options", {})}}
    return body


def api_root(base_url: str) -> str:
    """The server's root: `http://host:8000`, also of a URL in OpenAI's style, with `/v1` at its end."""
    url = base_url.rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    return url.removesuffix("/v1")


def is_loopback(base_url: str) -> bool:
    """Whether the server is on this machine, where a proxy from the environment can't reach it."""
    host = httpx.URL(api_root(base_url)).host
    return host in ("localhost", "::1") or host.startswith("127.")


def request_headers(api_key: str | None, extra: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of every request; without an `api_key` with the one that the environment has."""
    if api_key is None:
        api_key = next((key for name in API_KEY_VARIABLES if (key := os.environ.get(name))), None)
    headers = {"User-Agent": "streamserve-client", "Accept-Encoding": "identity"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers | dict(extra or {})


def decode(body: bytes | str, kind: type[T], path: str) -> T:
    """The typed response. Raises `ProtocolError` when the body is something else."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"{path}: not a response of this API: {error}") from error


def first_model(models: list[Model]) -> str:
    """The id that requests without a model go to."""
    if not models:
        raise ProtocolError("the server lists no model: name one")
    return models[0].id


def transport_failure(error: httpx.TransportError, url: str) -> ConnectionFailed:
    """The error of a request that got no response."""
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{url}: no answer in time")
    return ConnectionFailed(f"{url}: {str(error) or type(error).__name__}")


def may_repeat(error: httpx.TransportError) -> bool:
    """Whether a request that got no response may be sent again: not after a read timeout, since the server may still run it."""
    return not isinstance(error, httpx.ReadTimeout | httpx.UnsupportedProtocol)
