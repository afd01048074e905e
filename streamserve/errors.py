"""The exceptions that cross a boundary, with their HTTP status.

    StreamserveError                      500 internal_error
    ├── InvalidRequest                    400 invalid_request_error      the request can never succeed as it stands
    │   ├── InvalidParameter              400 invalid_value              one named parameter is wrong
    │   ├── UnsupportedParameter          400 unsupported_parameter      understood, but not built here
    │   ├── ContextLengthExceeded         400 context_length_exceeded
    │   ├── PromptTooLarge                400 prompt_too_large           could never fit the KV cache
    │   └── StructureTooComplex           400 structure_too_complex      a schema or grammar that takes too many states
    ├── AuthenticationFailed              401 invalid_api_key
    ├── ModelNotFound                     404 model_not_found
    ├── QueueFull                         429 queue_full                 more waits than may
    │   ├── QueueTimeout                  429 queue_timeout              waited for too long, and had not begun
    │   └── RateLimited                   429 rate_limit_exceeded        its key has used what it may
    ├── Unavailable                       503 unavailable                loading, draining
    │   └── EngineDead                    503 engine_dead
    │       └── RankOutOfMemory           ... ...                        as other ranks waited for it in a step
    ├── StreamFailed                      500 stream_failed              a stream that had started ended badly
    │   ├── SlowConsumer                  ... slow_consumer
    │   ├── EndsEngines           ... ends_engines               engines end under it; not to be retried
    │   ├── OutOfMemory                   ... out_of_memory              the device lacked memory for it
    │   ├── NoTokenPossible               ... no_token_possible          logits that are no numbers, or all tokens excluded
    │   └── RequestAborted                499 aborted                    cancelled before it had begun; not to be retried
    └── ConfigError                       ---                            the server can't start like this: one line, what to do
        └── ModelNotSupported

Messages say what to do next. They never contain prompts or keys.
"""

from __future__ import annotations

from typing import ClassVar

MAX_QUOTED = 128


class StreamserveError(Exception):
    """Root of all errors raised on purpose.

    param  the request's parameter at fault, if it is one
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(StreamserveError):
    """The request can never succeed as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    """One named parameter has a wrong type or value."""

    code = "invalid_value"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}", param=param)


class UnsupportedParameter(InvalidRequest):
    """A parameter that is understood and not built here; never silently ignored."""

    code = "unsupported_parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param} is not supported: {message}", param=param)


def quoted(value: str) -> str:
    """A client's text as messages quote it: in quotes, and cut to `MAX_QUOTED` characters."""
    return repr(value if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]}…")


def invalid_value(description: str) -> InvalidRequest:
    """The error of a value that msgspec rejects as "Expected `int`, got `str` - at `$.n`", naming its parameter."""
    message, _, path = description.replace("`", "").partition(" - at ")
    name = path.replace("key in ", "").removeprefix("$").removeprefix(".")
    if message.startswith("Object missing required field "):
        missing = message.removeprefix("Object missing required field ")
        return InvalidParameter(f"{name}.{missing}" if name else missing, "is required")
    return InvalidParameter(name, message[:1].lower() + message[1:]) if name else InvalidRequest(message)


class ContextLengthExceeded(InvalidRequest):
    """Prompt and max_tokens together are longer than the model's context."""

    code = "context_length_exceeded"


class PromptTooLarge(InvalidRequest):
    """The prompt needs more KV cache than this server has in all."""

    code = "prompt_too_large"


class StructureTooComplex(InvalidRequest):
    """The schema or grammar compiles, but matching it takes more states than are allowed."""

    code = "structure_too_complex"


class AuthenticationFailed(StreamserveError):
    """The API key is missing or wrong."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(StreamserveError):
    """The request names a model that this server does not serve."""

    status = 404
    type = "not_found_error"
    code = "model_not_found"


class QueueFull(StreamserveError):
    """Too many requests are waiting; retry after `retry_after_s` seconds.

    holds_s  seconds for which every request of the same tenant is refused: infinite until a sequence leaves the queue or ends,
             0 where a smaller one may be taken
    """

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, holds_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.holds_s = holds_s


class QueueTimeout(QueueFull):
    """The request has waited for too long, and had not begun."""

    code = "queue_timeout"


class RateLimited(QueueFull):
    """The request's key has used what it may at a time, or in a minute."""

    code = "rate_limit_exceeded"


class Unavailable(StreamserveError):
    """The server is loading, draining or without an engine."""

    status = 503
    type = "unavailable_error"
    code = "unavailable"


class EngineDead(Unavailable):
    """The engine process ended; its streams end with this error."""

    code = "engine_dead"


class RankOutOfMemory(EngineDead):
    """A rank ran out of memory in the middle of a step, where others wait for it, so that the engine ends.

    num_tokens  that the step computed
    """

    def __init__(self, message: str, *, num_tokens: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens


class StreamFailed(StreamserveError):
    """A stream that had started could not be finished."""

    code = "stream_failed"


class SlowConsumer(StreamFailed):
    """The reader took nothing for the stall timeout."""

    code = "slow_consumer"


class EndsEngines(StreamFailed):
    """Engines have ended under this request; it was given up, and is not to be sent again."""

    code = "ends_engines"


class NoTokenPossible(StreamFailed):
    """No token can follow: the model's logits are not finite, or the request excludes every token."""

    code = "no_token_possible"


class OutOfMemory(StreamFailed):
    """The device lacked the memory for this request, even in the smallest steps."""

    code = "out_of_memory"


class RequestAborted(StreamFailed):
    """The request was cancelled by its owner or by the server."""

    # As nginx and gRPC gateways have it. Not a 500, which SDKs retry: this request was cancelled.
    status = 499
    type = "request_aborted"
    code = "aborted"


class ConfigError(StreamserveError):
    """A setting or a model that the server can't start with; the message is one line and says what to change."""

    code = "config_error"


class ModelNotSupported(ConfigError):
    """The checkpoint's architecture, format or quantisation is not supported."""

    code = "model_not_supported"
