"""The report of a load test: one HTML page that needs nothing else, with a plot of each figure over time. Pure functions."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtest.samples import Sample

WIDTH, HEIGHT = 720, 120
_STYLE = """body{font:14px system-ui;margin:2em auto;max-width:760px;color:#222}table{border-collapse:collapse}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}
svg{background:#fafafa;border:1px solid #ddd}.bad{color:#b00}.good{color:#070}"""

_PLOTS: tuple[tuple[str, Callable[[Sample], float | None]], ...] = (
    ("Users", lambda sample: sample.users),
    ("Answers a second", lambda sample: sample.answers_per_s),
    ("Time to the first token, p99 of a second, ms", lambda sample: sample.ttft_p99_ms),
    ("Gap between two pieces of text, p99 of a second, ms", lambda sample: sample.gap_p99_ms),
    ("Failures so far", lambda sample: sample.failures),
    ("Sequences that run", lambda sample: sample.gauges.get("vllm:num_requests_running")),
    ("Sequences that wait", lambda sample: sample.gauges.get("vllm:num_requests_waiting")),
    ("Share of the KV cache in use", lambda sample: sample.gauges.get("vllm:kv_cache_usage_perc")),
    ("Memory of the process that answers /metrics, bytes", lambda sample: sample.gauges.get("process_resident_memory_bytes")),
)


def page(title: str, command: str, samples: Sequence[Sample], stats: Any, violations: Sequence[str]) -> str:
    """The report; `stats` are Locust's."""
    verdict = "".join(f'<p class="bad">{html.escape(each)}</p>' for each in violations)
    plots = "".join(_plot(name, [(sample.at_s, read(sample)) for sample in samples]) for name, read in _PLOTS)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><p><code>{html.escape(command)}</code></p>"
        f"{verdict or '<p class=good>Every threshold was kept.</p>'}{_table(stats)}{plots}</html>\n"
    )


def _table(stats: Any) -> str:
    head = "<tr><th>what</th><th>count</th><th>failed</th><th>median ms</th><th>p95</th><th>p99</th><th>longest</th></tr>"
    rows = [_row(f"{method}: {name}", entry) for (name, method), entry in sorted(stats.entries.items())]
    return f"<table>{head}{''.join(rows)}</table>"


def _row(name: str, entry: Any) -> str:
    figures = [entry.num_requests, entry.num_failures]
    figures += [round(entry.get_response_time_percentile(share) or 0) for share in (0.5, 0.95, 0.99)]
    cells = "".join(f"<td>{figure}</td>" for figure in [*figures, round(entry.max_response_time)])
    return f"<tr><td>{html.escape(name)}</td>{cells}</tr>"


def _plot(name: str, points: Sequence[tuple[float, float | None]]) -> str:
    """One line over time, with gaps where there is no figure."""
    known = [value for _, value in points if value is not None]
    if not known:
        return ""
    last_s, most = max(points[-1][0], 1e-9), max(max(known), 1e-9)
    strokes, is_drawing = [], False
    for at_s, value in points:
        if value is not None:
            x, y = at_s / last_s * WIDTH, HEIGHT - value / most * (HEIGHT - 10)
            strokes.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y:.1f}")
        is_drawing = value is not None
    path = f'<path d="{" ".join(strokes)}" fill="none" stroke="#06c" stroke-width="1.5"/>'
    figure = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{path}</svg>'
    return f"<h3>{html.escape(name)}: up to {most:,.6g}</h3>{figure}"
