"""Counters that several processes share."""

from __future__ import annotations

import os

from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.shared_counters import Counter, CounterLayout, CounterMemory, Histogram
from streamserve.types import EngineSnapshot, EngineStats
from tests.support.scripted_engine import ScriptedEngine


def test_workers_count_apart_and_are_read_together() -> None:
    layout = CounterLayout()
    counter, histogram = Counter(layout, ("a", "b")), Histogram(layout, (1.0, 2.0))
    fd = CounterMemory.create_shared(layout.size, workers=2)
    memories = [CounterMemory(layout.size, workers=2, fd=fd) for _ in range(2)]
    for worker, memory in enumerate(memories):
        for metric in (counter, histogram):
            metric.bind(memory.region(worker))
        counter.add(1, "a")
        counter.add(2, "b")
        histogram.observe(1.0)
        histogram.observe(1.5)
        histogram.observe(9.0)
    os.close(fd)
    for memory in memories:
        assert counter.totals(memory) == {"a": 2.0, "b": 4.0}
        assert histogram.cumulative(memory) == ([("1.0", 2.0), ("2.0", 4.0), ("+Inf", 6.0)], 23.0)


def test_a_page_needs_no_engine_and_tells_of_it_when_there_is_one() -> None:
    metrics = Metrics("m")
    assert b"vllm:kv_cache_usage_perc" not in metrics.page()
    stats = EngineStats(kv_blocks_total=4, kv_blocks_used=1, prompt_tokens=9)
    page = metrics.page([EngineSnapshot(ScriptedEngine().info, stats)])
    assert b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25' in page
    assert b'vllm:prompt_tokens_total{engine="0",model_name="m"} 9.0' in page
