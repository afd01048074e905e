"""Clients, a router and replicas in simulated time, and what came of it.

The router is the one that servers use (`streamserve.routing`): only time, engines and clients are simulated.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import cycle
from random import Random
from statistics import fmean, quantiles
from typing import Any

import msgspec
import simpy

from benchmarks.scaling.replica import Limits, Replica
from benchmarks.scaling.replica import Sequence as Served
from benchmarks.scaling.requests import Applications, Request, Traffic, conversations, turns
from benchmarks.scaling.step_time import Calibration
from streamserve.routing.policy import RoutingPolicy
from streamserve.routing.prefix_keys import PrefixKeys
from streamserve.routing.router import Router

UNBOUNDED = 1e9


class Routing(msgspec.Struct, frozen=True, kw_only=True):
    """What the router looks at, and its policy."""

    policy: RoutingPolicy = RoutingPolicy()
    sees_load: bool = True
    sees_prefixes: bool = True


ROUTINGS = {
    "round robin": Routing(sees_load=False, sees_prefixes=False),
    "least loaded": Routing(sees_prefixes=False),
    "prefix, no bound": Routing(policy=RoutingPolicy(sequence_tokens=1e-6, max_imbalance=UNBOUNDED, slack=UNBOUNDED)),
    "prefix, bounded": Routing(),
}
"""The ones that docs/SCALING.md compares; the last is what servers do."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation.

    rate           conversations that begin, a second, over all replicas
    num_routers    each of which knows only what it has routed itself
    load_period_s  how old the loads may be that several routers see of each other; one router knows them as they are
    duration_s     during which conversations begin
    warmup_s       from the beginning, of which nothing is counted
    """

    calibration: Calibration
    num_replicas: int
    traffic: Traffic
    rate: float
    routing: Routing = Routing()
    limits: Limits = Limits()
    num_routers: int = 1
    load_period_s: float = 1.0
    duration_s: float = 120.0
    warmup_s: float = 40.0
    seed: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a simulation; times in seconds.

    ttft_s               of each request that was admitted, from its arrival
    gap_s                of each, the mean time between its tokens
    num_rejected         refused by a queue bound
    output_tokens_per_s  over all replicas
    cached               share of prompt tokens that were in a prefix cache
    imbalance            tokens of the busiest replica by the mean
    """

    ttft_s: list[float]
    gap_s: list[float]
    num_rejected: int
    output_tokens_per_s: float
    cached: float
    imbalance: float

    def ttft(self, percentile: int) -> float:
        """Seconds within which this percentage of first tokens came."""
        return at_percentile(self.ttft_s, percentile)

    def within(self, ttft_s: float) -> float:
        """The share of all requests, refused ones included, whose first token came within `ttft_s`."""
        return sum(each <= ttft_s for each in self.ttft_s) / max(1, len(self.ttft_s) + self.num_rejected)


