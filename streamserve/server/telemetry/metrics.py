"""The metrics page: vLLM's names, so that its dashboards work, and our own about streams.

Requests are counted as they run, in this API worker's share of the counters; the engine's gauges and totals are read on each
scrape. prometheus-client renders the page. Lives on one API worker's event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from streamserve.errors import QueueFull, StreamserveError
from streamserve.server.telemetry.request_cost import RequestCost
from streamserve.server.telemetry.shared_counters import Counter, CounterLayout, CounterMemory, Histogram
from streamserve.types import EngineInfo, EngineStats, Tally

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
    """

    def __init__(self, model_name: str, *, memory_fd: int | None = None, worker: int = 0, workers: int = 1) -> None:
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
        self.engine_ends_explained = Counter(layout)
        self.client_buffer_bytes = Counter(layout)
        self.requests = Counter(layout)
        self.ws_connections = Counter(layout)
        self.ws_streams = Counter(layout)
        self.memory = CounterMemory(layout.size, workers=workers, fd=memory_fd)
        values = self.memory.region(worker)
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram):
                metric.bind(values)
        self._labels = {"model_name": model_name, "engine": "0"}

    @staticmethod
    def shared_memory(workers: int) -> int:
        """Create the counters of `workers` workers; returns the descriptor to pass to each as `memory_fd`."""
        return CounterMemory.create_shared(Metrics("").memory.size, workers)

    def reset_gauges(self) -> None:
        """Nothing is open in this worker, whatever its share says."""
        for gauge in (self.client_buffer_bytes, self.requests, self.ws_connections, self.ws_streams):
            gauge.set(0)

    def reject(self, error: StreamserveError) -> None:
        """Count a request that was refused."""
        self.rejected.add(1, _REASONS.get(error.status, "invalid" if error.status < 500 else "internal"))
        if error.code == QueueFull.code:
            self.admission_rejections.add(1, ADMISSION_REASONS[0])

    def give_up(self, num_ends: int) -> None:
        """Count a request that was given up since `num_ends` engines had ended under it."""
        self.requests_given_up.add()
        self.engine_ends_explained.add(num_ends)

    @property
    def num_engine_ends_explained(self) -> int:
        """Ends of engines that requests explain which were given up, over all workers."""
        return round(self._one(self.engine_ends_explained))

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

    def page(self, stats: EngineStats | None, info: EngineInfo | None = None) -> bytes:
        """The text exposition; without the engine's part while there is no engine."""
        return generate_latest(_Page(self, stats, info))

    def families(self, stats: EngineStats | None, info: EngineInfo | None) -> Iterator[Metric]:
        if info is not None:
            yield self._cache_config(info)
        if stats is not None:
            yield from self._engine_families(stats)
        yield from self._request_families()
        yield from self._stream_families()

    def _engine_families(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("vllm:num_requests_running", "Sequences being generated.", stats.num_requests_running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting for a row.", stats.num_requests_waiting)
        yield self._waiting_by_reason(stats)
        usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 1 is all.", usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", usage)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", stats.prefix_cache_queries)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits)
        yield self._counter("vllm:num_preemptions", "Sequences that had to give their blocks back.", stats.num_preemptions)
        yield self._tally("vllm:request_num_preemptions", "Preemptions of a sequence that has ended.", stats.ended_preemptions)
        yield self._tally("vllm:iteration_tokens_total", "Tokens computed by a step.", stats.step_tokens)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens)
        yield self._gauge("streamserve:num_requests_paused", "Sequences whose readers lag.", stats.num_requests_paused)
        yield self._counter("streamserve:steps", "Steps run.", stats.steps)
        yield self._counter("streamserve:divided_steps", "Steps run in pieces for lack of memory.", stats.divided_steps)
        yield self._counter("streamserve:wasted_tokens", "Tokens computed and thrown away.", stats.wasted_tokens)
        yield self._counter(
            "streamserve:tokens_wasted_after_disconnect",
            "Tokens computed for clients that had left.",
            stats.tokens_wasted_after_disconnect,
        )
        yield self._abort_latency(stats)
        yield self._gauge("streamserve:engine_heartbeat_seconds", "Age of the engine loop's last turn.", stats.heartbeat_s)

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

    def _waiting_by_reason(self, stats: EngineStats) -> Metric:
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Sequences waiting for a row, by reason.", labels=[*self._labels, "reason"]
        )
        # Nothing waits here for what vLLM defers requests for: adapters, or KV from elsewhere.
        for reason, count in (("capacity", stats.num_requests_waiting), ("deferred", 0)):
            family.add_metric([*self._labels.values(), reason], count)
        return family

    def _cache_config(self, info: EngineInfo) -> Metric:
        shape = {"block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "The shape of the KV cache, as labels.", labels=[*self._labels, *shape]
        )
        family.add_metric([*self._labels.values(), *shape.values()], 1)
        return family

    def _abort_latency(self, stats: EngineStats) -> Metric:
        family = SummaryMetricFamily(
            "streamserve:abort_latency_seconds",
            "From a reader's leaving to its sequence's blocks being free.",
            labels=list(self._labels),
        )
        family.add_metric(list(self._labels.values()), count_value=stats.num_aborts, sum_value=stats.abort_latency_s)
        return family

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
        return self._buckets(name, help, buckets, total)

    def _tally(self, name: str, help: str, tally: Tally) -> Metric:
        bounds = [*(str(float(bound)) for bound in tally.bounds), "+Inf"]
        return self._buckets(name, help, list(zip(bounds, accumulate(tally.counts), strict=True)), tally.total)

    def _buckets(self, name: str, help: str, buckets: Sequence[tuple[str, float]], total: float) -> Metric:
        family = HistogramMetricFamily(name, help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), buckets=buckets, sum_value=total)
        return family


class _Page:
    """prometheus-client's registry: yields the families of one scrape."""

    def __init__(self, metrics: Metrics, stats: EngineStats | None, info: EngineInfo | None) -> None:
        self._metrics = metrics
        self._stats = stats
        self._info = info

    def collect(self) -> Iterator[Any]:
        return self._metrics.families(self._stats, self._info)
