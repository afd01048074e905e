"""Continuing a stream over SSE after a dropped connection, in whichever API worker, API and transport it began.

By its path, as a browser's EventSource does, or by posting again with the id of the last event, as other clients do. Runs on
one API worker's event loop.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp

from streamserve.errors import InvalidParameter
from streamserve.server.delivery.asgi import NoContent
from streamserve.server.delivery.event_ids import LAST_EVENT_ID, Place, place_after
from streamserve.server.delivery.event_log import ResumeGap
from streamserve.server.http.access.owned_id import owned_id
from streamserve.server.service import Service
from streamserve.server.siblings.forwarding import Forwarded


@get("/v1/streams/{stream_id:str}")
async def continue_stream(
    request: Request[Any, Any, Any], service: NamedDependency[Service], stream_id: FromPath[str]
) -> ASGIApp:
    """The events of a stream behind the one that Last-Event-ID names, or from the first, and those to come."""
    last = request.headers.get(LAST_EVENT_ID)
    place = place_after(last) if last else Place(stream_id, 0)
    named = owned_id(request.scope, stream_id)
    if named._replace(id=place.stream_id) not in service.delivery.answer_ids(named):
        raise InvalidParameter(LAST_EVENT_ID, "is the id of another stream's event")
    return await _continued(service, request, place)


async def continuation(request: Request[Any, Any, Any], service: Service) -> ASGIApp | None:
    """What goes on with the stream that a request's Last-Event-ID names; None for a request without one.

    The request's body says nothing more, and need not be read. Raises `ResumeGap`.
    """
    last = request.headers.get(LAST_EVENT_ID)
    return await _continued(service, request, place_after(last)) if last else None


async def _continued(service: Service, request: Request[Any, Any, Any], place: Place) -> ASGIApp:
    id = owned_id(request.scope, place.stream_id)
    logged = service.find(id)
    if logged is None:
        internal_socket = await service.find_sibling(id)
        if internal_socket is None:
            raise ResumeGap("no events of this stream are kept")
        return Forwarded(internal_socket)
    if logged.log.is_complete and place.number == logged.log.next_number:
        # Everything has been read: at any other answer an EventSource would connect again, and again.
        return NoContent()
    return service.delivery.log_stream(logged, [], number=place.number)
