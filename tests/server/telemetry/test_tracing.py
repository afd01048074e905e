"""A span for every request, whatever it came over; nothing at all while traces are off."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streamserve.cli import cli
from streamserve.server.telemetry.request_cost import RequestCost, RequestTimes
from streamserve.server.telemetry.tracing import Tracer, exporting_to
from streamserve.types import SamplingParams, TokenDelta
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def tracing() -> Iterator[tuple[Tracer, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracer(provider), exporter
    provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_span_reports_the_request_and_its_cost(stream: bool) -> None:
    with tracing() as (tracer, exporter):
        async with live_server(ScriptedEngine(reply=text_reply("abc")), tracer=tracer) as server:
            body = {"prompt": "say", "stream": stream, "temperature": 0.5, "max_tokens": 9, "n": 2, "request_id": "one"}
            headers = {"traceparent": PARENT}
            async with request(server.port, "POST", "/v1/completions", body, headers=headers) as response:
                await response.body()
            await server.service.delivery.active_requests.wait_idle()
        [span] = exporter.get_finished_spans()
    reported = attributes(span)
    assert (span.name, span.kind, span.status.status_code) == ("llm_request", SpanKind.SERVER, StatusCode.UNSET)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in PARENT
    expected = {
        "gen_ai.request.id": "cmpl-one",
        "gen_ai.response.model": "scripted",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.n": 2,
        "gen_ai.usage.prompt_tokens": 3,
        "gen_ai.usage.completion_tokens": 8,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
    }
    assert {name: reported[name] for name in expected} == expected
    e2e, ttft = reported["gen_ai.latency.e2e"], reported["gen_ai.latency.time_to_first_token"]
    assert isinstance(e2e, float)
    assert isinstance(ttft, float)
    assert 0 < ttft <= e2e


@pytest.mark.anyio
async def test_sockets_and_responses_make_spans_too() -> None:
    with tracing() as (tracer, exporter):
        async with live_server(ScriptedEngine(reply=text_reply("abc")), tracer=tracer) as server:
            async with session(server.port) as socket:
                await socket.chat("a")
                await socket.ending("a")
            async with request(server.port, "POST", "/v1/responses", {"input": "hi"}) as response:
                await response.body()
            await server.service.delivery.active_requests.wait_idle()
        spans = [attributes(span) for span in exporter.get_finished_spans()]
    assert [str(span["gen_ai.request.id"])[:5] for span in spans] == ["chatc", "resp_"]
    assert [span["gen_ai.usage.completion_tokens"] for span in spans] == [4, 4]


@pytest.mark.anyio
async def test_a_failed_request_ends_its_span_as_an_error_and_a_client_that_leaves_as_aborted() -> None:
    engine = ScriptedEngine()
    with tracing() as (tracer, exporter):
        async with live_server(engine, tracer=tracer) as server:
            body = {"prompt": "say", "stream": True}
            async with request(server.port, "POST", "/v1/completions", body) as response:
                engine.fail((await engine.sequences(1))[0], "stream_failed", "broken")
                await response.body()
            async with request(server.port, "POST", "/v1/completions", body) as response:
                engine.generate((await engine.sequences(2))[1], TokenDelta([97]))
                await response.chunk()
                await response.leave()
            await server.service.delivery.active_requests.wait_idle()
        failed, left = exporter.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert "gen_ai.latency.time_to_first_token" not in attributes(failed)
    assert attributes(left)["gen_ai.response.finish_reasons"] == ("abort",)


def test_spans_arrive_at_an_otlp_endpoint() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            del args

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.handle_request)
        thread.start()
        tracer = exporting_to(f"http://127.0.0.1:{collector.server_port}/v1/traces")
        trace = tracer.begin("cmpl-1", "m", SamplingParams(), 5)
        trace.end(RequestCost(1, 2, 2, 0.5, RequestTimes(0.1, 0.2, 0.2), ["length"]))
        tracer.close()
        thread.join()
    [(path, body)] = received
    assert path == "/v1/traces"
    resource = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    assert resource.scope_spans[0].spans[0].name == "llm_request"
    assert ("service.name", "streamserve") in {(each.key, each.value.string_value) for each in resource.resource.attributes}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "streamserve.server.telemetry.tracing.find_spec",
        lambda name: None if name.startswith("opentelemetry") else find_spec(name),
    )
    result = CliRunner().invoke(cli, ["serve", "demo", "--otlp-traces-endpoint", "http://localhost:4318/v1/traces"])
    assert result.exit_code != 0
    assert "pip install 'streamserve[otel]'" in f"{result.output}{result.exception}"


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    code = "import sys, streamserve.commands.serve; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
