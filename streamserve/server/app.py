"""The Litestar app of one API worker: its routes, middleware and error responses.

Created before the model is loaded, so that /live answers at once; `Service.attach` opens it for requests.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from functools import partial
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.middleware import DefineMiddleware
from litestar.types import ControllerRouterHandler, Middleware

from streamserve.errors import QueueFull
from streamserve.server import resumption, status_routes
from streamserve.server.api import Api, error_body_at
from streamserve.server.apis.anthropic.api import ANTHROPIC
from streamserve.server.apis.openai.api import OPENAI
from streamserve.server.apis.responses.api import RESPONSES
from streamserve.server.config import CorsConfig
from streamserve.server.delivery.identity import is_safe_id
from streamserve.server.early_refusal import early_refusal
from streamserve.server.http.access.auth import Authentication, tenant_of
from streamserve.server.http.access.origins import OriginCheck
from streamserve.server.http.access.preflight import Preflights
from streamserve.server.http.errors import ErrorBody, InternalError, NotFound, error_headers, from_exception
from streamserve.server.http.head_requests import HeadAsGet
from streamserve.server.http.page import page_router
from streamserve.server.http.rate_limit_headers import NAMES as RATE_LIMIT_HEADERS
from streamserve.server.service import Service
from streamserve.server.siblings.forwarding import ForwardingByPath
from streamserve.server.telemetry.tracing import TraceContext
from streamserve.server.ws.upgrade import websocket_routes

logger = logging.getLogger("streamserve.server")

APIS = (OPENAI, RESPONSES, ANTHROPIC)
"""The APIs that are served: to add one, list it here."""

SOCKET_PATHS = ["/v1/ws", "/v1/responses"]


def create_app(service: Service, apis: Sequence[Api] = APIS) -> Litestar:
    """The ASGI app that serves `apis` with `service`."""
    config = service.config

    def to_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        path = request.scope["path"]
        error_body = error_body_at(apis, path)
        if isinstance(error, NotFoundException | MethodNotAllowedException):
            right_path = _right_path(path, {route.path for route in app.routes})
            error = error if right_path is None else NotFound(f"no such path; you probably mean {right_path}")
        return _error_response(service, error, error_body, request)

    service.delivery.id_prefixes = tuple(prefix for api in apis for prefix in api.id_prefixes)
    middleware: list[Middleware] = []
    if service.tracer is not None:
        middleware.append(DefineMiddleware(TraceContext, tracer=service.tracer))
    if service.api_keys:
        middleware.append(
            DefineMiddleware(
                Authentication,
                api_keys=service.api_keys,
                metrics=service.metrics,
                protects_metrics=config.protects_metrics,
            )
        )
    if service.siblings is not None:
        middleware.append(DefineMiddleware(ForwardingByPath, find_elsewhere=service.find_elsewhere))
    app = Litestar(
        route_handlers=[*_routes(apis), resumption.continue_stream, *status_routes.ROUTES, page_router()],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        signature_namespace={"Service": Service},
        exception_handlers={Exception: to_response},
        middleware=middleware,
        guards=[early_refusal(service.require_room)],
        cors_config=_cors(config.cors),
        request_max_body_size=config.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )
    app.asgi_handler = Preflights(app.asgi_handler, on_refused=service.metrics.reject)
    if config.cors is not None:
        app.asgi_handler = OriginCheck(
            app.asgi_handler,
            config.cors.origins,
            has_keys=bool(service.api_keys),
            error_body=partial(error_body_at, apis),
            on_refused=service.metrics.reject,
        )
    app.asgi_handler = HeadAsGet(app.asgi_handler)
    return app


def _routes(apis: Sequence[Api]) -> list[ControllerRouterHandler]:
    """What the APIs answer over HTTP and over WebSockets."""
    creates = {kind: create for api in apis for kind, create in api.creates.items()}
    return [*(route for api in apis for route in api.routes), websocket_routes(SOCKET_PATHS, creates)]


def _right_path(path: str, paths: Container[str]) -> str | None:
    """The path that a client means which leaves /v1 out, or says it twice, since SDKs add it to their base URL or don't."""
    candidates = (f"/v1{path}", path.removeprefix("/v1"))
    return next((each for each in candidates if each != path and each in paths), None)


def _error_response(
    service: Service, error: Exception, error_body: ErrorBody, request: Request[Any, Any, Any]
) -> Response[bytes]:
    known = from_exception(error)
    if isinstance(known, InternalError):
        logger.error("unexpected error", exc_info=error)
    service.metrics.reject(known)
    limits = service.limit_headers(tenant_of(request.scope)) if known.status == QueueFull.status else []
    headers = {name.decode(): value.decode() for name, value in [*error_headers(known), *limits]}
    if is_safe_id(request_id := request.headers.get("x-request-id", "")):
        headers["x-request-id"] = request_id
    return Response(error_body(known), status_code=known.status, headers=headers, media_type="application/json")


def _cors(cors: CorsConfig | None) -> CORSConfig | None:
    if cors is None:
        return None
    return CORSConfig(
        allow_origins=list(cors.origins),
        allow_methods=list(cors.methods),  # type: ignore[arg-type]
        allow_headers=list(cors.headers),
        allow_credentials=cors.allow_credentials,
        expose_headers=["X-Request-Id", "X-Stream-Id", "Warning", "Retry-After", *RATE_LIMIT_HEADERS],
    )
