"""What the writers share of ASGI: messages, headers, timeouts, and noticing that a client has gone."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.types import Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

EVENT_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
KEEPALIVE = b"\n\n"


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """keepalive_s: silence after which a stream gets a blank line; send_timeout_s: how long a client may take nothing."""

    keepalive_s: float
    send_timeout_s: float


def start_events(headers: Headers) -> Any:
    """The ASGI message that opens an event stream."""
    return {"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM_HEADERS, *headers]}


def body_part(body: bytes, *, more_body: bool) -> Any:
    """An ASGI message with a part of a body."""
    return {"type": "http.response.body", "body": body, "more_body": more_body}


async def send_json(send: Send, body: bytes, headers: Headers) -> None:
    """Send a whole JSON answer with status 200."""
    sized = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": sized})
    await send(body_part(body, more_body=False))


class NoContent:
    """An ASGI app that has nothing to say: status 204."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send(body_part(b"", more_body=False))


async def wait_disconnected(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue
