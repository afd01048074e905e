"""The simulation of replicas: steps last what was measured, nothing is lost or held for ever, and the seed decides all."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
import simpy

from benchmarks.scaling.kv_cache import KvCache
from benchmarks.scaling.replica import Limits, Replica
from benchmarks.scaling.requests import Lengths, Request, Traffic, mixed_requests
from benchmarks.scaling.simulation import ROUTINGS, Routing, Scenario, offline_tokens_per_s, simulate
from benchmarks.scaling.step_time import Calibration, DecodeStep, StepTime, read_calibrations
from streamserve.routing.policy import RoutingPolicy
from streamserve.routing.prefix_keys import prefix_keys

MACHINE = Calibration(
    source="of this test",
    gpus=1,
    decode=[DecodeStep(1, 0, 4.0), DecodeStep(3, 0, 8.0)],
    prompt_us=100,
    context_ns=0,
    kv_tokens=4096,
)


CHATS = Traffic(
    num_applications=24, system_tokens=2048, mean_turns=3, user_tokens=Lengths(64), output_tokens=Lengths(20), think_s=1.0
)


def request(num_prompt_tokens: int, output_tokens: int, start: int = 1) -> Request:
    whole = [start] * num_prompt_tokens + [start + 1] * output_tokens
    return Request(prefix_keys(whole[:num_prompt_tokens]), prefix_keys(whole), output_tokens)


def replica_of(**limits: Any) -> tuple[simpy.Environment, Replica]:
    env = simpy.Environment()
    return env, Replica(env, MACHINE, Limits(**limits))


def test_a_step_lasts_what_was_measured_and_between_two_measured_ones_what_lies_between() -> None:
    for calibration in read_calibrations().values():
        time = StepTime(calibration)
        for step in calibration.decode:
            assert time.step_s(step.rows, step.rows * step.context) == pytest.approx(step.ms / 1e3)
    assert StepTime(MACHINE).step_s(2, 0, prompt_tokens=10) == pytest.approx(6e-3 + 1e-3)
    assert StepTime(MACHINE).step_s(0, 0, prompt_tokens=10) == pytest.approx(4e-3), "a few prompt tokens read all weights, too"


def test_the_offline_workload_takes_what_the_machines_took() -> None:
    for calibration in read_calibrations().values():
        simulated = offline_tokens_per_s(calibration, mixed_requests(Random(1)), Limits(max_num_batched_tokens=16384))
        assert simulated == pytest.approx(calibration.mixed_tokens_per_s, rel=0.1)


def test_a_request_alone_computes_its_prompt_in_steps_and_then_decodes() -> None:
    env, replica = replica_of(max_num_batched_tokens=256)
    served = replica.submit(request(300, 11))
    assert served is not None
    env.run(1)
    assert served.first_token_at == pytest.approx(0.0256 + 0.0044)
    assert served.ended_at == pytest.approx(0.030 + 10 * 0.004)
    assert replica.cache.num_held == 0


def test_a_request_that_arrives_while_others_decode_waits_for_the_step_that_runs_and_the_one_planned_already() -> None:
    env, replica = replica_of()
    first = replica.submit(request(10, 1000))
    env.run(0.1005)
    second = replica.submit(request(100, 2, start=5))
    assert first is not None
    assert second is not None
    env.run(10)
    # The first decodes from 4 ms on, 4 ms each: at 100.5 ms its 25th step runs until 104, and the 26th until 108.
    assert second.first_token_at == pytest.approx(0.108 + 0.014)
    assert second.ended_at == pytest.approx(0.122 + 0.006)
    assert first.ended_at == pytest.approx(0.004 + 999 * 0.004 + 0.010 + 0.002)


def test_a_prompt_that_came_before_is_computed_only_where_it_differs() -> None:
    env, replica = replica_of()
    turns = [request(640, 32), request(640, 32)]
    times = []
    for turn in turns:
        served = replica.submit(turn)
        assert served is not None
        began_at = env.now
        env.run(served.ended)
        times.append((served.first_token_at or 0) - began_at)
    assert times == pytest.approx([0.064, 0.004])


def test_sequences_that_do_not_fit_together_are_preempted_and_all_end() -> None:
    env, replica = replica_of()
    served = [replica.submit(request(1000, 600, start=10 * number)) for number in range(4)]
    env.run(100)
    assert all(each is not None and each.ended_at is not None for each in served)
    assert sum(each.num_preemptions for each in served if each is not None) > 0
    assert replica.num_generated == 4 * 600
    assert replica.cache.num_held == 0
    assert replica.load == 0


def test_more_than_may_wait_are_refused() -> None:
    env, replica = replica_of(max_num_seqs=1, max_queue=2)
    env.run(0.001)
    assert [replica.submit(request(10, 5)) is None for _ in range(4)] == [False, False, True, True]


def test_the_prefix_used_longest_ago_is_evicted_first() -> None:
    cache = KvCache(96)
    old, new, other = (prefix_keys([number] * 32) for number in range(3))
    for prefix in (old, new):
        cache.hold(prefix, 2)
        cache.release(prefix, 2)
    cache.hold(old, 2)
    cache.release(old, 2)
    cache.take(48)
    assert [cache.cached(prefix) for prefix in (old, new, other)] == [2, 1, 0]
    cache.take(-48)
    assert (cache.num_held, cache.num_free) == (0, 96)


def chats(**changes: Any) -> Scenario:
    machine = msgspec.structs.replace(MACHINE, kv_tokens=32768)
    base = Scenario(calibration=machine, num_replicas=4, traffic=CHATS, rate=6, duration_s=30, warmup_s=5)
    return msgspec.structs.replace(base, **changes)


def test_a_router_that_follows_prefixes_computes_less_of_the_prompts_and_its_bound_keeps_replicas_level() -> None:
    blind, unbounded = (simulate(chats(routing=ROUTINGS[name])) for name in ("least loaded", "prefix, no bound"))
    tight = simulate(chats(routing=Routing(policy=RoutingPolicy(max_imbalance=1.0, slack=1.0))))
    assert unbounded.cached > tight.cached > blind.cached + 0.02
    assert tight.ttft(50) < blind.ttft(50)
    assert unbounded.imbalance > tight.imbalance + 0.1


def test_routers_that_know_only_what_they_sent_themselves_find_fewer_prefixes() -> None:
    assert simulate(chats(num_routers=3)).cached < simulate(chats()).cached - 0.02


def test_the_seed_decides_all() -> None:
    assert simulate(chats(duration_s=12)) == simulate(chats(duration_s=12)) != simulate(chats(duration_s=12, seed=1))
