"""Writes the table in docs/MODELS.md: `python -m tests.support.models_page`. A test compares the page with what this writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from streamserve.models.catalogue import CATALOGUE, CatalogueEntry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "MODELS.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->\n"


def page() -> str:
    """The page with the table of today's catalogue."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{''.join(_table())}{END}{rest.partition(END)[2]}"


def _table() -> Iterator[str]:
    yield "| family | architectures | layers by | beyond a Llama | GGUF | for example | limits |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- |\n"
    for entry in CATALOGUE:
        yield f"| {' | '.join(_cells(entry))} |\n"


def _cells(entry: CatalogueEntry) -> Iterator[str]:
    yield entry.family
    yield _code(entry.architectures)
    yield entry.implementation
    yield entry.layers
    yield _code(entry.gguf)
    yield _code(entry.examples)
    yield entry.limits


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
