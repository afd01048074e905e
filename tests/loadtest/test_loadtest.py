"""What of the load test needs neither Locust nor a server: its shapes, its thresholds, what it calls a failure, its report."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from loadtest.report import page
from loadtest.shapes import SHAPES, Course
from loadtest.streaming import BrokenStream, FailedAnswer, completion_events, completion_text
from loadtest.thresholds import Thresholds, violations

COURSE = Course(users=20, run_s=100.0, step_s=10.0)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shape_has_users_up_to_its_height_until_its_end(name: str) -> None:
    counts = [SHAPES[name](COURSE, float(now)) for now in range(130)]
    running = [count for count in counts if count is not None]
    assert counts[-1] is None
    assert counts[: len(running)] == running
    assert min(running) >= 1
    assert max(running) <= COURSE.users


def test_a_spike_is_a_spike() -> None:
    spike = SHAPES["spike"]
    assert [spike(COURSE, now) for now in (0.0, 39.0, 50.0, 61.0)] == [2, 2, 20, 2]


def chunk(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": reason}]})


WHOLE = [chunk("a"), chunk("b", "stop"), "[DONE]"]


def events(lines: list[str], status: int = 200) -> list[dict[str, Any]]:
    content = "".join(f"data: {line}\n\n" for line in lines)
    return list(completion_events(httpx.Response(status, text=content, request=httpx.Request("POST", "http://test"))))


def test_a_stream_with_one_end_and_a_reason_is_read() -> None:
    assert [completion_text(event) for event in events(WHOLE)] == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (WHOLE, 503),
        (WHOLE[:-1], 200),
        (WHOLE[:1] + WHOLE[2:], 200),
        ([*WHOLE, "[DONE]"], 200),
        ([chunk("a", "stop"), *WHOLE], 200),
    ],
)
def test_any_other_stream_is_broken(lines: list[str], status: int) -> None:
    with pytest.raises(BrokenStream):
        events(lines, status)


def test_an_answer_that_is_refused_or_ends_with_an_error_has_its_code() -> None:
    with pytest.raises(FailedAnswer, match="engine_dead"):
        events([chunk("a"), '{"error": {"code": "engine_dead"}}', "[DONE]"])
    refused = httpx.Response(429, json={"error": {"code": "queue_full"}}, request=httpx.Request("POST", "http://test"))
    with pytest.raises(FailedAnswer, match="queue_full"):
        list(completion_events(refused))


def entry(p99: float) -> SimpleNamespace:
    return SimpleNamespace(
        num_requests=9, num_failures=0, max_response_time=p99, get_response_time_percentile=lambda _: p99, fail_ratio=0.0
    )


def test_what_is_not_kept_is_named_and_in_the_report() -> None:
    stats = SimpleNamespace(entries={("short", "TTFT"): entry(900.0), ("<b>", "gap"): entry(40.0)}, total=entry(0.0))
    assert violations(stats, Thresholds(1000.0, 50.0, 0.0)) == []
    [found] = violations(stats, Thresholds(800.0, 50.0, 0.0))
    assert found == "TTFT of short: p99 is 900 ms, at most 800 may be"
    stats.total.fail_ratio = 0.5
    assert "50.00%" in violations(stats, Thresholds(None, None, 0.1))[0]
    samples: list[Any] = [
        SimpleNamespace(at_s=at, users=at, answers_per_s=0, ttft_p99_ms=None, gap_p99_ms=at or None, failures=0, gauges={})
        for at in range(3)
    ]
    html = page("Load test: soak", "command", samples, stats, [found])
    assert found in html
    assert html.count("<svg") == 4
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
