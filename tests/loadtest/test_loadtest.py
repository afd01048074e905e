"""What of the load test needs neither Locust nor a server: its shapes, its thresholds, what it calls a failure, its report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from loadtest.processes import family, processor_s, resident_bytes
from loadtest.report import page
from loadtest.sample import Sample
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
    return SimpleNamespace(num_requests=9, num_failures=0, max_response_time=p99, get_response_time_percentile=lambda _: p99)


def sample(at_s: int, **held: Any) -> Sample:
    return Sample(
        at_s=at_s,
        users=3,
        answers=1,
        failures=at_s,
        ttfts_ms=[],
        gaps_ms=[40.0 + at_s, 41.0] if at_s else [],
        gauges={},
        memory={"engine": 5e8 + at_s * 1e6},
        load=1.5,
    )._replace(**held)


def test_what_is_not_kept_is_named_and_in_the_report() -> None:
    answers = entry(950.0)
    entries = {("short", "answer"): answers, ("short", "TTFT"): entry(900.0), ("<b>", "gap"): entry(40.0)}
    stats = SimpleNamespace(entries=entries, errors={})
    held = {"vllm:num_requests_running": 0.0, "vllm:kv_cache_usage_perc": 0.25}
    assert violations(stats, Thresholds(1000.0, 50.0, 0.0), {"vllm:num_requests_running": 0.0}) == []
    found = violations(stats, Thresholds(800.0, 50.0, 0.0), held)
    assert found == ["TTFT of short: p99 is 900 ms, at most 800 may be", "vllm:kv_cache_usage_perc was 0.25 at the end"]
    answers.num_failures = 3
    assert "33.33%" in violations(stats, Thresholds(None, None, 0.1), {})[0], "gaps are no answers"
    assert violations(SimpleNamespace(entries={}), Thresholds(None, None, 0.1), {}) == ["nothing was answered"]
    stats.errors["e"] = SimpleNamespace(method="answer", name="short", occurrences=7, error="no <DONE>")
    html = page("Load test: soak", "command", [sample(at) for at in range(3)], stats, found, held)
    assert all(each in html for each in found)
    assert "<td>7</td><td>no &lt;DONE&gt;</td>" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_a_report_says_of_each_part_of_the_run_how_long_gaps_were_what_failed_and_how_much_memory_was_used() -> None:
    stats = SimpleNamespace(entries={}, errors={})
    html = page("Load test: soak", "command", [sample(at) for at in range(20)], stats, [])
    rows = re.findall(r"<tr><td>(\d+–\d+)</td>(.*?)</tr>", html)
    assert [name for name, _ in rows] == [f"{start}–{start + 1}" for start in range(0, 20, 2)]
    assert re.findall(r"<td>(.*?)</td>", rows[-1][1]) == ["3", "2", "2", "", "50", "58", "59", "519", "1.5"]
    assert "Resident memory, engine, MB" in html
    assert "Time to the first token" not in html, "nothing was measured: there is no plot"


def test_memory_and_processor_time_of_a_server_are_those_of_its_processes() -> None:
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in family(os.getpid())
        assert 1e6 < resident_bytes(child.pid)["server"] < resident_bytes(os.getpid())["server"]
        assert processor_s(os.getpid())["server"] > 0
        child.communicate("\n")
    assert resident_bytes(child.pid) == {}
