"""Shows a report: a table for people, JSON lines for programs, a plot for documents."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from streamserve.bench.plot import draw
from streamserve.bench.report import Report

PIPE_WIDTH = 160
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def output_options(command: CommandT) -> CommandT:
    """Add --json and --plot; the command passes both to `show`."""
    command = click.option(
        "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the result as a PNG (needs the extra 'plot')."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a row instead of a table.")(command)


def show(report: Report, *, as_json: bool, plot: Path | None) -> None:
    """Print the rows, and draw them when `plot` names a file. Raises click's usage error when matplotlib is missing."""
    if as_json:
        for row in report.rows:
            click.echo(json.dumps(row))
    else:
        # A pipe has no width: don't squeeze the table into the 80 columns that are assumed.
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(_table(report))
    if plot is not None:
        draw(report, plot)


def _table(report: Report) -> Table:
    table = Table(title=report.title, title_justify="left", box=None, pad_edge=False)
    for heading in report.columns.values():
        table.add_column(heading, justify="right")
    for row in report.rows:
        table.add_row(*(_cell(row.get(name)) for name in report.columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)
