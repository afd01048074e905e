"""The metrics page: vLLM's names, so that its dashboards work, and our own about streams.

Requests are counted as they run, in this API worker's share of the counters; the engine's gauges and totals are read on each
scrape. prometheus-client renders the page. Lives on one API worker's event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from streamserve.errors import QueueFull, StreamserveError
from streamserve.server.telemetry.engine_metrics import engine_families
from streamserve.server.telemetry.request_cost import RequestCost
from streamserve.server.telemetry.shared_counters import Counter, CounterLayout, CounterMemory, Histogram
from streamserve.types import EngineSnapshot

FINISH_REASONS = ("stop", "length", "abort", "error", "time")
ADMISSION_REASONS = ("max_num_queued_reqs",)
"""vLLM's word for a bound on the queue; here it is one of sequences."""

PHASES = ("queued", "streaming", "blocked")
_REASONS = {401: "auth", 403: "auth", 404: "not_found", 413: "too_large", 429: "queue_full", 499: "aborted", 503: "unavailable"}
REJECTIONS = (*dict.fromkeys(_REASONS.values()), "invalid", "internal")

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
_REQUEST_SECONDS = (
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0,
    20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
)  # fmt: skip
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)


class Metrics:
    """One API worker's counters, and the page over all workers.

    memory_fd  from `shared_memory`, for workers that count together; without it the counters are this worker's own
    engines    replicas of the model; figures of each have its number as a label, those of requests the label "all" with several
    """

    def __init__(
        self, model_name: str, *, memory_fd: int | None = None, worker: int = 0, workers: int = 1, engines: int = 1
    ) -> None:
        layout = CounterLayout()
        self.ttft_s = Histogram(layout, _SECONDS)
        self.inter_token_s = Histogram(layout, _SECONDS)
        self.per_output_token_s = Histogram(layout, _SECONDS)
        self.e2e_s = Histogram(layout, _REQUEST_SECONDS)
        self.queue_s = Histogram(layout, _REQUEST_SECONDS)
        self.prefill_s = Histogram(layout, _REQUEST_SECONDS)
        self.decode_s = Histogram(layout, _REQUEST_SECONDS)
        self.inference_s = Histogram(layout, _REQUEST_SECONDS)
        self.request_prompt_tokens = Histogram(layout, _TOKENS)
        self.request_generation_tokens = Histogram(layout, _TOKENS)
        self.request_max_generation_tokens = Histogram(layout, _TOKENS)
        self.request_max_tokens = Histogram(layout, _TOKENS)
        self.request_n = Histogram(layout, _CHOICES)
        self.finished = Counter(layout, FINISH_REASONS)
        self.disconnects = Counter(layout, PHASES)
        self.rejected = Counter(layout, REJECTIONS)
        self.admission_rejections = Counter(layout, ADMISSION_REASONS)
        self.slow_client_closes = Counter(layout)
        self.engine_restarts = Counter(layout)
        self.requests_given_up = Counter(layout)
        self.engine_ends_explained = Counter(layout, [str(number) for number in range(engines)])
        self.client_buffer_bytes = Counter(layout)
        self.requests = Counter(layout)
        self.ws_connections = Counter(layout)
        self.ws_streams = Counter(layout)
        self.memory = CounterMemory(layout.size, workers=workers, fd=memory_fd)
        values = self.memory.region(worker)
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram):
                metric.bind(values)
        self._labels = {"model_name": model_name, "engine": "0" if engines == 1 else "all"}

    @staticmethod
    def shared_memory(workers: int, engines: int = 1) -> int:
        """Create the counters of `workers` workers; returns the descriptor to pass to each as `memory_fd`."""
        return CounterMemory.create_shared(Metrics("", engines=engines).memory.size, workers)

    def reset_gauges(self) -> None:
        """Nothing is open in this worker, whatever its share says."""
        for gauge in (self.client_buffer_bytes, self.requests, self.ws_connections, self.ws_streams):
            gauge.set(0)

    def reject(self, error: StreamserveError) -> None:
        """Count a request that was refused."""
        self.rejected.add(1, _REASONS.get(error.status, "invalid" if error.status < 500 else "internal"))
        if error.code == QueueFull.code:
            self.admission_rejections.add(1, ADMISSION_REASONS[0])

    def give_up(self, engine: int, num_ends: int) -> None:
        """Count a request that was given up at a replica since engines had ended under it, `num_ends` times."""
        self.requests_given_up.add()
        self.engine_ends_explained.add(num_ends, str(engine))

    def num_engine_ends_explained(self, engine: int) -> int:
        """Ends of a replica that requests explain which were given up, over all workers."""
        return round(self.engine_ends_explained.totals(self.memory)[str(engine)])

    def count(self, cost: RequestCost) -> None:
        """Count a request that has ended, in whatever way."""
        self.e2e_s.observe(cost.e2e_s)
        self.request_prompt_tokens.observe(cost.prompt_tokens)
        self.request_generation_tokens.observe(cost.completion_tokens)
        self.request_max_generation_tokens.observe(cost.longest_choice)
        if cost.times is None:
            return
        queue_s, prefill_s, decode_s = cost.times
        self.queue_s.observe(queue_s)
        self.prefill_s.observe(prefill_s)
        self.decode_s.observe(decode_s)
        self.inference_s.observe(prefill_s + decode_s)
        if cost.completion_tokens > 1:
            self.per_output_token_s.observe(decode_s / (cost.completion_tokens - 1))

    def page(self, engines: Sequence[EngineSnapshot] = ()) -> bytes:
        """The text exposition.

        engines  by number; none while the model is loading
        """
        return generate_latest(_Page(self, engines))

    def families(self, engines: Sequence[EngineSnapshot]) -> Iterator[Metric]:
        yield from engine_families(self._labels["model_name"], engines)
        yield from self._request_families()
        yield from self._stream_families()

    def _request_families(self) -> Iterator[Metric]:
        yield self._histogram("vllm:time_to_first_token_seconds", "From request to first text.", self.ttft_s)
        yield self._histogram("vllm:inter_token_latency_seconds", "Between two texts of a choice.", self.inter_token_s)
        yield self._histogram(
            "vllm:time_per_output_token_seconds", "Older name of vllm:inter_token_latency_seconds.", self.inter_token_s
        )
        yield self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token of a request.", self.per_output_token_s
        )
        yield self._histogram("vllm:e2e_request_latency_seconds", "From request to its last byte.", self.e2e_s)
        yield self._histogram("vllm:request_queue_time_seconds", "From the queue to the first step.", self.queue_s)
        yield self._histogram("vllm:request_prefill_time_seconds", "From the first step to the first text.", self.prefill_s)
        yield self._histogram("vllm:request_decode_time_seconds", "From the first text to the last.", self.decode_s)
        yield self._histogram("vllm:request_inference_time_seconds", "From the first step to the last text.", self.inference_s)
        yield self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", self.request_prompt_tokens)
        yield self._histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", self.request_generation_tokens
        )
        yield self._histogram(
            "vllm:request_max_num_generation_tokens",
            "Tokens of a request's longest choice.",
            self.request_max_generation_tokens,
        )
        yield self._histogram("vllm:request_params_max_tokens", "max_tokens of a request.", self.request_max_tokens)
        yield self._histogram("vllm:request_params_n", "n of a request.", self.request_n)
        yield self._counters("vllm:request_success", "Choices finished.", "finished_reason", self.finished)

    def _stream_families(self) -> Iterator[Metric]:
        yield self._counter(
            "streamserve:engine_restarts", "Engines started in place of one that ended.", self._one(self.engine_restarts)
        )
        yield self._counter(
            "streamserve:requests_given_up",
            "Requests given up since engines ended under them.",
            self._one(self.requests_given_up),
        )
        yield self._counters("streamserve:stream_disconnects", "Clients that left before the end.", "phase", self.disconnects)
        yield self._counters("streamserve:rejected", "Requests refused.", "reason", self.rejected)
        yield self._counters(
            "vllm:admission_rejections", "Requests refused because the queue is full.", "reason", self.admission_rejections
        )
        yield self._counter(
            "streamserve:slow_client_closes", "Clients that stopped reading.", self._one(self.slow_client_closes)
        )
        yield self._gauge("streamserve:requests_in_progress", "Requests being answered, waiting ones too.", self.num_requests)
        yield self._gauge("streamserve:ws_connections", "WebSockets open.", self._one(self.ws_connections))
        yield self._gauge("streamserve:ws_streams", "Streams running over WebSockets.", self._one(self.ws_streams))
        yield self._gauge(
            "streamserve:client_buffer_bytes", "Bytes waiting for clients to read them.", self._one(self.client_buffer_bytes)
        )

    @property
    def num_requests(self) -> int:
        """Requests that the workers are answering, all of them together."""
        return round(self._one(self.requests))

    def _one(self, counter: Counter) -> float:
        return counter.totals(self.memory)[""]

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counters(self, name: str, help: str, label: str, counter: Counter) -> Metric:
        family = CounterMetricFamily(name, help, labels=[*self._labels, label])
        for value, total in counter.totals(self.memory).items():
            family.add_metric([*self._labels.values(), value], total)
        return family

    def _histogram(self, name: str, help: str, histogram: Histogram) -> Metric:
        buckets, total = histogram.cumulative(self.memory)
        family = HistogramMetricFamily(name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), buckets=buckets, sum_value=total)
        return family


class _Page:
    """prometheus-client's registry: yields the families of one scrape."""

    def __init__(self, metrics: Metrics, engines: Sequence[EngineSnapshot]) -> None:
        self._metrics = metrics
        self._engines = engines

    def collect(self) -> Iterator[Any]:
        return self._metrics.families(self._engines)
