"""Streams that outlive their engine: it is killed under them and started again, over its real socket, with scripted steps."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import WINDOW_S, RestartBudget, keep_running
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.resume_state import ResumeState
from streamserve.engine.watchdog import kill_when_hung
from streamserve.errors import EndsEngines, EngineDead, Unavailable
from streamserve.types import ReasoningMarks, TokenDelta
from tests.engine.conftest import MakeSpec
from tests.engine.processes import PAUSING_SOON, kill, lost, num_alive, reconnected, scripted_process, until
from tests.support.reading import read_all, read_together
from tests.support.scripted import POISON, continuation

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def engine_at(address: str, on_given_up: Callable[[int], None] = lambda _: None) -> AsyncIterator[RemoteEngine]:
    """An engine that is restarted when it ends; its streams are paused soon, so that they last."""
    engine = RemoteEngine(address, reconnects=True, on_given_up=on_given_up, stream_limits=PAUSING_SOON)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_streams_continue_with_the_next_token_when_the_engine_is_restarted(
    process: EngineProcess, make_spec: MakeSpec
) -> None:
    restarts: list[tuple[int, int]] = []
    async with engine_at(process.address) as engine, anyio.create_task_group() as tasks:
        specs = [make_spec(max_tokens=900) for _ in range(3)]
        streams = await engine.open(specs)
        await until(engine, lambda stats: stats.num_requests_paused == 3)
        tasks.start_soon(partial(keep_running, process, max_restarts=1, on_restart=lambda *what: restarts.append(what)))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        wholes = await read_together(streams)
        tasks.cancel_scope.cancel()
    assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 900) for spec in specs]
    assert [whole.finish_reason for whole in wholes] == ["length"] * 3
    assert restarts == [(-signal.SIGKILL, 1)]


async def test_whoever_connects_while_there_is_no_engine_waits_for_the_next(process: EngineProcess) -> None:
    await kill(process)
    engine = RemoteEngine(process.address, reconnects=True)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.start)
            await anyio.to_thread.run_sync(process.restart)
        assert num_alive(await engine.stats()) == 0
    await engine.stop()
    await kill(process)
    os.unlink(process.address)
    with pytest.raises(EngineDead):
        await RemoteEngine(process.address, reconnects=True).start()


async def test_new_sequences_are_refused_as_unavailable_meanwhile(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with engine_at(process.address) as engine:
        await kill(process)
        await lost(engine)
        with pytest.raises(Unavailable) as refusal:
            await engine.open([make_spec()])
        assert not isinstance(refusal.value, EngineDead)
        process.restart()
        await reconnected(engine)
        [stream] = await engine.open([spec := make_spec()])
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)


async def test_a_reader_that_leaves_meanwhile_leaves_nothing_behind(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with engine_at(process.address) as engine:
        stays, leaves, cancelled = await engine.open([make_spec(max_tokens=4000) for _ in range(3)])
        await until(engine, lambda stats: stats.num_requests_paused == 3)
        await kill(process)
        await lost(engine)
        leaves.close()
        assert engine.abort(cancelled.sequence_id)
        assert (await read_all(cancelled)).finish_reason == "abort"
        process.restart()
        await reconnected(engine)
        # The one that stays was paused before, and its reader has read nothing since.
        await until(engine, lambda stats: num_alive(stats) == stats.num_requests_paused == 1)
        stays.close()
        await until(engine, lambda stats: num_alive(stats) == stats.kv_blocks_used == 0)


async def test_streams_end_when_the_engine_has_ended_once_too_often(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with engine_at(process.address) as engine, anyio.create_task_group() as tasks:
        [stream] = await engine.open([make_spec(max_tokens=4000)])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        tasks.start_soon(partial(keep_running, process, max_restarts=0, on_restart=lambda *_: None))
        with anyio.fail_after(5):
            whole = await read_all(stream)
            await engine.wait_ended()
        assert whole.error is not None
        assert whole.error.code == "engine_dead"
        with pytest.raises(EngineDead):
            _ = process.address
        with pytest.raises(EngineDead):
            await engine.open([make_spec()])


async def test_a_sequence_that_ends_every_engine_is_failed_and_the_others_continue(make_spec: MakeSpec) -> None:
    """A client that sends it again must not end the server either: its ends don't count, and copies of it are refused."""
    process = scripted_process("choking")
    process.start()
    deaths: list[tuple[int, int]] = []
    explained: list[int] = []
    try:
        async with engine_at(process.address, explained.append) as engine, anyio.create_task_group() as supervising:
            supervise = partial(
                keep_running,
                process,
                max_restarts=2,
                on_restart=lambda *what: deaths.append(what),
                num_explained=lambda: sum(explained),
            )
            supervising.start_soon(supervise)
            good = [make_spec(max_tokens=900) for _ in range(3)]
            poison = make_spec([POISON, 1, 2])
            with anyio.fail_after(60):
                *wholes, given_up = await read_together(await engine.open([*good, poison]))
            with pytest.raises(EndsEngines):
                await engine.open([make_spec([POISON, 1, 2], seed=77)])
            await reconnected(engine)
            with pytest.raises(EndsEngines):
                await engine.open([make_spec([POISON, 1, 2], seed=78)])
            with anyio.fail_after(60):
                [other] = await read_together(await engine.open([make_spec([POISON, 3])]))
            supervising.cancel_scope.cancel()
    finally:
        process.stop()
    assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 900) for spec in good]
    assert given_up.error is not None
    assert given_up.error.code == other.error.code == "ends_engines"
    assert deaths == [(1, 1), (1, 2), (1, 1), (1, 2)]
    assert explained == [2, 2]


