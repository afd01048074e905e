"""The body of an error in Anthropic's API.

https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import orjson

from streamserve.errors import StreamserveError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_object(error: StreamserveError) -> dict[str, str]:
    """Type and message, as clients of this API know them."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    return {"type": _TYPES.get(error.status, other), "message": error.message}


def error_body(error: StreamserveError) -> bytes:
    """The error as JSON."""
    return orjson.dumps({"type": "error", "error": error_object(error)})
