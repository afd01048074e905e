"""The engine's loop in this process, its steps held back by a gate: who gets what, and what the departed give back."""

from __future__ import annotations

import asyncio
import time

import anyio
import anyio.lowlevel
import msgspec
import pytest

from streamserve.config import EngineConfig
from streamserve.engine.base import SequenceStream
from streamserve.engine.core import scheduler_limits
from streamserve.engine.inline import InlineEngine
from streamserve.engine.stream import StreamLimits
from streamserve.errors import ContextLengthExceeded, EngineDead, PromptTooLarge, QueueFull, RateLimited, Unavailable
from streamserve.kv_groups import KvGroups
from streamserve.types import Tenant
from tests.engine.conftest import MakeSpec, Running
from tests.support.checkpoints import no_weights
from tests.support.reading import next_push, read_all, read_together
from tests.support.scripted import ScriptedExecutor, continuation

pytestmark = pytest.mark.anyio


async def one_step(executor: ScriptedExecutor) -> None:
    """Let the oldest step end and everything that follows from it happen."""
    executor.release()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("overlap", [True, False])
async def test_every_sequence_of_a_crowd_gets_its_own_tokens(running: Running, make_spec: MakeSpec, overlap: bool) -> None:
    specs = [make_spec([token % 90 for token in range(5, 5 + 7 * n)], max_tokens=3 + 5 * n) for n in range(1, 20)]
    async with running(ScriptedExecutor(), overlap=overlap, max_num_seqs=8, max_num_batched_tokens=32) as engine:
        wholes = await read_together(await engine.open(specs))
    assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, spec.max_tokens) for spec in specs]
    assert {whole.finish_reason for whole in wholes} == {"length"}


@pytest.mark.parametrize(("overlap", "in_flight"), [(True, 2), (False, 1)])
async def test_the_next_step_is_launched_early_only_with_overlap(
    running: Running, make_spec: MakeSpec, overlap: bool, in_flight: int
) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor, overlap=overlap) as engine:
        await engine.open([make_spec()])
        await anyio.wait_all_tasks_blocked()
        assert executor.num_waiting == in_flight
        await one_step(executor)
        assert executor.num_waiting == in_flight


