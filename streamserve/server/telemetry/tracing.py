"""OpenTelemetry traces: one span per request, with its tokens and times, under vLLM's attribute names.

The SDK is imported only where an endpoint is configured. A framework's instrumentation would make a span of every `send`, that
is of every streamed token; this one is called twice per request, once it has been checked and when it has ended. The SDK
exports spans from a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

import streamserve
from streamserve.errors import ConfigError
from streamserve.server.telemetry.request_cost import RequestCost
from streamserve.types import SamplingParams

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SPAN_NAME = "llm_request"
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def require_installed() -> None:
    """Raises `ConfigError` when the extra is missing."""
    try:
        is_there = all(find_spec(name) is not None for name in _PACKAGES)
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise ConfigError("--otlp-traces-endpoint needs the OpenTelemetry SDK: pip install 'streamserve[otel]'")


def exporting_to(endpoint: str) -> Tracer:
    """A tracer that sends to an OTLP/HTTP endpoint, such as http://localhost:4318/v1/traces, in batches.

    The SDK's variables hold: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, ….
    """
    require_installed()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource({"service.name": "streamserve", "service.version": streamserve.__version__})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracer(provider)


class Tracer:
    """Makes the spans of one API worker."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("streamserve", streamserve.__version__)

    def begin(self, request_id: str, model: str, params: SamplingParams, max_tokens: int) -> RequestTrace:
        """The span of a request that has been checked; a child of the client's own when it named one in `traceparent`."""
        from opentelemetry.trace import SpanKind

        attributes: dict[str, str | int | float] = {
            "gen_ai.request.id": request_id,
            "gen_ai.response.model": model,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.max_tokens": max_tokens,
            "gen_ai.request.n": params.n,
        }
        start_ns = time.time_ns()
        return RequestTrace(
            self._tracer.start_span(SPAN_NAME, kind=SpanKind.SERVER, attributes=attributes, start_time=start_ns)
        )

    @contextmanager
    def parent_of(self, scope: Scope) -> Iterator[None]:
        """Spans begun in this block are children of the one that the request's headers name."""
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = attach(TraceContextTextMapPropagator().extract(headers))
        try:
            yield
        finally:
            detach(token)

    def close(self) -> None:
        """Send what is still waiting; may block for some seconds."""
        self._provider.shutdown()


class RequestTrace:
    """The span of one request; an `accounting.Trace`."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, cost: RequestCost) -> None:
        from opentelemetry.trace import StatusCode

        times = cost.times
        latencies = {"e2e": cost.e2e_s}
        if times is not None:
            latencies |= {
                "time_in_queue": times.queue_s,
                "time_to_first_token": times.queue_s + times.prefill_s,
                "time_in_model_prefill": times.prefill_s,
                "time_in_model_decode": times.decode_s,
                "time_in_model_inference": times.prefill_s + times.decode_s,
            }
        self._span.set_attributes({f"gen_ai.latency.{name}": seconds for name, seconds in latencies.items()})
        self._span.set_attribute("gen_ai.usage.prompt_tokens", cost.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.completion_tokens", cost.completion_tokens)
        self._span.set_attribute("gen_ai.response.finish_reasons", cost.finish_reasons)
        if "error" in cost.finish_reasons:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class TraceContext:
    """Middleware that reads `traceparent` (W3C Trace Context) from requests and upgrades; does not wrap `send`."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in (ScopeType.HTTP, ScopeType.WEBSOCKET):
            await self._app(scope, receive, send)
            return
        with self._tracer.parent_of(scope):
            await self._app(scope, receive, send)