async def test_an_engine_that_runs_out_of_memory_continues_in_smaller_steps_and_that_is_no_restart_that_counts(
    make_spec: MakeSpec,
) -> None:
    """And a prompt that runs out of memory in smaller steps, too, is given up alone."""
    process = scripted_process("cramped")
    process.start()
    counted: list[tuple[int, int]] = []
    try:
        async with engine_at(process.address) as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(partial(keep_running, process, max_restarts=1, on_restart=lambda *what: counted.append(what)))
            running = [make_spec(max_tokens=300) for _ in range(2)]
            long, poison = make_spec(list(range(1, 101))), make_spec([POISON, *range(100)])
            with anyio.fail_after(60):
                streams = await engine.open(running)
                wholes = await read_together([*streams, *await engine.open([long])])
            assert counted == [(1, 0)]
            with anyio.fail_after(60):
                [given_up] = await read_together(await engine.open([poison]))
            await reconnected(engine)
            assert counted[:2] == [(1, 0)] * 2
            tasks.cancel_scope.cancel()
    finally:
        process.stop()
    assert [whole.token_ids for whole in wholes] == [
        continuation(spec.prompt_token_ids, spec.max_tokens) for spec in (*running, long)
    ]
    assert given_up.error is not None
    assert given_up.error.code == "ends_engines"


