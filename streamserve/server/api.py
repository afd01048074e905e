"""An API as the rest of the server sees it: what is mounted, and the shape of its errors.

An API is a folder in `apis/`: schemas of its requests, a script that maps deltas to its events, routes, and one `Api` that
`app.APIS` lists. Plain values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from litestar.types import ControllerRouterHandler

from streamserve.server.delivery.events import SocketEvent
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.retention import Expiring, TtlStore
from streamserve.server.http.bodies.request_body import Body
from streamserve.server.http.errors import ErrorBody, error_body
from streamserve.server.service import Service
from streamserve.types import Tenant


class CreateMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a socket that creates a stream.

    tenant        who sends it
    body          as of the API's POST
    is_resumable  whether the stream goes on for a while without its socket
    kept          answers by id for as long as the socket is open: what creates of the same socket may continue
    """

    tenant: Tenant
    body: Body
    is_resumable: bool
    kept: TtlStore[str, Expiring]


Create = Callable[[Service, CreateMessage], Awaitable[LoggedRun[SocketEvent]]]
"""Checks a create message and makes the run that will answer it."""


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """One API that clients speak.

    routes       its HTTP handlers
    paths        what its paths begin with: errors at these have its shape
    id_prefixes  what the ids of its answers begin with
    error_body   the body of an error
    creates      what it answers over WebSockets, by the type of the message
    """

    routes: Sequence[ControllerRouterHandler]
    paths: Sequence[str]
    id_prefixes: Sequence[str] = ()
    error_body: ErrorBody = error_body
    creates: Mapping[str, Create] = {}


def error_body_at(apis: Sequence[Api], path: str) -> ErrorBody:
    """The shape of errors at a path; the server's own where no API has it."""
    owners = (api for api in apis if any(path == start or path.startswith(f"{start}/") for start in api.paths))
    return next((api.error_body for api in owners), error_body)
