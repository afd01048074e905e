"""Refusals of CORS preflights as JSON errors.

Litestar answers preflights, and refuses in plain text. Wraps the whole app, on an API worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from streamserve.errors import InvalidRequest, StreamserveError
from streamserve.server.http.errors import send_error


class PreflightRefused(InvalidRequest):
    """A page of another origin may not send this request."""

    code = "cors_refused"


class Preflights:
    """Middleware that rewrites Litestar's refusals of preflights into OpenAI's error body.

    on_refused  called with each refusal
    """

    def __init__(self, app: ASGIApp, on_refused: Callable[[StreamserveError], None]) -> None:
        self._app = app
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == "OPTIONS":
            await self._app(scope, receive, self._with_json_refusals(send))
        else:
            await self._app(scope, receive, send)

    def _with_json_refusals(self, send: Send) -> Send:
        is_refusal = False

        async def send_in_json(message: Message) -> None:
            nonlocal is_refusal
            if message["type"] == "http.response.start" and _is_plain_refusal(message):
                is_refusal = True
            elif not is_refusal:
                await send(message)
            elif message["type"] == "http.response.body":
                refused = message["body"].decode().removeprefix("Disallowed CORS ")
                error = PreflightRefused(
                    f"cross-origin request not allowed because of its {refused.lower()}; see --allowed-origins"
                )
                self._on_refused(error)
                await send_error(send, error)

        return send_in_json


def _is_plain_refusal(start: Message) -> bool:
    headers = dict(start.get("headers", []))  # type: ignore[call-overload]
    return start["status"] == 400 and headers.get(b"content-type", b"").startswith(b"text/plain")  # type: ignore[typeddict-item]
