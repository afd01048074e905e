"""The statistics of several engines as those of one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streamserve.types import EngineStats, Tally


def summed(parts: Sequence[EngineStats]) -> EngineStats:
    """Totals of all parts, of which there is at least one; the heartbeat is that of the liveliest."""
    names = [field.name for field in msgspec.structs.fields(EngineStats) if field.name != "heartbeat_s"]
    sums: dict[str, Any] = {name: _sum([getattr(part, name) for part in parts]) for name in names}
    return EngineStats(**sums, heartbeat_s=min(part.heartbeat_s for part in parts))


def _sum(values: Sequence[Any]) -> Any:
    """The sum of numbers, or of tallies with the same bounds."""
    if not isinstance(values[0], Tally):
        return sum(values)
    counts = [sum(column) for column in zip(*(tally.counts for tally in values), strict=True)]
    return Tally(bounds=values[0].bounds, counts=counts, total=sum(tally.total for tally in values))
