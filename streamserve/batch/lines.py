"""Lines of a batch, in and out, in OpenAI's format (https://platform.openai.com/docs/guides/batch).

Pure data. A line that can't be a request is refused with a result of its own; the rest of the file goes on.
"""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from streamserve.errors import InvalidParameter, InvalidRequest, UnsupportedParameter, invalid_value, quoted

LineT = TypeVar("LineT", bound=msgspec.Struct)

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""What a batch may call."""

_NOT_IN_BATCHES = {"stream": "a batch has no streams", "background": "a batch waits for its answers"}


class _Named(msgspec.Struct, kw_only=True):
    """What of a line its result is known by."""

    custom_id: str


class BatchLine(_Named, kw_only=True):
    """A request of a batch: the answer's line has its `custom_id`."""

    url: str
    body: dict[str, Any]
    method: str = "POST"


class BatchError(msgspec.Struct, kw_only=True):
    """Why a line has no answer.

    line  its number, for one without a `custom_id` of its own
    """

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchResponse(msgspec.Struct, kw_only=True):
    """What the path answered, as over HTTP."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchResult(msgspec.Struct, kw_only=True):
    """A line of results; `error` is null exactly where the status is 200."""

    id: str
    custom_id: str | None
    response: BatchResponse | None = None
    error: BatchError | None = None


def read_custom_id(text: bytes) -> str:
    """The `custom_id` of a line, whatever else it is. Raises `InvalidRequest` errors."""
    return _decode(text, _Named).custom_id


def read_line(text: bytes) -> BatchLine:
    """The request of a line. Raises `InvalidRequest` errors, also for what a batch can't hold."""
    line = _decode(text, BatchLine)
    if line.method != "POST":
        raise UnsupportedParameter("method", f"{quoted(line.method)}: batches are of POST requests")
    if line.url not in PATHS:
        raise InvalidParameter("url", f"{quoted(line.url)} is none of {', '.join(PATHS)}")
    for name, reason in _NOT_IN_BATCHES.items():
        if line.body.get(name):
            raise UnsupportedParameter(f"body.{name}", reason)
    return line


def _decode(text: bytes, kind: type[LineT]) -> LineT:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise invalid_value(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the line is not JSON: {error}") from error


def refusal(error: InvalidRequest, *, custom_id: str | None, number: int) -> BatchResult:
    """The result of a line that was not sent."""
    reason = BatchError(code=error.code, message=error.message, param=error.param, line=number if custom_id is None else None)
    return BatchResult(id=_new_id(), custom_id=custom_id, error=reason)


def answer(custom_id: str, status: int, request_id: str, body: bytes) -> BatchResult:
    """The result of a line that was answered, a refusal included."""
    if not body:  # of an answer that failed before it began
        return BatchResult(id=_new_id(), custom_id=custom_id, error=BatchError(code="internal_error", message="see the log"))
    response = BatchResponse(status_code=status, request_id=request_id, body=msgspec.Raw(body))
    return BatchResult(id=_new_id(), custom_id=custom_id, response=response, error=None if status == 200 else _error_in(body))


def _error_in(body: bytes) -> BatchError:
    """The error of an answer: OpenAI's object, in `error`."""
    error = msgspec.json.decode(body).get("error") or {}
    return BatchError(code=str(error.get("code")), message=str(error.get("message")), param=error.get("param"))


def _new_id() -> str:
    return f"batch_req_{uuid4().hex}"
