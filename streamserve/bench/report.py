"""The rows of one benchmark, and how they are titled. Plain data: `output` shows it, `plot` draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


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
