"""API keys: who may use /v1, over HTTP and over WebSockets.

An ASGI layer around the app and not a Litestar middleware, because those wrap `send` and so cost every streamed event a coroutine.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.errors import AuthenticationFailed
from streamserve.server.errors import send_error

PROTECTED_PREFIX = "/v1"
_KEY_PROTOCOL = "openai-insecure-api-key."


class Authentication:
    """Lets requests to /v1 pass when they carry one of `api_keys`.

    A browser can't set headers on a WebSocket: there a key may come as the subprotocol `openai-insecure-api-key.<key>`.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], root_path: str = "") -> None:
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]
        self._prefix = root_path.rstrip("/") + PROTECTED_PREFIX

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_protected(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = AuthenticationFailed("missing or wrong API key: send it as `Authorization: Bearer <key>`")
        if scope["type"] == "http":
            await send_error(send, error)
        else:
            await _refuse_upgrade(scope, receive, send, error)

    def _is_protected(self, scope: Scope) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return False
        path: str = scope["path"]
        return path.startswith((self._prefix, PROTECTED_PREFIX))

    def _has_key(self, scope: Scope) -> bool:
        # Every key is compared, each in constant time, so that the time taken says nothing.
        given = list(_given_keys(scope))
        return any([hmac.compare_digest(key, offered) for key in self._api_keys for offered in given])


def _given_keys(scope: Scope) -> Iterable[bytes]:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()
    if scope["type"] == "websocket":
        for protocol in scope["subprotocols"]:
            if protocol.startswith(_KEY_PROTOCOL):
                yield protocol.removeprefix(_KEY_PROTOCOL).encode()


async def _refuse_upgrade(scope: Scope, receive: Receive, send: Send, error: AuthenticationFailed) -> None:
    """Answer an upgrade with an HTTP status and body where the server can, else by closing before accepting."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await receive()
        await send({"type": "websocket.close", "code": 4401, "reason": error.code})
        return
    await receive()
    await send_error(send, error, prefix="websocket.http")
