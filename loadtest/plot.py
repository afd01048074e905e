"""A figure over time, as SVG. Pure functions."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 820, 140, 70, 10, 10, 20


def plot(name: str, points: Sequence[tuple[float, float | None]]) -> str:
    """One line over seconds, with gaps where there is no figure, from 0 up; nothing when there is none at all."""
    known = [value for _, value in points if value is not None]
    if not known:
        return ""
    last_s, most = max(points[-1][0], 1e-9), max(max(known), 1e-9)

    def x(at_s: float) -> float:
        return LEFT + at_s / last_s * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / most * (HEIGHT - TOP - BOTTOM)

    strokes, is_drawing = [], False
    for at_s, value in points:
        if value is not None:
            # A line of no length with a round cap: a point by itself is seen, too.
            strokes.append(f"{'L' if is_drawing else 'M'}{x(at_s):.1f} {y(value):.1f}{'' if is_drawing else 'h0'}")
        is_drawing = value is not None
    path = f'<path d="{" ".join(strokes)}" fill="none" stroke="#06c" stroke-width="1.5" stroke-linecap="round"/>'
    texts = [_text(LEFT - 4, y(value) + 4, f"{value:,.4g}", "end") for value in (0.0, most / 2, most)]
    texts += [_text(x(at_s), HEIGHT - 5, f"{at_s:.0f} s", "middle" if 0 < at_s < last_s else "end" if at_s else "start")
              for at_s in (0.0, last_s / 2, last_s)]  # fmt: skip
    lines = "".join(f'<path d="M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>' for v in (0.0, most / 2, most))
    figure = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">{lines}{path}{"".join(texts)}</svg>'
    return f"<h3>{html.escape(name)}</h3>{figure}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="#555" text-anchor="{anchor}">{html.escape(text)}</text>'
