"""Refuses requests before anything has been done for them, where all of their tenant are refused now.

A guard of Litestar's: it runs before the body of a request is read, for the endpoints that say they admit sequences. Under
more load than a server can bear that is most of what it answers, and so costs it little.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from streamserve.server.delivery.event_ids import LAST_EVENT_ID
from streamserve.server.http.access.auth import tenant_of
from streamserve.types import Tenant

ADMITS: dict[str, Any] = {"admits_sequences": True}
"""The `opt` of endpoints whose requests are admitted to the engine."""


def early_refusal(
    require_room: Callable[[Tenant], None],
) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """The guard that calls `require_room`, which raises the refusal."""

    async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        # Who continues a stream asks for no room.
        if ADMITS.items() <= handler.opt.items() and LAST_EVENT_ID not in connection.headers:
            require_room(tenant_of(connection.scope))

    return guard
