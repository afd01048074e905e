"""Percentiles and units of the figures that are reported."""

from __future__ import annotations

import math
from collections.abc import Iterable


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
