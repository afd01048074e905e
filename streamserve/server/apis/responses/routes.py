"""/v1/responses and what hangs below it.

A response lives in the API worker that made it. What asks another worker about it by its path never comes here, but is sent on
by a middleware (`forwarding`); what continues it is sent on from here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp

from streamserve.errors import InvalidParameter, InvalidRequest, quoted
from streamserve.server.apis.responses.compaction import CompactRequest, compact_conversation
from streamserve.server.apis.responses.conversation import find_response
from streamserve.server.apis.responses.events import ResponseEvent
from streamserve.server.apis.responses.preparation import count_input, prepare_response
from streamserve.server.apis.responses.schema import ResponseRequest, without_effect
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.apis.responses.writers import JsonObject, WholeResponse
from streamserve.server.delivery.asgi import Headers
from streamserve.server.delivery.identity import answer_headers, warning
from streamserve.server.delivery.log_stream import LogStream
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.access.owned_id import OwnedId, owned_id
from streamserve.server.http.bodies.request_body import Decoded, decode, read_body
from streamserve.server.http.errors import NotFound
from streamserve.server.service import Service
from streamserve.server.siblings.forwarding import Forwarded
from streamserve.server.siblings.siblings import NotKeptHere
from streamserve.types import Tenant

MAX_PAGE = 100


@post("/v1/responses", status_code=200, opt=ADMITS)
async def create_response(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """Answer an input; as one object, as events, or in the background."""
    body = await read_body(request, service.large_work)
    tenant = tenant_of(request.scope)
    decoded = await decode(body, ResponseRequest, service.large_work)
    return await _here_or_forwarded(service, tenant, body, _created(service, tenant, decoded, request.headers))


async def _created(
    service: Service, tenant: Tenant, decoded: Decoded[ResponseRequest], request_headers: Mapping[str, str]
) -> ASGIApp:
    # Nobody waits for one in the background.
    patience_s = (
        None if decoded.request.background else service.patience_s(request_headers, is_stream=bool(decoded.request.stream))
    )
    response, ignored = await prepare_response(service, decoded, tenant, patience_s=patience_s)
    headers = answer_headers(response.id, ignored)
    if decoded.request.stream:
        return _stream(service, response, headers, start=partial(service.delivery.start, response.logged))
    return WholeResponse(service.delivery, response, headers)


@post("/v1/responses/compact", status_code=200, opt=ADMITS)
async def compact(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """A shorter conversation in place of a long one."""
    body = await read_body(request, service.large_work)
    tenant = tenant_of(request.scope)
    decoded = await decode(body, CompactRequest, service.large_work)
    return await _here_or_forwarded(service, tenant, body, compact_conversation(service, decoded, tenant))


@post("/v1/responses/input_tokens", status_code=200)
async def input_tokens(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """The number of tokens that a response would read, whether they fit the model's context or not."""
    body = await read_body(request, service.large_work)
    tenant = tenant_of(request.scope)
    decoded = await decode(body, ResponseRequest, service.large_work)
    return await _here_or_forwarded(service, tenant, body, _counted(service, tenant, decoded))


async def _counted(service: Service, tenant: Tenant, decoded: Decoded[ResponseRequest]) -> ASGIApp:
    count = await count_input(service, decoded, tenant)
    ignored = [*decoded.ignored, *without_effect(decoded.request)]
    headers = [(b"warning", warning(ignored))] if ignored else []
    return JsonObject({"object": "response.input_tokens", "input_tokens": count}, headers)


async def _here_or_forwarded(service: Service, tenant: Tenant, body: bytes, answer: Awaitable[ASGIApp]) -> ASGIApp:
    """The answer to a request, from the worker that keeps what it refers to."""
    try:
        return await answer
    except NotKeptHere as missing:
        internal_socket = await service.find_sibling(OwnedId(tenant.name, missing.response_id))
        if internal_socket is None:
            raise
        return Forwarded(internal_socket, body)


@get("/v1/responses/{response_id:str}")
async def show_response(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> ASGIApp:
    """A response as it stands; with ?stream=true its events after number `starting_after`, and those to come."""
    response = _find(service, owned_id(request.scope, response_id))
    headers = answer_headers(response.id, [])
    if _choice(request, "stream", ("false", "true", "0", "1")) in ("false", "0"):
        return JsonObject(response.state.as_object(), headers)
    return _stream(service, response, headers, number=_integer(request, "starting_after", -1) + 1)


@delete("/v1/responses/{response_id:str}", status_code=200)
async def delete_response(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> dict[str, Any]:
    """Forget a response; one that is being generated is cancelled."""
    id = owned_id(request.scope, response_id)
    response = _find(service, id)
    service.stored.remove(id)
    if not response.is_ended:
        response.logged.run.abort()
    return {"id": response_id, "object": "response", "deleted": True}


@post("/v1/responses/{response_id:str}/cancel", status_code=200)
async def cancel_response(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> dict[str, Any]:
    """End a response, keeping what was generated; one made in the background that has ended stays as it is."""
    id = owned_id(request.scope, response_id)
    response = find_response(service, id)
    if response is not None:
        if response.is_ended and not response.state.is_background:
            raise InvalidRequest("this response has ended, and was not made in the background: there is nothing to cancel")
        response.logged.run.abort()
        await response.logged.wait_ended()
        return response.state.as_object()
    if await service.cancel(id):
        return {"id": response_id, "object": "response", "status": "cancelled", "output": []}
    raise _not_found(response_id)


@get("/v1/responses/{response_id:str}/input_items")
async def list_input_items(
    request: Request[Any, Any, Any], service: NamedDependency[Service], response_id: FromPath[str]
) -> dict[str, Any]:
    """The input of a response, newest first unless `order=asc`, from behind the item `after`."""
    items = list(_find(service, owned_id(request.scope, response_id)).state.items)
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


def _stream(
    service: Service,
    response: StoredResponse,
    headers: Headers,
    *,
    number: int = 0,
    start: Callable[[], Awaitable[None]] | None = None,
) -> LogStream[ResponseEvent]:
    """The events of a response from `number` on."""
    return LogStream(response.logged, timeouts=service.delivery.timeouts, headers=headers, number=number, start=start)


def _find(service: Service, response_id: OwnedId) -> StoredResponse:
    response = find_response(service, response_id)
    if response is None:
        raise _not_found(response_id.id)
    return response


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"no response {quoted(response_id)} is kept: it was not stored, or has expired")


def _choice(request: Request[Any, Any, Any], name: str, choices: tuple[str, ...]) -> str:
    """A query parameter that is one of `choices`; the first of them when it is missing."""
    value: str = request.query_params.get(name, choices[0])
    if value not in choices:
        raise InvalidParameter(name, f"must be one of {', '.join(choices)}")
    return value


def _integer(request: Request[Any, Any, Any], name: str, default: int) -> int:
    value = request.query_params.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise InvalidParameter(name, "must be a whole number") from None


ROUTES = [create_response, compact, input_tokens, show_response, delete_response, cancel_response, list_input_items]
