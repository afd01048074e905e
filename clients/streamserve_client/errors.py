"""The exceptions of this package, as a tree: catch as coarsely or as finely as you need.

    ClientError
    ├── ConnectionFailed              no response: refused, reset, unreachable
    │   └── TimedOut                  no response in time
    ├── ProtocolError                 not a response of this API (not JSON, not an event stream)
    ├── StreamInterrupted             the connection was lost before the stream had ended
    └── APIError                      the server refused the request, or failed
        ├── BadRequest           400
        │   └── ContextLengthExceeded
        ├── AuthenticationFailed 401
        ├── PermissionDenied     403
        ├── NotFound             404
        │   └── ModelNotFound
        ├── TooLarge             413
        ├── RateLimited          429
        ├── ServerError          5xx
        │   └── Unavailable      503
        └── StreamFailed              the server ended a running stream with an error

No I/O: `from_response` maps a status, headers and a body to the right leaf.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ClientError(Exception):
    """Root of all errors raised on purpose."""


class ConnectionFailed(ClientError):
    """The server could not be reached, or closed the connection before it responded."""


class TimedOut(ConnectionFailed):
    """The server did not respond in time."""


class ProtocolError(ClientError):
    """Not a response of this API; perhaps the base URL points at something else."""


class StreamInterrupted(ClientError):
    """The connection was lost before the stream had ended; what had arrived was delivered."""


class APIError(ClientError):
    """The server refused or failed the request.

    status      HTTP status; 200 for an error inside a running stream
    code        machine-readable reason, such as "context_length_exceeded"
    param       the request's field at fault, if it was one
    request_id  the server's id of this request, as in its logs
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.request_id = request_id


class BadRequest(APIError):
    """400: the request can't succeed as it stands."""


class ContextLengthExceeded(BadRequest):
    """Prompt and max_tokens together are longer than the model's context."""


class AuthenticationFailed(APIError):
    """401: the API key is missing or wrong."""


class PermissionDenied(APIError):
    """403: the key is known and may not do this."""


class NotFound(APIError):
    """404: no such endpoint or object."""


class ModelNotFound(NotFound):
    """The server does not serve this model."""


class TooLarge(APIError):
    """413: the request's body is larger than the server takes."""


class RateLimited(APIError):
    """429: too many requests are waiting, after the retries of this client too."""


class ServerError(APIError):
    """5xx: the server failed."""


class Unavailable(ServerError):
    """503: the server is loading, draining or without an engine."""


class StreamFailed(APIError):
    """The server ended a running stream with an error; what had arrived was delivered."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """OpenAI's error object; servers differ in what they leave out and in the type of `code`."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _ErrorEnvelope(msgspec.Struct, frozen=True):
    error: ErrorDetail | str | None = None


_BY_CODE: dict[str, type[APIError]] = {"context_length_exceeded": ContextLengthExceeded, "model_not_found": ModelNotFound}
_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    413: TooLarge,
    422: BadRequest,
    429: RateLimited,
    503: Unavailable,
}


def detail_of(body: bytes | str) -> ErrorDetail | None:
    """The error that a JSON body carries, or None when it carries none."""
    try:
        error = msgspec.json.decode(body, type=_ErrorEnvelope).error
    except msgspec.MsgspecError:
        return None
    return ErrorDetail(message=error) if isinstance(error, str) else error


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> APIError:
    """The leaf for a response that is not a success."""
    detail = detail_of(body) or ErrorDetail(
        message=f"HTTP {status}: {body[:200].decode('utf-8', 'replace').strip()}".rstrip(": ")
    )
    return from_detail(status, detail, headers.get("x-request-id"))


def from_detail(status: int, detail: ErrorDetail, request_id: str | None = None) -> APIError:
    """The leaf for an error body and its HTTP status."""
    code = None if detail.code is None else str(detail.code)
    fallback = ServerError if status >= 500 else APIError
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status, fallback)
    message = detail.message or f"HTTP {status}"
    return kind(message, status=status, type=detail.type, code=code, param=detail.param, request_id=request_id)


def from_event(detail: ErrorDetail, request_id: str | None = None) -> StreamFailed:
    """The error that a running stream ended with."""
    code = None if detail.code is None else str(detail.code)
    message = detail.message or "the server ended the stream with an error"
    return StreamFailed(message, status=200, type=detail.type, code=code, param=detail.param, request_id=request_id)
