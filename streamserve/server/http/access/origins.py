"""Which web pages may use a server, and under which names it may be called.

A browser lets any page send requests to any address, this machine's included, and a page whose name is made to resolve to that
address (DNS rebinding) may read the answers. An API key, which a page does not have, stops both; so does this middleware where
there is none. Wraps the whole app, on an API worker's event loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.errors import StreamserveError, quoted
from streamserve.server.http.errors import ErrorBody, refuse_upgrade, send_error

_ANY = "*"

_RESERVED = (".localhost", ".local", ".internal", ".home.arpa")
"""Ends of names that nobody can register (RFC 6761, 6762 and 8375; ICANN, 2024)."""


class OriginForbidden(StreamserveError):
    """A page of another site sent a request."""

    status = 403
    type = "invalid_request_error"
    code = "origin_forbidden"


class HostForbidden(StreamserveError):
    """A request names a host that may be a stranger's."""

    status = 403
    type = "invalid_request_error"
    code = "host_forbidden"


class OriginCheck:
    """Middleware that refuses requests of other sites' pages.

    allowed      origins whose pages may use the server; "*" turns all checks off
    has_keys     pages without a key get nothing over HTTP: only WebSockets are checked then
    error_body   the body of an error, by the path
    on_refused   called with each refusal

    A connection on an internal socket comes from another worker, which has checked its request.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed: Collection[str],
        *,
        has_keys: bool,
        error_body: Callable[[str], ErrorBody],
        on_refused: Callable[[StreamserveError], None],
    ) -> None:
        self._app = app
        self._allowed = frozenset(allowed)
        self._names = {urlsplit(origin).hostname for origin in allowed} | {socket.gethostname().lower()}
        self._has_keys = has_keys
        self._error_body = error_body
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self.fault(scope)
        if error is None:
            await self._app(scope, receive, send)
            return
        self._on_refused(error)
        if scope["type"] == ScopeType.HTTP:
            await send_error(send, error, error_body=self._error_body(scope["path"]))
        else:
            await refuse_upgrade(scope, receive, send, error)

    def fault(self, scope: Scope) -> StreamserveError | None:
        """Why a request is refused; None when it is not."""
        is_upgrade = scope["type"] != ScopeType.HTTP
        if _ANY in self._allowed or _is_internal(scope) or (self._has_keys and not is_upgrade):
            return None
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin in self._allowed:
            return None
        # A preflight reads nothing, and its refusal is CORS's.
        is_preflight = scope["type"] == ScopeType.HTTP and scope["method"] == "OPTIONS"
        if origin and not is_preflight and origin.partition("://")[2].lower() != host:
            return OriginForbidden("pages of this origin may not use this server: allow it with --allowed-origins")
        # A browser leaves the origin out where a page reads from what it takes to be its own server. Through loopback, a
        # page may come from anywhere; on another address, programs may call the server by any name that it has.
        if not self._has_keys and (origin or _is_loopback(scope)) and not self._is_own_name(host):
            return HostForbidden(
                f"this server has no API key, and does not know itself by the name {quoted(host)}: start it with --api-key, "
                f"""or with --allowed-origins '["http://{_name(host)}"]' if that is its name"""
            )
        return None

    def _is_own_name(self, host: str) -> bool:
        """Whether a name can't be one that a stranger has registered and made to resolve to this server."""
        name = _name(host)
        if "." not in name or name.endswith(_RESERVED) or name in self._names:
            return True
        return _is_address(name)


def _name(host: str) -> str:
    """A Host header without port, brackets and the dot of the root."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        ip_address(name)
        return True
    return False


def _is_internal(scope: Scope) -> bool:
    server = scope.get("server")
    return server is None or server[1] is None


def _is_loopback(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and _is_address(server[0]) and ip_address(server[0]).is_loopback
