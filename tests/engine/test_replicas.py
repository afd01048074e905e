"""Several engines as one: where sequences go, and what happens when an engine ends, hangs or is full. Scripted steps."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from streamserve.engine.process.supervision import keep_running
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.engine.replicas.summed_stats import summed
from streamserve.errors import EndsEngines, QueueFull, RateLimited, Unavailable
from streamserve.types import EngineStats, Tenant
from tests.engine.conftest import MakeSpec
from tests.engine.processes import PAUSING_SOON, Pair, kill, running_at, scripted_process, until
from tests.support.reading import read_all, read_together
from tests.support.scripted import POISON, continuation

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def replicas_of(pair: Pair) -> AsyncIterator[ReplicaSet]:
    """The set of both; streams are paused soon, so that they last."""
    replicas = ReplicaSet([process.address for process in pair], stream_limits=PAUSING_SOON)
    await replicas.start()
    try:
        yield replicas
    finally:
        await replicas.stop()


async def test_sequences_go_to_all_replicas_and_an_abort_reaches_the_right_one(processes: Pair, make_spec: MakeSpec) -> None:
    async with replicas_of(processes) as replicas:
        streams = [(await replicas.open([make_spec(max_tokens=4000)]))[0] for _ in range(4)]
        await until(replicas, lambda stats: stats.num_requests_paused == 4)
        assert await running_at(replicas) == [2, 2]
        assert replicas.abort(streams[1].sequence_id)
        assert (await read_all(streams[1])).finish_reason == "abort"
        assert not replicas.abort("unknown")
        await until(replicas, lambda stats: stats.num_requests_paused == 3)
        assert sorted(await running_at(replicas)) == [1, 2]
        for stream in streams:
            stream.close()
        await until(replicas, lambda stats: stats.kv_blocks_used == 0)


async def test_a_conversation_stays_where_its_prefix_is_cached(processes: Pair, make_spec: MakeSpec) -> None:
    async with replicas_of(processes) as replicas:
        turns = list(range(200, 264))
        for num_cached in (0, 64, 96, 144):
            [stream] = await replicas.open([make_spec(turns, max_tokens=20)])
            answer = await read_all(stream)
            assert answer.cached_tokens >= num_cached
            # Without affinity the next turn would go to the other replica, which is used first of the two.
            for _ in range(2):
                [other] = await replicas.open([make_spec()])
                await read_all(other)
            turns = [*turns, *answer.token_ids, *range(20)]


async def test_the_outputs_of_one_prompt_share_a_replica_and_prompts_of_one_request_do_not(
    processes: Pair, make_spec: MakeSpec
) -> None:
    async with replicas_of(processes) as replicas:
        prompt = list(range(40))
        outputs = await replicas.open([make_spec(prompt, max_tokens=4000) for _ in range(3)])
        await until(replicas, lambda stats: stats.num_requests_paused == 3)
        assert sorted(await running_at(replicas)) == [0, 3]
        prompts = await replicas.open([make_spec(max_tokens=4000) for _ in range(5)])
        await until(replicas, lambda stats: stats.num_requests_paused == 8)
        assert await running_at(replicas) == [4, 4]
        for stream in [*outputs, *prompts]:
            stream.close()
        await until(replicas, lambda stats: stats.kv_blocks_used == 0)


async def test_replicas_together_hold_a_key_to_its_limits(processes: Pair, make_spec: MakeSpec) -> None:
    tenant = Tenant(name="limited", requests_per_minute=6)
    async with replicas_of(processes) as replicas:
        for _ in range(6):
            # One prompt, which prefers one replica: what that refuses is tried at the other.
            [stream] = await replicas.open([make_spec([5] * 64, max_tokens=2, tenant=tenant)])
            await read_all(stream)
        with pytest.raises(RateLimited):
            await replicas.open([make_spec([5] * 64, tenant=tenant)])


async def test_a_request_that_fits_no_replica_leaves_nothing_at_any(processes: Pair, make_spec: MakeSpec) -> None:
    async with replicas_of(processes) as replicas:
        with pytest.raises(QueueFull):
            await replicas.open([make_spec() for _ in range(60)])
        await until(replicas, lambda stats: stats.kv_blocks_used == stats.num_requests_waiting == 0)


async def test_streams_of_a_replica_that_is_killed_continue_with_the_next_token_at_another(
    processes: Pair, make_spec: MakeSpec
) -> None:
    async with replicas_of(processes) as replicas:
        specs = [make_spec(max_tokens=900) for _ in range(4)]
        streams = await replicas.open(specs)
        await until(replicas, lambda stats: stats.num_requests_paused == 4)
        await kill(processes[0])
        with anyio.fail_after(20):
            wholes = await read_together(streams)
            [meanwhile] = await read_together(await replicas.open([new := make_spec()]))
        assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 900) for spec in specs]
        assert [whole.finish_reason for whole in wholes] == ["length"] * 4
        assert meanwhile.token_ids == continuation(new.prompt_token_ids, 10)
        assert (await replicas.stats()).steps > 0
        processes[0].restart()
        await until(replicas, lambda stats: stats.kv_blocks_total == 2 * 16384)
        [again] = await replicas.open([make_spec(max_tokens=4000)])
        await until(replicas, lambda stats: stats.num_requests_paused == 1)
        assert await running_at(replicas) == [1, 0], "the one that was away is the least used"
        again.close()


async def test_while_all_replicas_are_lost_streams_wait_for_the_first_to_return(processes: Pair, make_spec: MakeSpec) -> None:
    async with replicas_of(processes) as replicas:
        specs = [make_spec(max_tokens=900) for _ in range(4)]
        streams = await replicas.open(specs)
        await until(replicas, lambda stats: stats.num_requests_paused == 4)
        for process in processes:
            await kill(process)
        with anyio.fail_after(10), pytest.raises(Unavailable):
            while True:
                await replicas.stats()
        with pytest.raises(Unavailable):
            await replicas.open([make_spec()])
        processes[1].restart()
        with anyio.fail_after(20):
            wholes = await read_together(streams)
        assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 900) for spec in specs]
        processes[0].restart()


async def test_a_replica_that_was_stopped_gets_no_requests_and_those_it_was_sent_go_elsewhere(
    processes: Pair, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamserve.engine.remote.STATS_TIMEOUT_S", 0.2)
    monkeypatch.setattr("streamserve.engine.replicas.replica_set.POLL_INTERVAL_S", 0.05)
    stopped = processes[0].pid
    assert stopped is not None
    async with replicas_of(processes) as replicas:
        os.kill(stopped, signal.SIGSTOP)
        try:
            specs = [make_spec() for _ in range(4)]
            with anyio.fail_after(10):
                wholes = await read_together(await replicas.open(specs))
                assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 10) for spec in specs]
                first, second = await replicas.snapshots()
            assert first.stats is None
            assert second.stats is not None
        finally:
            os.kill(stopped, signal.SIGCONT)
        await until(replicas, lambda stats: stats.kv_blocks_total == 2 * 16384)


async def test_a_request_that_ends_its_replica_never_reaches_another(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [scripted_process("choking"), scripted_process("choking")]
    explained: list[tuple[int, int]] = []
    try:
        replicas = ReplicaSet([process.start() for process in pair], on_given_up=lambda *what: explained.append(what))
        await replicas.start()
        survivor = pair[1].pid
        async with anyio.create_task_group() as supervising:
            for process in pair:
                supervising.start_soon(partial(keep_running, process, max_restarts=2, on_restart=lambda *_: None))
            with anyio.fail_after(60):
                [given_up] = await read_together(await replicas.open([make_spec([POISON, 1, 2])]))
            for number in range(3):
                with pytest.raises(EndsEngines):
                    await replicas.open([make_spec([POISON, 1, 2], seed=number)])
            supervising.cancel_scope.cancel()
        await replicas.stop()
        assert pair[1].pid == survivor
    finally:
        for process in pair:
            process.stop()
    assert given_up.error is not None
    assert given_up.error.code == "ends_engines"
    assert explained == [(0, 2)]


async def test_streams_of_a_replica_that_will_not_return_continue_and_the_last_one_to_go_ends_them(
    processes: Pair, make_spec: MakeSpec
) -> None:
    """Last of these tests: it ends both processes."""
    addresses = [process.address for process in processes]
    async with replicas_of(processes) as replicas:
        streams = await replicas.open([make_spec(max_tokens=4000) for _ in range(2)])
        await until(replicas, lambda stats: stats.num_requests_paused == 2)
        await anyio.to_thread.run_sync(processes[0].stop)
        await until(replicas, lambda stats: stats.num_requests_paused == 2)
        with anyio.fail_after(10):
            await replicas.replicas[0].wait_ended()
            await assert_a_worker_may_still_start(addresses, make_spec)
            await anyio.to_thread.run_sync(processes[1].stop)
            wholes = await read_together(streams)
            await replicas.wait_ended()
    assert [whole.error and whole.error.code for whole in wholes] == ["engine_dead"] * 2


async def assert_a_worker_may_still_start(addresses: list[str], make_spec: MakeSpec) -> None:
    late = ReplicaSet(addresses, awaits_start=True, stream_limits=PAUSING_SOON)
    await late.start()
    [stream] = await late.open([spec := make_spec()])
    assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)
    assert [snapshot.stats is None for snapshot in await late.snapshots()] == [True, False]
    await late.stop()


def test_statistics_of_several_engines_add_up() -> None:
    one, other = EngineStats(steps=3, heartbeat_s=40.0), EngineStats(steps=4, abort_latency_s=0.5, heartbeat_s=0.5)
    one.step_tokens.observe(8)
    other.step_tokens.observe(100)
    both = summed([one, other])
    assert (both.steps, both.abort_latency_s, both.heartbeat_s) == (7, 0.5, 0.5)
    assert (both.step_tokens.total, sum(both.step_tokens.counts)) == (108, 2)
