"""/v1/responses and what hangs below it.

A response lives in the API worker that made it. What asks another worker about it by its path never comes here, but is sent on
by a middleware (`forwarding`); what continues it is sent on from here.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.schemas import convert, decode
from streamserve.server.apis.responses.answers import Headers, ResponseEvents, ResponseObject, WholeResponse
from streamserve.server.apis.responses.planning import plan_response
from streamserve.server.apis.responses.schema import ResponseRequest
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.delivery.answering import warning
from streamserve.server.delivery.producer import Producer
from streamserve.server.http.errors import NotFound
from streamserve.server.service import Service
from streamserve.server.siblings.forwarding import Forwarded
from streamserve.server.siblings.siblings import NotKeptHere
from streamserve.server.ws.messages import take_resumable

MAX_PAGE = 100


@post("/v1/responses", status_code=200)
async def create_response(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """Answer an input; as one object, as events, or in the background."""
    body = await request.body()
    asked, ignored = decode(body, ResponseRequest)
    try:
        record = await plan_response(service, asked)
    except NotKeptHere as missing:
        internal_socket = await service.find_sibling(missing.response_id)
        if internal_socket is None:
            raise
        return Forwarded(internal_socket, body)
    headers: Headers = [(b"x-request-id", record.id.encode())]
    if ignored:
        headers.append((b"warning", warning(ignored)))
    if asked.stream:
        return ResponseEvents(service, record, headers, starts=True)
    return WholeResponse(service, record, headers)


async def create_response_over_socket(service: Service, body: dict[str, Any]) -> Producer:
    """`response.create`: the body of POST /v1/responses, and `resumable`."""
    is_resumable = take_resumable(body)
    asked, _ = convert(body, ResponseRequest)
    return (await plan_response(service, asked, is_resumable=is_resumable)).producer


@get("/v1/responses/{response_id:str}")
async def show_response(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> ASGIApp:
    """A response as it stands; with ?stream=true its events after number `starting_after`, and those to come."""
    record = _find(service, response_id)
    headers: Headers = [(b"x-request-id", record.id.encode())]
    if _choice(request, "stream", ("false", "true", "0", "1")) in ("false", "0"):
        return ResponseObject(record, headers)
    return ResponseEvents(service, record, headers, number=_integer(request, "starting_after", -1) + 1)


@delete("/v1/responses/{response_id:str}", status_code=200)
async def delete_response(service: NamedDependency[Service], response_id: FromPath[str]) -> dict[str, Any]:
    """Forget a response; one that is being generated is cancelled."""
    record = _find(service, response_id)
    service.responses.remove(response_id)
    if not record.is_ended:
        record.producer.abort()
    return {"id": response_id, "object": "response", "deleted": True}


@post("/v1/responses/{response_id:str}/cancel", status_code=200)
async def cancel_response(service: NamedDependency[Service], response_id: FromPath[str]) -> dict[str, Any]:
    """End a response, keeping what was generated; one that has ended stays as it is."""
    record = service.responses.get(response_id)
    if record is not None:
        record.producer.abort()
        await record.producer.wait_ended()
        return record.as_object()
    if await service.cancel(response_id):
        return {"id": response_id, "object": "response", "status": "cancelled", "output": []}
    raise _not_found(response_id)


@get("/v1/responses/{response_id:str}/input_items")
async def list_input_items(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> dict[str, Any]:
    """The input that a response was asked with, newest first unless `order=asc`, from behind the item `after`."""
    items = list(_find(service, response_id).items)
    if _choice(request, "order", ("desc", "asc")) == "desc":
        items.reverse()
    after = request.query_params.get("after")
    ids = [item["id"] for item in items]
    if after is not None:
        if after not in ids:
            raise InvalidParameter("after", "no such input item")
        items = items[ids.index(after) + 1 :]
    page = items[: min(max(_integer(request, "limit", 20), 1), MAX_PAGE)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(page) < len(items),
    }


def _find(service: Service, response_id: str) -> StoredResponse:
    record = service.responses.get(response_id)
    if record is None:
        raise _not_found(response_id)
    return record


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"no response {response_id!r} is kept: it was not stored, or has expired")


def _choice(request: Request[Any, Any, Any], name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, the first when the query does not say."""
    given: str = request.query_params.get(name, choices[0])
    if given not in choices:
        raise InvalidParameter(name, f"must be one of {', '.join(choices)}")
    return given


def _integer(request: Request[Any, Any, Any], name: str, default: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    try:
        return int(given)
    except ValueError:
        raise InvalidParameter(name, "must be a whole number") from None


ROUTES = [create_response, show_response, delete_response, cancel_response, list_input_items]