async def test_a_token_reaches_its_reader_when_its_step_ends(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:
        [stream] = await engine.open([make_spec()])
        await anyio.wait_all_tasks_blocked()
        assert stream.take_nowait() is None
        await one_step(executor)
        delta = stream.take_nowait()
        assert delta is not None
        assert len(delta.token_ids) == 1


STEPS_UNTIL = {"queued": 0, "prefilling": 1, "decoding": 6, "paused": 8}


@pytest.mark.parametrize("state", STEPS_UNTIL)
@pytest.mark.parametrize("overlap", [True, False])
async def test_a_reader_that_leaves_gives_everything_back(
    running: Running, make_spec: MakeSpec, state: str, overlap: bool
) -> None:
    executor = ScriptedExecutor(gated=True, max_num_seqs=1 if state == "queued" else 8)
    limits = StreamLimits(high_water_tokens=4, low_water_tokens=1)
    async with running(executor, streams=limits, overlap=overlap, max_num_seqs=8, max_num_batched_tokens=16) as engine:
        others = await engine.open([make_spec()]) if state == "queued" else []
        [stream] = await engine.open([make_spec(list(range(60)), max_tokens=100)])
        await anyio.wait_all_tasks_blocked()
        for _ in range(STEPS_UNTIL[state]):
            await one_step(executor)
        before = await engine.stats()
        assert (before.num_requests_paused, before.num_requests_waiting) == (state == "paused", state == "queued")
        stream.close()
        if executor.num_waiting:
            await one_step(executor)
        after = await engine.stats()
        assert after.num_requests_running + after.num_requests_waiting + after.num_requests_paused == len(others)
        assert after.num_aborts == 1
        assert after.kv_blocks_used <= 3 * len(others)


async def test_leaving_the_with_block_aborts_while_being_cancelled(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:

        async def read() -> None:
            [stream] = await engine.open([make_spec()])
            with stream:
                await read_all(stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        executor.open_gate()
        await anyio.wait_all_tasks_blocked()
        stats = await engine.stats()
        assert (stats.num_requests_running, stats.kv_blocks_used, stats.num_aborts) == (0, 0, 1)


async def test_tokens_sampled_for_a_reader_that_left_are_counted(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:
        [stream] = await engine.open([make_spec()])
        await anyio.wait_all_tasks_blocked()
        stream.close()
        executor.open_gate()
        await anyio.wait_all_tasks_blocked()
        assert (await engine.stats()).tokens_wasted_after_disconnect == 2


async def test_abort_ends_a_stream_at_once_and_keeps_what_is_unread(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:
        spec = make_spec()
        [stream] = await engine.open([spec])
        await anyio.wait_all_tasks_blocked()
        await one_step(executor)
        await one_step(executor)
        assert engine.abort(spec.sequence_id)
        assert not engine.abort(spec.sequence_id)
        assert not engine.abort("never heard of")
        whole = await read_all(stream)
        assert (whole.token_ids, whole.finish_reason) == (continuation(spec.prompt_token_ids, 2), "abort")


async def test_a_lagging_reader_gets_longer_deltas_and_loses_nothing(running: Running, make_spec: MakeSpec) -> None:
    limits = StreamLimits(queue_deltas=4, high_water_tokens=64, low_water_tokens=16)
    async with running(ScriptedExecutor(), streams=limits) as engine:
        spec = make_spec(max_tokens=30)
        [stream] = await engine.open([spec])
        await anyio.wait_all_tasks_blocked()
        deltas = [delta async for delta in stream]
    assert [len(delta.token_ids) for delta in deltas] == [1, 1, 1, 27]
    assert [token for delta in deltas for token in delta.token_ids] == continuation(spec.prompt_token_ids, 30)


async def test_a_slow_reader_is_paused_while_the_others_run_on(running: Running, make_spec: MakeSpec) -> None:
    limits = StreamLimits(queue_deltas=4, high_water_tokens=20, low_water_tokens=5)
    async with running(ScriptedExecutor(), streams=limits) as engine:
        slow, fast = make_spec(max_tokens=200), make_spec(max_tokens=200)
        slow_stream, fast_stream = await engine.open([slow, fast])
        assert (await read_all(fast_stream)).token_ids == continuation(fast.prompt_token_ids, 200)
        await anyio.wait_all_tasks_blocked()
        stats = await engine.stats()
        assert (stats.num_requests_paused, stats.num_requests_running) == (1, 0)
        assert stats.generation_tokens <= 200 + 20 + 3, "a paused sequence went on"
        whole = await read_all(slow_stream)
        assert whole.token_ids == continuation(slow.prompt_token_ids, 200)
        assert whole.finish_reason == "length"


async def test_a_paused_sequence_resumes_at_the_low_mark_and_not_before(running: Running, make_spec: MakeSpec) -> None:
    limits = StreamLimits(queue_deltas=100, high_water_tokens=20, low_water_tokens=5)
    async with running(ScriptedExecutor(), streams=limits) as engine:
        [stream] = await engine.open([make_spec(max_tokens=100)])
        await anyio.wait_all_tasks_blocked()
        unread = (await engine.stats()).generation_tokens
        for _ in range(unread - 6):
            assert stream.take_nowait() is not None
        await anyio.wait_all_tasks_blocked()
        stats = await engine.stats()
        assert (stats.num_requests_paused, stats.generation_tokens) == (1, unread)
        assert stream.take_nowait() is not None
        assert (await engine.stats()).num_requests_paused == 0


async def test_a_stalled_reader_fails_with_slow_consumer_and_nobody_else_does(running: Running, make_spec: MakeSpec) -> None:
    limits = StreamLimits(high_water_tokens=20, low_water_tokens=5, stall_timeout_s=0.05)
    async with running(ScriptedExecutor(), streams=limits) as engine:
        stalled, quick = make_spec(max_tokens=400), make_spec(max_tokens=400)
        stalled_stream, quick_stream = await engine.open([stalled, quick])
        assert (await read_all(quick_stream)).finish_reason == "length"
        await next_push(stalled_stream)
        stats = await engine.stats()
        whole = await read_all(stalled_stream)
    assert whole.finish_reason == "error"
    assert whole.error is not None
    assert whole.error.code == "slow_consumer"
    assert whole.token_ids == continuation(stalled.prompt_token_ids, len(whole.token_ids))
    assert (stats.num_requests_paused, stats.kv_blocks_used) == (0, 0)


@pytest.mark.parametrize(
    ("failure", "has_traceback"), [(EngineDead("rank 1 was killed by SIGKILL"), False), (RuntimeError("out of memory"), True)]
)
async def test_only_a_fault_of_the_engine_is_logged_with_a_traceback(
    failure: Exception, has_traceback: bool, running: Running, make_spec: MakeSpec, caplog: pytest.LogCaptureFixture
) -> None:
    executor = ScriptedExecutor()
    executor.failure = failure
    async with running(executor) as engine:
        (stream,) = await engine.open([make_spec()])
        assert (await read_all(stream)).finish_reason == "error"
    (record,) = caplog.records
    assert "the engine died" in record.message
    assert bool(record.exc_info) is has_traceback


async def test_a_failing_step_ends_every_stream_and_admits_no_more(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:
        specs = [make_spec() for _ in range(3)]
        streams = await engine.open(specs)
        await anyio.wait_all_tasks_blocked()
        await one_step(executor)
        executor.failure = RuntimeError("out of memory")
        executor.release()
        wholes = await read_together(streams)
        assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 1) for spec in specs]
        assert {whole.error.code for whole in wholes if whole.error} == {"engine_dead"}
        with pytest.raises(EngineDead):
            await engine.open([make_spec()])
        with pytest.raises(EngineDead):
            await engine.stats()


async def test_ranks_that_are_lost_while_there_is_no_work_end_the_engine_at_once(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor()
    async with running(executor) as engine:
        [whole] = await read_together(await engine.open([make_spec()]))
        assert whole.finish_reason == "length"
        await anyio.wait_all_tasks_blocked()
        executor.lose(EngineDead("rank 1 was killed by SIGKILL"))
        await anyio.wait_all_tasks_blocked()
        [snapshot] = await engine.snapshots()
        assert snapshot.stats is None
        with pytest.raises(EngineDead, match="rank 1 was killed"):
            await engine.open([make_spec()])


async def test_an_executor_that_refuses_a_step_is_as_dead(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor()
    async with running(executor) as engine:
        executor.info = None  # type: ignore[assignment]
        executor._rows = None  # type: ignore[assignment]
        [stream] = await engine.open([make_spec()])
        whole = await read_all(stream)
        assert whole.error is not None
        assert whole.error.code == "engine_dead"


async def test_stop_ends_every_stream_and_frees_the_ranks(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    before = asyncio.all_tasks()
    async with running(executor) as engine:
        [stream] = await engine.open([make_spec()])
        await anyio.wait_all_tasks_blocked()
        await engine.stop()
        await engine.stop()
        whole = await read_all(stream)
        assert whole.error is not None
        assert whole.error.code == "engine_dead"
        with pytest.raises(EngineDead):
            await engine.open([make_spec()])
    assert executor.is_stopped
    assert asyncio.all_tasks() == before


async def test_an_engine_that_was_not_started_is_unavailable_and_can_be_stopped(make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor()
    engine = InlineEngine(EngineConfig(model="scripted"), no_weights(), executor=executor)
    with pytest.raises(Unavailable):
        _ = engine.info
    with pytest.raises(Unavailable):
        await engine.open([make_spec()])
    await engine.stop()
    assert executor.is_stopped
    with pytest.raises(EngineDead):
        await engine.open([make_spec()])


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "refusal"),
    [(list(range(600)), 10, ContextLengthExceeded), (list(range(400)), 100, PromptTooLarge)],
)
async def test_what_can_never_run_is_refused_and_costs_the_others_nothing(
    running: Running, make_spec: MakeSpec, prompt: list[int], max_tokens: int, refusal: type[Exception]
) -> None:
    async with running(ScriptedExecutor(num_blocks=16)) as engine:
        good = make_spec()
        with pytest.raises(refusal):
            await engine.open([make_spec(), make_spec(prompt, max_tokens=max_tokens)])
        [stream] = await engine.open([good])
        assert (await read_all(stream)).token_ids == continuation(good.prompt_token_ids, 10)
        stats = await engine.stats()
        assert (stats.num_requests_running, stats.num_requests_waiting, stats.generation_tokens) == (0, 0, 10)


async def test_a_full_queue_refuses_all_or_none(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True, max_num_seqs=1)
    async with running(executor, max_queue=2) as engine:
        await engine.open([make_spec()])
        await anyio.wait_all_tasks_blocked()
        await engine.open([make_spec()])
        with pytest.raises(QueueFull):
            await engine.open([make_spec(), make_spec()])
        assert (await engine.stats()).num_requests_waiting == 1
        await engine.open([make_spec()])


async def test_what_a_key_may_use_is_counted_in_whole_requests_by_the_engine(running: Running, make_spec: MakeSpec) -> None:
    tenant = Tenant(name="limited", requests_per_minute=2)
    async with running(ScriptedExecutor()) as engine:
        for _ in range(2):
            await engine.open([make_spec(tenant=tenant), make_spec(tenant=tenant)])
        with pytest.raises(RateLimited, match="2 requests a minute") as refused:
            await engine.open([make_spec(tenant=tenant)])
        assert 25 < refused.value.retry_after_s <= 30
        await engine.open([make_spec(tenant=Tenant(name="other"))])


@pytest.mark.parametrize("gated", [True, False])
async def test_an_engine_that_waits_uses_no_cpu(running: Running, make_spec: MakeSpec, gated: bool) -> None:
    """Gated: it waits for a step that hangs. Otherwise: for work, with a paused stream without a reader."""
    executor = ScriptedExecutor(gated=gated)
    async with running(executor, streams=StreamLimits(high_water_tokens=4)) as engine:
        await engine.open([make_spec(max_tokens=100)])
        await anyio.wait_all_tasks_blocked()
        turns = len(executor.submitted)
        before = time.thread_time()
        await anyio.sleep(0.3)
        assert time.thread_time() - before < 0.02
        assert len(executor.submitted) == turns


async def test_the_heartbeat_ages_while_a_step_hangs_and_not_while_idle(running: Running, make_spec: MakeSpec) -> None:
    executor = ScriptedExecutor(gated=True)
    async with running(executor) as engine:
        await anyio.sleep(0.05)
        assert (await engine.stats()).heartbeat_s == 0.0
        await engine.open([make_spec()])
        await anyio.sleep(0.05)
        assert (await engine.stats()).heartbeat_s >= 0.04


async def test_a_sequence_ends_when_its_time_is_up(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor(max_model_len=1 << 20, num_blocks=1 << 16)) as engine:
        spec = make_spec(max_tokens=1 << 19, max_time_s=0.05)
        [stream] = await engine.open([spec])
        whole = await read_all(stream)
        assert whole.finish_reason == "time"
        assert whole.token_ids[:50] == continuation(spec.prompt_token_ids, 50)


async def test_a_paused_sequence_ends_when_its_time_is_up(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor(), streams=StreamLimits(high_water_tokens=4)) as engine:
        [stream] = await engine.open([make_spec(max_tokens=100, max_time_s=0.5)])
        await anyio.wait_all_tasks_blocked()
        assert (await engine.stats()).num_requests_paused == 1
        await next_push(stream)
        assert (await read_all(stream)).finish_reason == "time"


async def test_a_storm_of_opens_and_departures_leaves_nothing_behind(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor(max_num_seqs=64, num_blocks=256), max_num_seqs=64) as engine:
        stayers: list[SequenceStream] = []
        leavers: list[SequenceStream] = []
        for n in range(300):
            [stream] = await engine.open([make_spec(max_tokens=50)])
            (leavers if n % 3 else stayers).append(stream)
            if n % 5 == 0:
                await anyio.lowlevel.checkpoint()
        for stream in leavers:
            stream.close()
        wholes = await read_together(stayers)
        assert {len(whole.token_ids) for whole in wholes} == {50}
        await anyio.wait_all_tasks_blocked()
        stats = await engine.stats()
        assert (stats.num_requests_running, stats.num_requests_waiting, stats.kv_blocks_used) == (0, 0, 0)
        assert stats.num_aborts == len(leavers)


async def test_a_stream_has_one_reader(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor(gated=True)) as engine:
        [stream] = await engine.open([make_spec()])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all, stream)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await anext(stream)
            stream.close()


def test_the_scheduler_counts_blocks_by_the_layer_groups_that_the_rank_reports() -> None:
    info = msgspec.structs.replace(ScriptedExecutor(num_blocks=1000, max_model_len=1600).info, windows=(None, 160))
    assert scheduler_limits(EngineConfig(model="m"), info).groups == KvGroups(16, (None, 160))
    # 100 blocks where everything is seen, and 11 for the window and the newest token, with 2 for its edges.
    assert info.kv_capacity_tokens == 1000 * 1600 // (100 + 13)
    assert msgspec.structs.replace(info, windows=(None,)).kv_capacity_tokens == 16000
