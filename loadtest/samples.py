"""What a load test looks like from second to second: users, answers, tails, and what the server holds.

Runs in a greenlet of Locust's for as long as the test. Reads the server's /metrics, and nothing else of it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import gevent
import httpx

INTERVAL_S = 1.0
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "process_resident_memory_bytes")


class Sample(NamedTuple):
    """One second. Times in milliseconds; None where nothing was measured, or the server did not say."""

    at_s: float
    users: int
    answers_per_s: float
    failures: int
    ttft_p99_ms: float | None
    gap_p99_ms: float | None
    gauges: dict[str, float]


class Sampler:
    """Collects `samples` until it is stopped."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._recent: dict[str, list[float]] = {"TTFT": [], "gap": [], "answer": []}
        self.samples: list[Sample] = []
        environment.events.request.add_listener(self._on_request)
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        self._greenlet.kill()

    def _on_request(self, request_type: str, response_time: float, **_: Any) -> None:
        if request_type in self._recent:
            self._recent[request_type].append(response_time)

    def _run(self) -> None:
        with httpx.Client(base_url=self._environment.host, timeout=5) as client:
            while True:
                gevent.sleep(INTERVAL_S)
                self._take(client)

    def _take(self, client: httpx.Client) -> None:
        recent, self._recent = self._recent, {name: [] for name in self._recent}
        stats, runner = self._environment.stats, self._environment.runner
        self.samples.append(
            Sample(
                at_s=len(self.samples) * INTERVAL_S,
                users=runner.user_count,
                answers_per_s=len(recent["answer"]) / INTERVAL_S,
                failures=stats.total.num_failures,
                ttft_p99_ms=_p99(recent["TTFT"]),
                gap_p99_ms=_p99(recent["gap"]),
                gauges=_gauges(client),
            )
        )


def _p99(values: list[float]) -> float | None:
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else None


def _gauges(client: httpx.Client) -> dict[str, float]:
    try:
        page = client.get("/metrics").text
    except httpx.HTTPError:
        return {}
    found = {name: re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE) for name in GAUGES}
    return {name: float(match[1]) for name, match in found.items() if match is not None}
