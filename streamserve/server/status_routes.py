"""The endpoints beside generation: models, cancellation, health, load, metrics, the OpenAPI document."""

from __future__ import annotations

from typing import Any

from litestar import HttpMethod, Request, Response, get, post, route
from litestar.di import NamedDependency
from litestar.params import FromPath

import streamserve
from streamserve.server.http.access.owned_id import owned_id
from streamserve.server.http.errors import NotFound
from streamserve.server.openapi.document import document
from streamserve.server.service import Service

METRICS_TYPE = "text/plain; version=0.0.4"


@get("/v1/models")
async def list_models(service: NamedDependency[Service]) -> dict[str, Any]:
    """The names that requests may give."""
    return {"object": "list", "data": [_model(service, name) for name in service.config.model_names]}


@get("/v1/models/{name:path}")
async def show_model(service: NamedDependency[Service], name: FromPath[str]) -> dict[str, Any]:
    """One served model; names may hold slashes."""
    return _model(service, service.resolve_model(name.lstrip("/")))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "streamserve",
        "root": service.config.model_root,
        "parent": None,
        "max_model_len": service.frontend.info.max_model_len,
        "permission": [_permission(service, name)],
    }


def _permission(service: Service, name: str) -> dict[str, Any]:
    """What vLLM says of every model, in the words of OpenAI's earlier API."""
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": service.started_at,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


@post("/v1/requests/{request_id:str}/cancel", status_code=200)
async def cancel_request(
    request: Request[Any, Any, Any], service: NamedDependency[Service], request_id: FromPath[str]
) -> dict[str, Any]:
    """End a running request; its stream ends with finish_reason "abort" and keeps its text."""
    if not await service.cancel(owned_id(request.scope, request_id)):
        raise NotFound("no such request is running")
    return {"id": request_id, "object": "request.cancelled", "cancelled": True}


@post("/v1/requests/{request_id:str}/answer", status_code=200)
async def answer_now(
    request: Request[Any, Any, Any], service: NamedDependency[Service], request_id: FromPath[str]
) -> dict[str, Any]:
    """End the reasoning of a running request within one step; its answer goes on in the same stream."""
    if not await service.answer_now(owned_id(request.scope, request_id)):
        raise NotFound("no such request is running")
    return {"id": request_id, "object": "request.answering", "answering": True}


@get("/live")
async def live() -> Response[bytes]:
    """200 as long as this process answers, the model loaded or not: what a liveness probe asks."""
    return Response(b"", media_type="text/plain")


@get("/health")
async def health(service: NamedDependency[Service]) -> Response[bytes]:
    """200 while requests are taken; manifests written for vLLM and SGLang probe it for readiness."""
    service.lifecycle.require_ready()
    return Response(b"", media_type="text/plain")


@route("/ping", http_method=[HttpMethod.GET, HttpMethod.POST], status_code=200)
async def ping(service: NamedDependency[Service]) -> Response[bytes]:
    """As /health, under SageMaker's name."""
    service.lifecycle.require_ready()
    return Response(b"", media_type="text/plain")


@get("/ready")
async def ready(service: NamedDependency[Service]) -> dict[str, Any]:
    """200 when requests are taken: model loaded, engine running, not draining."""
    await service.require_healthy()
    return {"status": "ready"}


@get("/version")
async def version() -> dict[str, Any]:
    """The version of streamserve."""
    return {"version": streamserve.__version__}


@get("/load")
async def load(service: NamedDependency[Service]) -> dict[str, Any]:
    """How busy the server is."""
    stats = await service.engine_stats()
    body: dict[str, Any] = {"server_load": service.metrics.num_requests, "phase": service.lifecycle.phase.value}
    if stats is not None:
        body |= {
            "num_requests_running": stats.num_requests_running,
            "num_requests_waiting": stats.num_requests_waiting,
            "num_requests_paused": stats.num_requests_paused,
            "kv_blocks_used": stats.kv_blocks_used,
            "kv_blocks_total": stats.kv_blocks_total,
        }
    return body


@get("/metrics")
async def metrics(service: NamedDependency[Service]) -> Response[bytes]:
    """Prometheus' text format."""
    return Response(service.metrics.page(await service.engine_snapshots()), media_type=METRICS_TYPE)


@get("/openapi.json")
async def openapi(service: NamedDependency[Service]) -> dict[str, Any]:
    """The OpenAPI document."""
    return document(service.config.root_path)


ROUTES = [
    list_models,
    show_model,
    cancel_request,
    answer_now,
    live,
    health,
    ping,
    ready,
    version,
    load,
    metrics,
    openapi,
]
