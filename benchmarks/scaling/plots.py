"""The plots of docs/SCALING.md, as SVG, from the rows of studies. Needs matplotlib, of the extra "plot"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GRID = {"alpha": 0.3, "linewidth": 0.5}

Rows = Sequence[dict[str, Any]]


def write(folder: Path, results: dict[str, Rows]) -> None:
    """Draw the studies that there are plots for into a folder."""
    for study, draw in _PLOTS.items():
        if study in results:
            draw(folder / f"scaling-{study}.svg", results[study])


def _routings(path: Path, rows: Rows) -> None:
    _two(
        path,
        rows,
        "routings",
        left=("ttft_p99_ms", "time to first token, p99 (ms)"),
        right=("gap_p50_ms", "time between tokens, p50 (ms)"),
        x="chats that begin a second, 8 replicas of one H200, Qwen3-8B",
    )


def _groups(path: Path, rows: Rows) -> None:
    _two(
        path,
        rows,
        "groups",
        left=("ttft_p99_ms", "time to first token, p99 (ms)"),
        right=("gap_p50_ms", "time between tokens, p50 (ms)"),
        x="chats that begin a second, 8 GPUs, Qwen3-8B",
    )


def _queues(path: Path, rows: Rows) -> None:
    """Bounds of a queue against the share of first tokens within a second, a line for each load."""
    figure, axes = _figure(1)
    for rate in dict.fromkeys(row["rate"] for row in rows):
        line = [row for row in rows if row["rate"] == rate]
        axes[0].plot(
            range(len(line)), [100 * row["within_goal"] for row in line], marker="o", label=f"{rate:g} requests a second"
        )
        axes[0].set_xticks(range(len(line)), [row["queues"] for row in line])
    axes[0].set(xlabel="--max-queue of each of 8 replicas", ylabel="first token within 1 s (% of requests)", ylim=(0, 102))
    axes[0].grid(**GRID)
    axes[0].legend(frameon=False, loc="center right")
    _save(figure, path)


def _two(path: Path, rows: Rows, label: str, *, left: tuple[str, str], right: tuple[str, str], x: str) -> None:
    """Two figures by rate side by side, a line for each label."""
    figure, axes = _figure(2)
    for axis, (name, title) in zip(axes, (left, right), strict=True):
        for each in dict.fromkeys(row[label] for row in rows):
            line = [row for row in rows if row[label] == each]
            axis.plot([row["rate"] for row in line], [row[name] for row in line], marker="o", markersize=3, label=each)
        axis.set(ylabel=title)
        axis.grid(**GRID)
    axes[0].set(yscale="log")
    axes[1].set(ylim=(0, None))
    figure.supxlabel(x, fontsize=9)
    axes[0].legend(frameon=False)
    _save(figure, path)


def _figure(columns: int) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    # The same rows make the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "streamserve", "font.size": 8})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(3.8 * columns, 2.9), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})


_PLOTS: dict[str, Callable[[Path, Rows], None]] = {"routings": _routings, "groups": _groups, "queues": _queues}
