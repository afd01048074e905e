"""Tables of vectors."""

from __future__ import annotations

from collections.abc import Iterator

from streamserve.models.weights.destination import Destination, Stored
from streamserve.models.weights.placement import Placement


class Embedding(Stored):
    """A table of vectors, [rows, size]."""

    def __init__(self, name: str, rows: int, size: int, place: Placement) -> None:
        super().__init__()
        self.name = name
        self.weight = place.empty(rows, size)

    def destinations(self) -> Iterator[Destination]:
        yield Destination(f"{self.name}.weight", self.weight)
