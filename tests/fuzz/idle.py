"""Waits until a server has nothing left of its requests."""

from __future__ import annotations

import re
import time

import httpx


def wait_until_all_is_free(client: httpx.Client) -> None:
    """Fails unless nothing runs, nothing waits and no block is used within a few seconds."""
    deadline = time.monotonic() + 10
    while left := {name: value for name, value in gauges(client).items() if value}:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def gauges(client: httpx.Client) -> dict[str, float]:
    text = client.get("/metrics").text
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    found = {name: re.findall(rf"^vllm:{name}(?:{{.*?}})? (\S+)$", text, re.MULTILINE) for name in names}
    assert all(found.values()), found
    return {name: sum(map(float, values)) for name, values in found.items()}
