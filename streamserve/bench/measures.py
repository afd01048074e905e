"""From lists of times to the few figures that are reported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def percentile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank percentile, None of nothing; `share` in [0, 1]."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Iterable[float]) -> float | None:
    return percentile(values, 0.5)


def milliseconds(seconds: float | None) -> float | None:
    """For reports: three decimals."""
    return None if seconds is None else round(seconds * 1e3, 3)


def spread(values: Sequence[float]) -> str:
    """Lowest and highest, for a median's side."""
    return f"{min(values):.4g}-{max(values):.4g}" if values else ""
