"""Authentication: API keys for all but probes and the chat page, over HTTP and over WebSockets.

A Litestar middleware that does not wrap `send`, so that streamed events cost no more with keys than without. It leaves the
tenant that the key stands for in the scope's `user`, and the key itself, for requests that are sent on, in its `auth`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.errors import AuthenticationFailed
from streamserve.server.http.access.api_keys import ApiKeys
from streamserve.server.http.errors import refuse_upgrade
from streamserve.server.telemetry.metrics import Metrics
from streamserve.types import ANYONE, Tenant

OPEN_PATHS = frozenset({"/", "/health", "/live", "/ping", "/ready", "/version"})
"""What needs no key: probes, and the chat page, which asks for one itself."""

MAX_OFFERED = 4
"""Keys of one request that are looked at."""

_PAGE_PREFIX = "/chat/"
_METRICS = "/metrics"
_KEY_PROTOCOL = "openai-insecure-api-key."


class Authentication:
    """Lets requests pass when they carry one of `api_keys`, and says whose they are.

    protects_metrics  whether /metrics needs a key, too

    A browser can't set headers on a WebSocket: there a key may come as the subprotocol `openai-insecure-api-key.<key>`.
    """

    def __init__(self, app: ASGIApp, api_keys: ApiKeys, metrics: Metrics, *, protects_metrics: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._open_paths = OPEN_PATHS if protects_metrics else OPEN_PATHS | {_METRICS}
        self._api_keys = api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_protected(scope) and not self._admit(scope):
            error = AuthenticationFailed("missing or wrong API key: send it as `Authorization: Bearer <key>` or `x-api-key`")
            if scope["type"] == ScopeType.HTTP:
                raise error
            self._metrics.reject(error)
            await refuse_upgrade(scope, receive, send, error)
        else:
            await self._app(scope, receive, send)

    def _is_protected(self, scope: Scope) -> bool:
        """Whether a key is needed. The routed path counts; a preflight can't bring a key, and reads nothing."""
        if scope["type"] != ScopeType.HTTP:
            return True
        is_reading = scope["method"] == "GET" and (scope["path"] in self._open_paths or scope["path"].startswith(_PAGE_PREFIX))
        return not (is_reading or scope["method"] == "OPTIONS" or scope["path"] == "/ping")

    def _admit(self, scope: Scope) -> bool:
        """Whether the request carries a key; then its scope says whose."""
        found = self._api_keys.find(islice(_offered_keys(scope), MAX_OFFERED))
        if found is None:
            return False
        key, offered = found
        scope["user"], scope["auth"] = key.tenant, offered
        return True


def tenant_of(scope: Scope) -> Tenant:
    """Who sends a request."""
    return scope.get("user") or ANYONE


def authorization_of(scope: Scope) -> dict[str, str]:
    """The header that shows the key of a request, for one that is sent on in its name."""
    key = scope.get("auth")
    return {} if key is None else {"Authorization": f"Bearer {key.decode('latin-1')}"}


def _offered_keys(scope: Scope) -> Iterable[bytes]:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()
        elif name == b"x-api-key":
            yield value.strip()
    protocols: Iterable[str] = scope.get("subprotocols", ())  # type: ignore[assignment]
    for protocol in protocols:
        if protocol.startswith(_KEY_PROTOCOL):
            yield protocol.removeprefix(_KEY_PROTOCOL).encode()