def at_percentile(values: Sequence[float], percentile: int) -> float:
    """A percentile by linear interpolation; not a number when there is none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return quantiles(values, n=100, method="inclusive")[percentile - 1]


class Cluster:
    """Replicas behind routers that clients take in turn."""

    def __init__(self, env: simpy.Environment, scenario: Scenario) -> None:
        self.replicas = [Replica(env, scenario.calibration, scenario.limits) for _ in range(scenario.num_replicas)]
        self._routers = [_RouterView(scenario, self.replicas) for _ in range(scenario.num_routers)]
        self._turns = cycle(self._routers)
        if scenario.num_routers > 1:
            env.process(self._report(env, scenario.load_period_s))

    def submit(self, request: Request) -> Served | None:
        """Route a request; None when its replica refuses it."""
        return self.replicas[next(self._turns).route(request)].submit(request)

    def _report(self, env: simpy.Environment, period_s: float) -> Generator[simpy.Event, Any, None]:
        """Publish the loads of all replicas every period."""
        while True:
            for router in self._routers:
                router.reported = [replica.load for replica in self.replicas]
            yield env.timeout(period_s)


class _RouterView:
    """One router, and the loads that it knows: all as they are, or reported ones and what it has sent since.

    reported  the last report, where there is one
    """

    def __init__(self, scenario: Scenario, replicas: Sequence[Replica]) -> None:
        self._routing = scenario.routing
        self._replicas = replicas
        self._router = Router(len(replicas), policy=scenario.routing.policy)
        self._is_alone = scenario.num_routers == 1
        self.reported = [0] * len(replicas)

    def route(self, request: Request) -> int:
        """The number of the replica."""
        number = self._router.route(request.prompt if self._routing.sees_prefixes else PrefixKeys(0), self._loads())
        assert number is not None
        self.reported[number] += 1
        return number

    def _loads(self) -> list[float]:
        if not self._routing.sees_load:
            return [0.0] * len(self._replicas)
        return (
            [float(replica.load) for replica in self._replicas] if self._is_alone else [float(each) for each in self.reported]
        )


class _Log:
    """Requests after the warm-up, as they were served."""

    def __init__(self, env: simpy.Environment, warmup_s: float) -> None:
        self._env = env
        self._warmup_s = warmup_s
        self.served: list[Served] = []
        self.num_rejected = 0

    def add(self, served: Served | None) -> None:
        if self._env.now >= self._warmup_s:
            if served is None:
                self.num_rejected += 1
            else:
                self.served.append(served)


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario; the same seed gives the same outcome, and the same conversations whatever the routing."""
    env = simpy.Environment()
    cluster = Cluster(env, scenario)
    log = _Log(env, scenario.warmup_s)
    env.process(_clients(env, scenario, cluster, log))
    env.run(until=scenario.duration_s)
    return outcome(scenario, cluster, log.served, log.num_rejected)


def _clients(env: simpy.Environment, scenario: Scenario, cluster: Cluster, log: _Log) -> Generator[simpy.Event, Any, None]:
    for after_s, applications, random in conversations(scenario.traffic, scenario.rate, scenario.seed):
        yield env.timeout(after_s)
        env.process(_conversation(env, scenario.traffic, cluster, log, applications, random))


def _conversation(
    env: simpy.Environment, traffic: Traffic, cluster: Cluster, log: _Log, applications: Applications, random: Random
) -> Generator[simpy.Event, Any, None]:
    """Ask, read the answer, think, and ask again; a conversation that is refused ends."""
    for request in turns(traffic, applications, random):
        served = cluster.submit(request)
        log.add(served)
        if served is None:
            return
        yield served.ended
        yield env.timeout(random.expovariate(1 / traffic.think_s))


def outcome(scenario: Scenario, cluster: Cluster, served: Sequence[Served], num_rejected: int) -> Outcome:
    """What the requests and replicas of a simulation say; those that have no token by its end count as they stand."""
    counted_s = scenario.duration_s - scenario.warmup_s
    ended = [each for each in served if each.ended_at is not None]
    generated = [replica.num_generated for replica in cluster.replicas]
    prompt_tokens = sum(each.request.prompt.num_tokens for each in served)
    return Outcome(
        ttft_s=[(each.first_token_at or scenario.duration_s) - each.arrived_at for each in served],
        gap_s=[_gap_s(each) for each in ended if each.request.output_tokens > 1],
        num_rejected=num_rejected,
        output_tokens_per_s=sum(each.request.output_tokens for each in ended) / counted_s,
        cached=sum(each.cached_tokens for each in served) / max(1, prompt_tokens),
        imbalance=max(generated) / max(fmean(generated), 1.0),
    )


def _gap_s(served: Served) -> float:
    assert served.ended_at is not None
    assert served.first_token_at is not None
    return (served.ended_at - served.first_token_at) / (served.request.output_tokens - 1)


def offline_tokens_per_s(calibration: Calibration, requests: Sequence[Request], limits: Limits) -> float:
    """Output tokens a second of requests that are all there from the start, on one replica."""
    env = simpy.Environment()
    replica = Replica(env, calibration, limits)
    served = [replica.submit(request) for request in requests]
    env.run(until=env.all_of([each.ended for each in served if each is not None]))
    return sum(request.output_tokens for request in requests) / env.now
