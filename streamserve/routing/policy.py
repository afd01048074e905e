"""How one replica is chosen among several: by what a request still has to compute there, by load, and by a bound on imbalance.

Pure functions. The policy follows affinity as long as a replica is not far above the mean, as consistent hashing with bounded
loads does (Mirrokni, Thorup and Zadimoghaddam, 2018); among those it takes the one with the least work before the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class RoutingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of the policy.

    sequence_tokens  prompt tokens whose computation costs as much as sharing the steps of one more sequence
    max_imbalance    a replica may have this many times the mean load, and still take what it has the prefix of
    slack            it may, too, have so many sequences more than the least loaded one: few never count as imbalance
    """

    sequence_tokens: float = 64.0
    max_imbalance: float = 1.25
    slack: float = 8.0


class Candidate(NamedTuple):
    """One replica as a request finds it.

    load           sequences that it has, running or waiting
    cached_tokens  of the request's prompt, that it need not compute
    last_chosen    when it was chosen last, in any increasing unit
    """

    load: float
    cached_tokens: int = 0
    last_chosen: int = 0


def choose(candidates: Sequence[Candidate | None], policy: RoutingPolicy) -> int | None:
    """The number of the replica to take; None when there is none.

    candidates  by number; None for replicas that take no requests

    Among equals, the one that was chosen longest ago.
    """
    loads = [candidate.load for candidate in candidates if candidate is not None]
    if not loads:
        return None
    bound = max(policy.max_imbalance * sum(loads) / len(loads), min(loads) + policy.slack)

    def cost(number: int) -> tuple[float, int]:
        candidate = candidates[number]
        assert candidate is not None
        return policy.sequence_tokens * candidate.load - candidate.cached_tokens, candidate.last_chosen

    within = [number for number, each in enumerate(candidates) if each is not None and each.load <= bound]
    return min(within, key=cost)
