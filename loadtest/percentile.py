"""The tail of some figures. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence


def p99(values: Sequence[float]) -> float | None:
    """The value that 99 of 100 don't exceed; None of nothing."""
    return sorted(values)[int(0.99 * (len(values) - 1))] if values else None
