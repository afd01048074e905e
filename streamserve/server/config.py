"""Configuration of the HTTP side: names, keys, limits, timeouts. Plain frozen values; the engine's are in `EngineConfig`.

`ServerConfig` crosses to further API workers as JSON on a private pipe, because it holds keys: never on a command line or in
the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from streamserve.types import Tenant

MEBIBYTE = 1 << 20


class CorsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Cross-origin rules: vLLM's --allowed-origins, --allowed-methods, --allowed-headers and --allow-credentials.

    origins  whose pages may use the server, beside its own; "*" for all
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key, by its SHA-256, and who sends it."""

    sha256: bytes
    tenant: Tenant


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one server.

    model_names             names that requests may give; the first is the one reported
    model_root              what the model was loaded from, as /v1/models reports it
    api_keys                bearer tokens that open all but probes and the chat page; none means open to all
    keys_file               a file of further keys by their hashes, with limits; it is read again on SIGHUP
    file_keys               what that file has said last
    prefix_cache_per_key    whether requests share cached prefixes only with those of the same key, so that neither their
                            time nor their `cached_tokens` tells what others have sent
    protects_metrics        whether /metrics needs a key, too
    max_body_bytes          larger request bodies are refused with 413
    max_logprobs            the most alternatives per position that a request may have; -1 for no limit
    keepalive_s             a stream silent for this long gets a blank line
    receive_timeout_s       read timeout of a request's head and body
    send_timeout_s          a client that reads nothing for this long is disconnected
    shutdown_timeout_s      how long running streams may go on after a signal to stop
    max_engine_restarts     how often within ten minutes an engine process that ended is started again; its streams go on then
    engine_hang_timeout_s   how long a step may take; an engine that hangs is killed, and started again
    chat_template           a template text that replaces the model's own
    default_chat_template_kwargs    template variables of chats that don't set them themselves
    trust_request_chat_template     whether requests may carry a template of their own
    allow_special_tokens_in_messages    as of `Frontend`
    tool_call_parser        reads tool calls; chosen by the chat template when None
    reasoning_parser        reads reasoning; chosen by the chat template when None
    enable_auto_tool_choice     do not serve a model whose tool calls can't be read
    exclude_tools_when_tool_choice_none     leave tools that must not be called out of the prompt
    priority_scheduling     whether a request's priority is honoured
    return_tokens_as_token_ids  default of the parameter of that name
    log_requests            whether the parameters of each request are logged
    max_sockets             WebSockets that one API worker holds at a time
    max_streams_per_socket  streams that a WebSocket carries at a time
    socket_age_s            a WebSocket open for longer is closed
    socket_idle_s           a WebSocket that carries no stream and receives nothing for this long is closed
    resume_s                how long a resumable stream goes on unread, and how long its events are kept after its end
    response_ttl_s          how long a stored response is kept after its end
    otlp_traces_endpoint    where to send OpenTelemetry traces, over OTLP/HTTP; None for no traces
    cors                    rules for web pages; None for an app that no browser reaches
    seed                    makes the seeds of requests without one reproducible; None for random ones
    """

    model_names: list[str]
    model_root: str = ""
    api_keys: list[str] = []
    keys_file: str | None = None
    file_keys: list[ApiKey] = []
    prefix_cache_per_key: bool = False
    protects_metrics: bool = False
    root_path: str = ""
    max_body_bytes: int = 16 * MEBIBYTE
    max_logprobs: int = 20
    keepalive_s: float = 15.0
    receive_timeout_s: float = 20.0
    send_timeout_s: float = 60.0
    shutdown_timeout_s: float = 30.0
    max_engine_restarts: int = 3
    engine_hang_timeout_s: float = 300.0
    chat_template: str | None = None
    default_chat_template_kwargs: dict[str, Any] = {}
    trust_request_chat_template: bool = False
    allow_special_tokens_in_messages: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    enable_auto_tool_choice: bool = False
    exclude_tools_when_tool_choice_none: bool = False
    priority_scheduling: bool = False
    return_tokens_as_token_ids: bool = False
    log_requests: bool = False
    max_sockets: int = 1024
    max_streams_per_socket: int = 64
    socket_age_s: float = 3600.0
    socket_idle_s: float = 600.0
    resume_s: float = 60.0
    response_ttl_s: float = 3600.0
    otlp_traces_endpoint: str | None = None
    seed: int | None = None
    cors: CorsConfig | None = CorsConfig()

    @property
    def keys(self) -> list[ApiKey]:
        """All keys that open the server; those of `api_keys` are tenants by their numbers."""
        return [*_numbered(self.api_keys), *self.file_keys]


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of requests, once the model is known.

    defaults             sampling parameters, by `SamplingParams` name, for requests that leave them out
    max_logprobs         the most alternatives per position; -1 for no limit
    max_model_len        tokens of prompt and output together
    vocab_size           tokens that a position has alternatives of
    priority_scheduling  whether a request's priority is honoured
    """

    defaults: Mapping[str, Any]
    max_logprobs: int
    max_model_len: int
    vocab_size: int
    priority_scheduling: bool

    def with_defaults(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `SamplingParams` as a request gives them, None where it does not, filled in with the defaults."""
        return {**self.defaults, **{name: value for name, value in fields.items() if value is not None}}


def _numbered(keys: Sequence[str]) -> list[ApiKey]:
    """Keys of the command line: each is a tenant called `key-` and its number, from 1 on."""
    return [
        ApiKey(sha256=sha256(key.encode()).digest(), tenant=Tenant(name=f"key-{number}"))
        for number, key in enumerate(keys, start=1)
    ]
