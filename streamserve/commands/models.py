"""`streamserve models`: which families of models run, and how."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from streamserve.models.catalogue import CATALOGUE, Implementation

TITLES: dict[Implementation, str] = {
    "streamserve": "Families with layers of their own",
    "transformers": "Tried with transformers' layers, as other decoders are when they are loaded",
}

ROOM_FOR_EXAMPLES = 110
"""Columns of a terminal; in fewer they would be cut."""


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each family.")
def models(as_json: bool) -> None:
    """List the families of models that run: whose layers run them, what is read of them, and what is not served.

    docs/MODELS.md says more, and what a new family takes.
    """
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in CATALOGUE], indent=2, ensure_ascii=False))
        return
    console = Console()
    for implementation in TITLES:
        console.print(_table(implementation, has_examples=console.width >= ROOM_FOR_EXAMPLES))


def _table(implementation: Implementation, *, has_examples: bool) -> Table:
    table = Table("Family", title=TITLES[implementation], title_justify="left", row_styles=("", "dim"))
    table.add_column("Architectures", no_wrap=True)
    table.add_column("GGUF", no_wrap=True)
    if has_examples:
        table.add_column("For example", overflow="fold")
    for entry in CATALOGUE:
        if entry.implementation == implementation:
            family = f"{entry.family}\n[italic]{entry.limits}[/]" if entry.limits else entry.family
            examples = ["\n".join(entry.examples)] if has_examples else []
            table.add_row(family, "\n".join(entry.architectures), "\n".join(entry.gguf), *examples)
    return table
