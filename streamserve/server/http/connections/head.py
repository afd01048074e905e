"""Rules of a request's head that the parser does not check. Pure functions.

A proxy and this server must agree on where a request ends and whom it is for, or one client could write into another's
connection (RFC 9112, 3.2, 6.1 and 11.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from streamserve.errors import InvalidRequest

MAX_HEAD_BYTES = 64 << 10
"""Bytes of one request's head, all of its headers included."""

_LINE_BYTES = 4
"""What stands around a header's name and value."""


class HeadTooLarge(InvalidRequest):
    """The headers are over the server's limit."""

    status = 431
    code = "headers_too_large"

    def __init__(self) -> None:
        super().__init__(f"a request's head may have {MAX_HEAD_BYTES} bytes")


def head_fault(version: str, method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> InvalidRequest | None:
    """Why a request can't be taken, by its head alone; None when it can.

    version  of HTTP: "1.0" or "1.1"
    headers  names in lower case
    """
    size = len(url) + sum(len(name) + len(value) + _LINE_BYTES for name, value in headers)
    if size > MAX_HEAD_BYTES:
        return HeadTooLarge()
    if method == b"CONNECT":
        return InvalidRequest("this server is no proxy")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return InvalidRequest("a request must have one Host header")
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return InvalidRequest("the only transfer coding is chunked, in one Transfer-Encoding header, over HTTP/1.1")
    return None
