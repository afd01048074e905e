"""Errors as they cross a process boundary: a code and a message there, the same exception back.

Pure functions; they know the exception tree and nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamserve.errors import QueueFull, StreamserveError
from streamserve.types import ErrorInfo


def describe(error: Exception) -> ErrorInfo:
    """The code and message of an error; whatever was not raised on purpose is an `internal_error` known by its type only."""
    if isinstance(error, StreamserveError):
        return ErrorInfo(error.code, error.message, error.retry_after_s if isinstance(error, QueueFull) else None)
    return ErrorInfo(StreamserveError.code, f"internal error: {type(error).__name__}")


def restore(info: ErrorInfo, *, param: str | None = None) -> StreamserveError:
    """The exception that `describe` was given: same class, message, parameter and delay."""
    kind = _KINDS.get(info.code, StreamserveError)
    # Past the constructors, because some of them compose the message and it is composed already.
    error = kind.__new__(kind)
    StreamserveError.__init__(error, info.message, param=param)
    if isinstance(error, QueueFull):
        error.retry_after_s = 1.0 if info.retry_after_s is None else info.retry_after_s
        error.holds_s = 0.0
    return error


def _tree(root: type[StreamserveError]) -> Iterator[type[StreamserveError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _tree(kind)


# The general kind has the last word where a special one shares its code: which ones exist depends on what is imported.
_KINDS = {kind.code: kind for kind in reversed(list(_tree(StreamserveError)))}
