"""The report of a load test: one HTML page that needs nothing else. Pure functions of the samples and of Locust's figures.

The verdict and what the server still held come first; then each kind of answer, what failed and why, the run in ten parts, and
a plot of each figure over time.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from loadtest.percentile import p99
from loadtest.plot import plot
from loadtest.sample import Sample

NUM_PARTS = 10
_STYLE = """body{font:14px system-ui;margin:2em auto;max-width:860px;color:#222}table{border-collapse:collapse}
td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}
svg{background:#fafafa;border:1px solid #ddd}.bad{color:#b00}.good{color:#070}"""

_GAUGES = {
    "Sequences that run": "vllm:num_requests_running",
    "Sequences that wait": "vllm:num_requests_waiting",
    "Sequences that are paused, since their readers lag": "streamserve:num_requests_paused",
    "Share of the KV cache in use": "vllm:kv_cache_usage_perc",
}


def page(
    title: str,
    command: str,
    samples: Sequence[Sample],
    stats: Any,
    violations: Sequence[str],
    held: Mapping[str, float] | None = None,
) -> str:
    """The report.

    stats  Locust's
    held   what the server held at the end, by metric
    """
    verdict = "".join(f'<p class="bad">{html.escape(each)}</p>' for each in violations)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><p><code>{html.escape(command)}</code></p>"
        f"{verdict or '<p class=good>Every threshold was kept.</p>'}"
        f"<h2>Held at the end</h2>{_held(held or {})}"
        f"<h2>Answers</h2>{_answers(stats)}"
        f"<h2>Failures</h2>{_failures(stats)}"
        f"<h2>Over time</h2>{_parts(samples)}{''.join(_plots(samples))}</html>\n"
    )


def _held(held: Mapping[str, float]) -> str:
    """What was left when all clients had gone: 0 of everything is what is wanted."""
    if not held:
        return "<p>The server did not say.</p>"
    return table(("what", "at the end"), [(name, f"{value:g}") for name, value in held.items()])


def _answers(stats: Any) -> str:
    rows = []
    for (name, method), entry in sorted(stats.entries.items()):
        figures = [round(entry.get_response_time_percentile(share) or 0) for share in (0.5, 0.95, 0.99)]
        counts = (entry.num_requests, entry.num_failures)
        rows.append((f"{method}: {name}", *counts, *figures, round(entry.max_response_time)))
    return table(("what", "count", "failed", "median ms", "p95", "p99", "longest"), rows)


def _failures(stats: Any) -> str:
    errors = list(stats.errors.values())
    if not errors:
        return "<p>None.</p>"
    return table(
        ("what", "count", "why"), [(f"{each.method}: {each.name}", each.occurrences, str(each.error)) for each in errors]
    )


def _parts(samples: Sequence[Sample]) -> str:
    """The run in parts of the same length: whether the last is like the first."""
    size = max(1, -(-len(samples) // NUM_PARTS))
    head = ("s", "users", "answers", "failed", "TTFT p99 ms", "gap median", "gap p99", "longest", "memory MB", "load")
    rows, failures = [], 0
    for part in (samples[start : start + size] for start in range(0, len(samples), size)):
        ttfts, gaps = _all(each.ttfts_ms for each in part), _all(each.gaps_ms for each in part)
        memory = sum(part[-1].memory.values())
        rows.append(
            (
                f"{part[0].at_s:.0f}–{part[-1].at_s:.0f}",
                round(fmean(each.users for each in part)),
                sum(each.answers for each in part),
                part[-1].failures - failures,
                *(_whole(value) for value in (p99(ttfts), median(gaps) if gaps else None, p99(gaps), max(gaps, default=None))),
                _whole(memory / 1e6 or None),
                f"{fmean(each.load for each in part):.1f}",
            )
        )
        failures = part[-1].failures
    return table(head, rows)


def _plots(samples: Sequence[Sample]) -> Iterator[str]:
    times = [each.at_s for each in samples]

    def of(name: str, values: Iterable[float | None]) -> str:
        return plot(name, list(zip(times, values, strict=True)))

    yield of("Users", (each.users for each in samples))
    yield of("Answers in a second", (each.answers for each in samples))
    yield of("Time to the first token, p99 of a second, ms", (p99(each.ttfts_ms) for each in samples))
    yield of("Gap between two pieces of text, p99 of a second, ms", (p99(each.gaps_ms) for each in samples))
    yield of("Failures so far", (each.failures for each in samples))
    for name, gauge in _GAUGES.items():
        yield of(name, (each.gauges.get(gauge) for each in samples))
    for role in sorted({role for each in samples for role in each.memory}):
        yield of(f"Resident memory, {role}, MB", (_megabytes(each.memory.get(role)) for each in samples))
    yield of("Load of the machine", (each.load for each in samples))


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def _all(lists: Iterable[list[float]]) -> list[float]:
    return [value for each in lists for value in each]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; everything in it is text."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
