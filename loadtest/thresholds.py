"""What a load test must keep to, and what of it does not hold. Pure functions of Locust's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Thresholds(NamedTuple):
    """Bounds of a run; None for no bound.

    ttft_p99_ms, gap_p99_ms  of each kind of answer that is read as it comes
    fail_ratio               failed answers of all
    """

    ttft_p99_ms: float | None
    gap_p99_ms: float | None
    fail_ratio: float | None


def violations(stats: Any, thresholds: Thresholds, held: Mapping[str, float]) -> list[str]:
    """What does not hold, one line each.

    stats  Locust's
    held   what the server held at the end, by metric: nothing may be left
    """
    return [*_violations(stats, thresholds), *(f"{name} was {value:g} at the end" for name, value in held.items() if value)]


def _violations(stats: Any, thresholds: Thresholds) -> Iterator[str]:
    # Of Locust's total each gap is a part, too.
    answers = [entry for (_, method), entry in stats.entries.items() if method == "answer"]
    num_answers, num_failed = sum(each.num_requests for each in answers), sum(each.num_failures for each in answers)
    if not num_answers:
        yield "nothing was answered"
    elif thresholds.fail_ratio is not None and num_failed / num_answers > thresholds.fail_ratio:
        yield f"{num_failed / num_answers:.2%} of all failed: at most {thresholds.fail_ratio:.2%} may"
    for event, bound in (("TTFT", thresholds.ttft_p99_ms), ("gap", thresholds.gap_p99_ms)):
        for (name, method), entry in sorted(stats.entries.items()):
            p99 = entry.get_response_time_percentile(0.99) if method == event else None
            if bound is not None and p99 is not None and p99 > bound:
                yield f"{event} of {name}: p99 is {p99:.0f} ms, at most {bound:.0f} may be"
