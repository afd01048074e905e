"""The engines' part of the metrics page: a sample for each replica, with its number as the label `engine`.

Made anew on each scrape of what the engines say. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Tally

_LABELS = ["model_name", "engine"]


def engine_families(model_name: str, engines: Sequence[EngineSnapshot]) -> Iterator[Metric]:
    """All families; of engines that do not answer only what is known without their statistics."""
    yield _cache_config(model_name, [engine.info for engine in engines])
    yield _up(model_name, engines)
    known = {str(number): engine.stats for number, engine in enumerate(engines) if engine.stats is not None}
    if known:
        yield from _Statistics(model_name, known).families()


def _cache_config(model_name: str, infos: Sequence[EngineInfo]) -> Metric:
    shape = ["block_size", "cache_dtype", "num_gpu_blocks"]
    family = GaugeMetricFamily("vllm:cache_config_info", "The shape of the KV cache, as labels.", labels=[*_LABELS, *shape])
    for number, info in enumerate(infos):
        family.add_metric([model_name, str(number), str(info.block_size), info.kv_cache_dtype, str(info.num_blocks)], 1)
    return family


def _up(model_name: str, engines: Sequence[EngineSnapshot]) -> Metric:
    family = GaugeMetricFamily("streamserve:engine_up", "Whether the engine answers.", labels=_LABELS)
    for number, engine in enumerate(engines):
        family.add_metric([model_name, str(number)], engine.stats is not None)
    return family


class _Statistics:
    """Families of the statistics of those engines that answer, by number."""

    def __init__(self, model_name: str, engines: dict[str, EngineStats]) -> None:
        self._engines = [([model_name, number], stats) for number, stats in engines.items()]

    def families(self) -> Iterator[Metric]:
        yield self._gauge("vllm:num_requests_running", "Sequences being generated.", lambda each: each.num_requests_running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting for a row.", lambda each: each.num_requests_waiting)
        yield self._waiting_by_reason()
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 1 is all.", _usage)
        yield self._gauge("vllm:gpu_cache_usage_perc", "Older name of vllm:kv_cache_usage_perc.", _usage)
        yield self._counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", lambda each: each.prefix_cache_queries
        )
        yield self._counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda each: each.prefix_cache_hits
        )
        yield self._counter(
            "vllm:num_preemptions", "Sequences that had to give their blocks back.", lambda each: each.num_preemptions
        )
        yield self._histogram(
            "vllm:request_num_preemptions", "Preemptions of a sequence that has ended.", lambda each: each.ended_preemptions
        )
        yield self._histogram("vllm:iteration_tokens_total", "Tokens computed by a step.", lambda each: each.step_tokens)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed.", lambda each: each.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated.", lambda each: each.generation_tokens)
        yield self._gauge(
            "streamserve:num_requests_paused", "Sequences whose readers lag.", lambda each: each.num_requests_paused
        )
        yield self._counter("streamserve:steps", "Steps run.", lambda each: each.steps)
        yield self._counter(
            "streamserve:divided_steps", "Steps run in pieces for lack of memory.", lambda each: each.divided_steps
        )
        yield self._counter("streamserve:wasted_tokens", "Tokens computed and thrown away.", lambda each: each.wasted_tokens)
        yield self._counter(
            "streamserve:tokens_wasted_after_disconnect",
            "Tokens computed for clients that had left.",
            lambda each: each.tokens_wasted_after_disconnect,
        )
        yield self._abort_latency()
        yield self._gauge(
            "streamserve:engine_heartbeat_seconds", "Age of the engine loop's last turn.", lambda each: each.heartbeat_s
        )

    def _gauge(self, name: str, help: str, value: Callable[[EngineStats], float]) -> Metric:
        family = GaugeMetricFamily(name, help, labels=_LABELS)
        for labels, stats in self._engines:
            family.add_metric(labels, value(stats))
        return family

    def _counter(self, name: str, help: str, value: Callable[[EngineStats], float]) -> Metric:
        family = CounterMetricFamily(name, help, labels=_LABELS)
        for labels, stats in self._engines:
            family.add_metric(labels, value(stats))
        return family

    def _histogram(self, name: str, help: str, tally_of: Callable[[EngineStats], Tally]) -> Metric:
        family = HistogramMetricFamily(name, help, labels=_LABELS)
        for labels, stats in self._engines:
            tally = tally_of(stats)
            bounds = [*(str(float(bound)) for bound in tally.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(tally.counts), strict=True))
            family.add_metric(labels, buckets=buckets, sum_value=tally.total)
        return family

    def _waiting_by_reason(self) -> Metric:
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Sequences waiting for a row, by reason.", labels=[*_LABELS, "reason"]
        )
        for labels, stats in self._engines:
            # Nothing waits here for what vLLM defers requests for: adapters, or KV from elsewhere.
            for reason, count in (("capacity", stats.num_requests_waiting), ("deferred", 0)):
                family.add_metric([*labels, reason], count)
        return family

    def _abort_latency(self) -> Metric:
        family = SummaryMetricFamily(
            "streamserve:abort_latency_seconds", "From a reader's leaving to its sequence's blocks being free.", labels=_LABELS
        )
        for labels, stats in self._engines:
            family.add_metric(labels, count_value=stats.num_aborts, sum_value=stats.abort_latency_s)
        return family


def _usage(stats: EngineStats) -> float:
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
