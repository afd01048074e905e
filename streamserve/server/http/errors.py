"""OpenAI's error body, for every error that leaves over HTTP or a WebSocket.

Maps our own exceptions, Litestar's and unexpected ones onto status, headers and `{"error": {message, type, param, code}}`.
Nothing of an unexpected exception reaches the client.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from litestar.exceptions import HTTPException

from streamserve.errors import (
    EndsEngines,
    EngineDead,
    InvalidRequest,
    QueueFull,
    StreamserveError,
    Unavailable,
)

logger = logging.getLogger("streamserve.server")

LOADING_RETRY_S = 2.0


class NotFound(InvalidRequest):
    """No such path, or no such request."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    """The path exists, for another method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path does not answer to this method, only to {allow}")
        self.allow = allow


class UpgradeRequired(InvalidRequest):
    """The path takes WebSockets only."""

    status = 426
    code = "upgrade_required"


class BodyTooLarge(InvalidRequest):
    """The request body is over the server's limit."""

    status = 413
    code = "request_too_large"


class InternalError(StreamserveError):
    """An unexpected failure; the log has its traceback."""


ErrorBody = Callable[[StreamserveError], bytes]
"""The body of an error, in the shape of the API that answers."""


def error_object(error: StreamserveError) -> dict[str, Any]:
    """`{"error": …}` with OpenAI's four fields."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_body(error: StreamserveError) -> bytes:
    """`error_object` as JSON."""
    return orjson.dumps(error_object(error))


def error_headers(error: StreamserveError) -> list[tuple[bytes, bytes]]:
    """Headers that tell a client whether and when to try again (the ones the OpenAI SDKs read)."""
    headers = [(b"content-type", b"application/json")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, UpgradeRequired):
        headers.append((b"upgrade", b"websocket"))
    retry_after_s = _retry_after_s(error)
    if retry_after_s is not None:
        headers += [
            (b"retry-after", str(math.ceil(retry_after_s)).encode()),
            (b"retry-after-ms", str(int(retry_after_s * 1000)).encode()),
            (b"x-should-retry", b"true"),
        ]
    if isinstance(error, EndsEngines):
        headers.append((b"x-should-retry", b"false"))
    return headers


def _retry_after_s(error: StreamserveError) -> float | None:
    if isinstance(error, QueueFull):
        return error.retry_after_s
    if isinstance(error, Unavailable) and not isinstance(error, EngineDead):
        return LOADING_RETRY_S
    return None


def from_exception(error: Exception) -> StreamserveError:
    """Convert any exception to one of ours; an unexpected one becomes `InternalError` without details."""
    if isinstance(error, StreamserveError):
        return error
    if isinstance(error, msgspec.ValidationError | msgspec.DecodeError):
        return InvalidRequest(str(error))
    if isinstance(error, HTTPException):
        return _from_http_exception(error)
    return InternalError("internal server error; see the server's log")


def _from_http_exception(error: HTTPException) -> StreamserveError:
    if error.status_code == 404:
        return NotFound("no such path; /openapi.json lists the ones there are")
    if error.status_code == 405:
        allowed = _allowed(error.headers or {})
        return MethodNotAllowed(allowed) if allowed else UpgradeRequired("this path takes WebSockets: send an upgrade")
    if error.status_code == 413:
        return BodyTooLarge("the request body is larger than this server accepts")
    if 400 <= error.status_code < 500:
        return InvalidRequest(error.detail)
    return InternalError("internal server error; see the server's log")


def _allowed(headers: Mapping[str, str]) -> str:
    """The methods of an Allow header; the router also lists its other kinds of routes in it."""
    names = {name for name in headers.get("allow", "").split(", ") if name.isupper()}
    return ", ".join(sorted(names | {"HEAD"} if "GET" in names else names))


def guarded(error: Exception, request_id: str) -> StreamserveError:
    """Convert an exception that ended a running response to an error for its client, and log it if unexpected."""
    known = from_exception(error)
    if isinstance(known, InternalError):
        logger.error("request %s failed", request_id, exc_info=error)
    return known


async def send_error(
    send: Any,
    error: StreamserveError,
    *,
    prefix: str = "http",
    error_body: ErrorBody = error_body,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send `error` as the response to a request, or, with the prefix "websocket.http", to an upgrade.

    headers  to send beside those of the error
    """
    body = error_body(error)
    all_headers = [*error_headers(error), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": f"{prefix}.response.start", "status": error.status, "headers": all_headers})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})


async def refuse_upgrade(scope: Any, receive: Any, send: Any, error: StreamserveError) -> None:
    """Refuse a WebSocket with an HTTP status and body where the server can, else by closing before accepting."""
    await receive()
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await send_error(send, error, prefix="websocket.http")
    else:
        await send({"type": "websocket.close", "code": 4000 + error.status, "reason": error.code})
