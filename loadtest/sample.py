"""One second of a load test."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """One second.

    ttfts_ms, gaps_ms  those that ended in it
    failures           so far
    gauges             of `HELD`; nothing where the server did not say
    memory             resident bytes of the server's processes, by role
    load               of the machine, over a minute
    """

    at_s: float
    users: int
    answers: int
    failures: int
    ttfts_ms: list[float]
    gaps_ms: list[float]
    gauges: dict[str, float]
    memory: dict[str, float]
    load: float
