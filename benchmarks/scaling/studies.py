"""The questions of docs/SCALING.md, each a list of scenarios and what came of them.

Scenarios are independent of each other, so they run in as many processes as there are cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from random import Random
from time import perf_counter
from typing import NamedTuple

import msgspec

from benchmarks.scaling.replica import Limits
from benchmarks.scaling.requests import CHAT, SINGLE, Applications, mixed_requests, turns
from benchmarks.scaling.simulation import ROUTINGS, Outcome, Routing, Scenario, at_percentile, offline_tokens_per_s, simulate
from benchmarks.scaling.step_time import Calibration
from streamserve.routing.policy import RoutingPolicy
from streamserve.routing.router import Router

TTFT_GOAL_S = 1.0
"""Seconds to the first token that a user of a chat is content with."""


class Row(NamedTuple):
    """One line of a study's table: what was varied, and what came of it."""

    label: str
    rate: float
    outcome: Outcome

    @property
    def figures(self) -> dict[str, float]:
        """What a table shows of it; times in milliseconds."""
        outcome = self.outcome
        return {
            "ttft_p50_ms": round(outcome.ttft(50) * 1e3, 1),
            "ttft_p99_ms": round(outcome.ttft(99) * 1e3, 1),
            "gap_p50_ms": round(at_percentile(outcome.gap_s, 50) * 1e3, 2),
            "gap_p99_ms": round(at_percentile(outcome.gap_s, 99) * 1e3, 2),
            "output_tokens_per_s": round(outcome.output_tokens_per_s),
            "cached": round(outcome.cached, 3),
            "within_goal": round(outcome.within(TTFT_GOAL_S), 4),
            "rejected": outcome.num_rejected,
            "requests": len(outcome.ttft_s),
            "imbalance": round(outcome.imbalance, 2),
        }


def run(executor: Executor, scenarios: Sequence[tuple[str, Scenario]]) -> list[Row]:
    """Simulate each."""
    outcomes = executor.map(simulate, [scenario for _, scenario in scenarios])
    return [Row(label, scenario.rate, outcome) for (label, scenario), outcome in zip(scenarios, outcomes, strict=True)]


def offline(calibrations: dict[str, Calibration]) -> Iterator[tuple[str, float, float]]:
    """A calibration's name, its measured output tokens a second of the offline workload, and the simulated ones."""
    for name, calibration in calibrations.items():
        if calibration.mixed_tokens_per_s is not None:
            limits = Limits(max_num_batched_tokens=16384)
            yield name, calibration.mixed_tokens_per_s, offline_tokens_per_s(calibration, mixed_requests(Random(1)), limits)


def routings(one: Calibration, num_replicas: int, rates: Sequence[float]) -> list[tuple[str, Scenario]]:
    """Chats on one host under each routing, up to more than it can bear."""
    return [
        (name, Scenario(calibration=one, num_replicas=num_replicas, traffic=CHAT, rate=rate, routing=routing))
        for name, routing in ROUTINGS.items()
        for rate in rates
    ]


def policies(one: Calibration, num_replicas: int, rate: float) -> list[tuple[str, Scenario]]:
    """The bound, and what a cached token weighs against a sequence, each varied alone."""
    varied = [RoutingPolicy(max_imbalance=each) for each in (1.0, 1.1, 1.25, 1.5, 2.0, 4.0)]
    varied += [RoutingPolicy(slack=each) for each in (0.0, 2.0, 8.0, 32.0)]
    varied += [RoutingPolicy(sequence_tokens=each) for each in (1.0, 16.0, 64.0, 256.0, 1024.0)]
    base = Scenario(calibration=one, num_replicas=num_replicas, traffic=CHAT, rate=rate)
    return [
        (f"{policy.max_imbalance:g} / {policy.slack:g} / {policy.sequence_tokens:g}", _routed(base, Routing(policy=policy)))
        for policy in varied
    ]


def queue_bounds(
    one: Calibration, num_replicas: int, rates: Sequence[float], bounds: Sequence[int]
) -> list[tuple[str, Scenario]]:
    """Single requests at and beyond what a host can bear, with queues of several lengths."""
    return [
        (
            f"{bound}",
            Scenario(
                calibration=one,
                num_replicas=num_replicas,
                traffic=SINGLE,
                rate=rate,
                limits=Limits(max_queue=bound),
            ),
        )
        for rate in rates
        for bound in bounds
    ]


def groups(calibrations: dict[str, Calibration], num_gpus: int, rates: Sequence[float]) -> list[tuple[str, Scenario]]:
    """The same GPUs as replicas of one each, and of several."""
    return [
        (name, Scenario(calibration=each, num_replicas=num_gpus // each.gpus, traffic=CHAT, rate=rate))
        for name, each in calibrations.items()
        for rate in rates
    ]


def routers(one: Calibration, num_replicas: int, rate: float, counts: Sequence[int]) -> list[tuple[str, Scenario]]:
    """Several hosts behind one router and behind several, that know of each other by reports of loads once a second."""
    base = Scenario(calibration=one, num_replicas=num_replicas, traffic=CHAT, rate=rate, duration_s=60, warmup_s=20)
    return [(f"{count}", msgspec.structs.replace(base, num_routers=count)) for count in counts]


def cell_loads(num_cells: int, mean_rate: float, seed: int = 0) -> tuple[float, float, float]:
    """Conversations a second of the least, the median and the most loaded cell, when conversations are hashed to cells.

    Of as many conversations as are open at a time: a cell's share of them is what it has to bear.
    """
    random = Random(seed)
    counts = [0] * num_cells
    open_at_a_time = round(num_cells * mean_rate * CHAT.mean_turns * CHAT.think_s)
    for _ in range(open_at_a_time):
        counts[random.randrange(num_cells)] += 1
    scale = mean_rate * num_cells / open_at_a_time
    ordered = sorted(counts)
    return ordered[0] * scale, ordered[num_cells // 2] * scale, ordered[-1] * scale


def cells(one: Calibration, num_replicas: int, rates: Sequence[float]) -> list[tuple[str, Scenario]]:
    """Cells of a large system, each with a router of its own, under the loads that hashing gives them."""
    return [
        (
            f"{rate:.1f}",
            Scenario(calibration=one, num_replicas=num_replicas, traffic=CHAT, rate=rate, duration_s=60, warmup_s=20),
        )
        for rate in rates
    ]


def routing_us(num_replicas: int, num_requests: int = 300) -> float:
    """Microseconds of this machine that one router takes for a request, prompts of a chat among so many replicas."""
    random = Random(0)
    applications = Applications(CHAT, random)
    prompts = [request.prompt for _ in range(num_requests) for request in turns(CHAT, applications, random)][:num_requests]
    router = Router(num_replicas)
    loads = [float(random.randrange(64)) for _ in range(num_replicas)]
    began_at = perf_counter()
    for prompt in prompts:
        router.route(prompt, loads)
    return (perf_counter() - began_at) / num_requests * 1e6


def _routed(scenario: Scenario, routing: Routing) -> Scenario:
    return msgspec.structs.replace(scenario, routing=routing)
