"""Draws a report as a PNG. The only module that knows matplotlib, an optional dependency that is imported when it draws."""

from __future__ import annotations

from pathlib import Path

import click

from streamserve.bench.report import Report


def draw(report: Report, path: Path) -> None:
    """One panel for each plotted figure, over the field that was swept. Raises click's usage error without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise click.UsageError("--plot needs matplotlib: pip install 'streamserve[plot]'") from error
    figure = Figure(figsize=(4.2 * len(report.plotted), 3.4), layout="constrained")
    places = [str(row[report.swept]) for row in report.rows]
    for axes, (name, label) in zip(
        figure.subplots(1, len(report.plotted), squeeze=False)[0], report.plotted.items(), strict=True
    ):
        heights = [row[name] or 0.0 for row in report.rows]
        bars = axes.bar(places, heights, width=0.6, color="#3b6ea5")
        axes.bar_label(bars, fmt="%.4g", fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel(report.columns[report.swept])
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    figure.suptitle(report.title, fontsize=10)
    figure.savefig(path, dpi=150)
