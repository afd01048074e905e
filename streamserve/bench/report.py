"""How results leave: a table for people, JSON lines for programs, a picture for reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160
Row = dict[str, Any]
CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass
class Report:
    """Rows of one benchmark, all with the same fields.

    title    the benchmark and what it ran on
    columns  field names of the table, with their headings; JSON carries every field
    swept    the field that varies from row to row: the x axis of a plot
    plotted  fields that a plot shows, with their labels
    """

    title: str
    columns: Mapping[str, str]
    swept: str
    plotted: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)

    def show(self, *, as_json: bool, plot: Path | None) -> None:
        """Print the rows, and draw them when asked. Raises click's usage error when matplotlib is missing."""
        if as_json:
            for row in self.rows:
                click.echo(json.dumps(row))
        else:
            # A pipe has no width: don't squeeze the table into the 80 columns that are assumed.
            Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(self._table())
        if plot is not None:
            from streamserve.bench.plot import draw

            draw(self, plot)

    def _table(self) -> Table:
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        for heading in self.columns.values():
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(*(_cell(row.get(name)) for name in self.columns))
        return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return str(value)


def output_options(command: CommandT) -> CommandT:
    """--json and --plot."""
    command = click.option(
        "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the result as a PNG (needs the extra 'plot')."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a row instead of a table.")(command)