async def test_stopping_while_the_engine_is_lost_ends_the_streams(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with engine_at(process.address) as engine:
        [stream] = await engine.open([make_spec(max_tokens=4000)])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        await kill(process)
        await lost(engine)
    whole = await read_all(stream)
    assert whole.error is not None
    assert whole.error.code == "engine_dead"


def test_a_resumed_sequence_keeps_its_limits_and_repeats_nothing_to_its_reader(make_spec: MakeSpec) -> None:
    now = 100.0
    state = ResumeState(make_spec(max_tokens=9, prompt_logprobs=1, max_time_s=10.0), clock=lambda: now)
    first = TokenDelta([4], cached_tokens=16, queue_s=0.5)
    assert state.without_repeats(first) is first
    untouched = state.continuation()
    assert (untouched.generated_token_ids, untouched.sampling.prompt_logprobs) == ([], 1)
    state.token_ids.extend(first.token_ids)
    now += 4.0
    state.engine_lost()
    rest = state.continuation()
    assert (rest.generated_token_ids, rest.max_tokens, rest.sampling.prompt_logprobs, rest.max_time_s) == ([4], 9, None, 6.0)
    assert state.without_repeats(TokenDelta([5], cached_tokens=16, queue_s=0.1)) == TokenDelta([5])
    assert not state.is_out_of_time
    now += 6.0
    assert state.is_out_of_time


def test_reasoning_that_was_ended_is_not_begun_again_by_another_engine(make_spec: MakeSpec) -> None:
    marks = ReasoningMarks(opens=[[1]], closes=[[2]], answers=[[2]], ending=[[2]], has_begun=True)
    state = ResumeState(make_spec(reasoning=marks))
    assert state.continuation().reasoning_budget is None
    state.end_reasoning()
    assert state.continuation().reasoning_budget == 0


def test_a_sequence_is_suspect_when_engines_go_before_it_has_another_token(make_spec: MakeSpec) -> None:
    state = ResumeState(make_spec())
    state.engine_lost()
    assert state.is_suspect
    state.engine_lost()
    assert state.num_losses == 1, "no engine had it since"
    state.hand_over()
    state.token_ids.append(7)
    assert state.has_progressed
    state.engine_lost()
    assert (state.num_losses, state.is_suspect) == (1, False)


def test_a_suspect_is_given_up_when_an_engine_goes_that_had_no_other(make_spec: MakeSpec) -> None:
    state = ResumeState(make_spec())
    state.engine_lost()
    state.hand_over()
    state.engine_lost()
    assert not state.is_given_up, "it may have been another one"
    state.hand_over(is_alone=True)
    state.engine_lost()
    assert (state.is_given_up, state.num_losses) == (True, 3)


def test_restarts_come_back_with_time_and_with_what_explains_them() -> None:
    budget = RestartBudget(2)
    assert [budget.take(now, 0) for now in (0.0, 1.0, 2.0)] == [True, True, False]
    assert budget.take(3.0, 1), "one end is explained"
    assert not budget.take(4.0, 1)
    assert budget.take(1.0 + WINDOW_S, 1)
    assert budget.num_counted == 2


async def test_an_engine_that_was_stopped_is_killed_and_its_streams_continue(
    process: EngineProcess, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamserve.engine.remote.STATS_TIMEOUT_S", 0.2)
    monkeypatch.setattr("streamserve.engine.watchdog.POLL_INTERVAL_S", 0.05)
    reasons: list[str] = []
    async with engine_at(process.address) as engine, anyio.create_task_group() as tasks:
        spec = make_spec(max_tokens=900)
        [stream] = await engine.open([spec])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        tasks.start_soon(partial(keep_running, process, max_restarts=1, on_restart=lambda *_: None))
        tasks.start_soon(partial(kill_when_hung, engine, process, step_timeout_s=1.0, on_kill=reasons.append))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with anyio.fail_after(30):
            whole = await read_all(stream)
        tasks.cancel_scope.cancel()
    assert whole.token_ids == continuation(spec.prompt_token_ids, 900)
    assert len(reasons) == 1
    assert "not answered" in reasons[0]


async def test_an_engine_that_hangs_while_it_is_started_again_is_killed_and_its_streams_continue(
    process: EngineProcess, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamserve.engine.watchdog.START_TIMEOUT_S", 5.0)
    monkeypatch.setattr("streamserve.engine.watchdog.POLL_INTERVAL_S", 0.05)
    reasons: list[str] = []
    async with engine_at(process.address) as engine, anyio.create_task_group() as tasks:
        spec = make_spec(max_tokens=900)
        [stream] = await engine.open([spec])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        killed = process.pid
        assert killed is not None
        tasks.start_soon(partial(keep_running, process, max_restarts=9, on_restart=lambda *_: None))
        tasks.start_soon(partial(kill_when_hung, engine, process, step_timeout_s=5.0, on_kill=reasons.append))
        os.kill(killed, signal.SIGKILL)
        with anyio.fail_after(60):
            while process.pid in (killed, None):
                await anyio.lowlevel.checkpoint()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            whole = await read_all(stream)
        tasks.cancel_scope.cancel()
    assert whole.token_ids == continuation(spec.prompt_token_ids, 900)
    assert "not become ready" in reasons[0]
