"""What a load test looks like from second to second: users, answers, gaps, and what the server holds.

Runs in a greenlet of Locust's for as long as the test. Reads the server's /metrics, and /proc where the server runs here.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from typing import Any

import gevent
import httpx

from loadtest.processes import resident_bytes
from loadtest.sample import Sample

INTERVAL_S = 1.0
SETTLE_S = 60.0
"""Seconds that a server gets to free what its last clients have left."""

HELD = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "streamserve:num_requests_paused",
    "vllm:kv_cache_usage_perc",
    "streamserve:requests_in_progress",
    "streamserve:ws_streams",
)
"""What a server holds for its clients: all of it is 0 when they have gone."""


class Sampler:
    """Collects `samples` until it is stopped.

    server_pid  the server's first process; None for one that runs elsewhere
    """

    def __init__(self, environment: Any, server_pid: int | None = None) -> None:
        self._environment = environment
        self._server_pid = server_pid
        self._recent = _nothing()
        self._started = time.monotonic()
        self.samples: list[Sample] = []
        environment.events.request.add_listener(self._on_request)
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        self._greenlet.kill()

    def settled(self) -> dict[str, float]:
        """What the server holds once that is nothing, or after `SETTLE_S`; empty when it does not say."""
        with httpx.Client(base_url=self._environment.host, timeout=5) as client:
            until = time.monotonic() + SETTLE_S
            while any((held := held_by(client)).values()) and time.monotonic() < until:
                gevent.sleep(INTERVAL_S)
        return held

    def _on_request(self, request_type: str, response_time: float, exception: Exception | None = None, **_: Any) -> None:
        if request_type in self._recent and exception is None:
            self._recent[request_type].append(response_time)

    def _run(self) -> None:
        with httpx.Client(base_url=self._environment.host, timeout=5) as client:
            while True:
                gevent.sleep(INTERVAL_S)
                self._take(client)

    def _take(self, client: httpx.Client) -> None:
        recent, self._recent = self._recent, _nothing()
        self.samples.append(
            Sample(
                at_s=time.monotonic() - self._started,
                users=self._environment.runner.user_count,
                answers=len(recent["answer"]),
                failures=self._environment.stats.total.num_failures,
                ttfts_ms=recent["TTFT"],
                gaps_ms=recent["gap"],
                gauges=held_by(client),
                memory={} if self._server_pid is None else resident_bytes(self._server_pid),
                load=os.getloadavg()[0],
            )
        )


def held_by(client: httpx.Client) -> dict[str, float]:
    """What a server holds now, by the names of `HELD`; nothing where it does not answer."""
    held: dict[str, float] = {}
    with suppress(httpx.HTTPError):
        page = client.get("/metrics").text
        for name in HELD:
            # One for each engine, where there are several.
            values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
            if values:
                held[name] = sum(map(float, values))
    return held


def _nothing() -> dict[str, list[float]]:
    return {"TTFT": [], "gap": [], "answer": []}
