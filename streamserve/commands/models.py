"""`streamserve models`: which families of models run, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from streamserve.models.catalogue import CATALOGUE, CatalogueEntry


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each family.")
def models(as_json: bool) -> None:
    """List the families of models that run, whose layers run them, what is read of them, and what is not served.

    Other architectures are refused by name. docs/MODELS.md says more, and what a new family takes.
    """
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in CATALOGUE], indent=2, ensure_ascii=False))
    else:
        Console().print(_table(CATALOGUE))


def _table(entries: Sequence[CatalogueEntry]) -> Table:
    table = Table("Family", "Architectures", "Layers by", "Weights", "For example", row_styles=("", "dim"))
    for entry in entries:
        weights = "\n".join(["safetensors", *(f"GGUF ({name})" for name in entry.gguf)])
        family = f"{entry.family}\n[italic]{entry.limits}[/]" if entry.limits else entry.family
        table.add_row(family, "\n".join(entry.architectures), entry.implementation, weights, "\n".join(entry.examples))
    return table
