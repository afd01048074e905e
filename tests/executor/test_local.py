"""The local executor: two threads around one rank, on a real event loop and a real two-layer model."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, EngineDead
from streamserve.executor.local import LocalExecutor
from streamserve.scheduling.plan import Plan, RowGrowth, RowStart, RowWork
from streamserve.types import Sampling
from tests.support.tiny_model import TinyLlama

RankThreads = Callable[[], set[threading.Thread]]

GREEDY = Sampling(seed=0, temperature=0.0)


@pytest.fixture
def checkpoint(tiny: TinyLlama) -> Checkpoint:
    return resolve(tiny.path)


def make(checkpoint: Checkpoint, **settings: object) -> LocalExecutor:
    defaults: dict[str, object] = {"device": "cpu", "dtype": "float32", "max_num_seqs": 4}
    return LocalExecutor(EngineConfig(model=str(checkpoint.path), **{**defaults, **settings}), checkpoint)  # type: ignore[arg-type]


@pytest_asyncio.fixture
async def executor(checkpoint: Checkpoint) -> AsyncIterator[LocalExecutor]:
    executor = make(checkpoint)
    yield executor
    await executor.stop()


def prefill(step: int, prompt: list[int], row: int = 0) -> Plan:
    start, growth = RowStart(row, prompt, len(prompt), GREEDY), RowGrowth(row, 0, 0, [row])
    return Plan(step, [start], [growth], [RowWork(row, 0, len(prompt), True)])


def decode(step: int, position: int, row: int = 0) -> Plan:
    return Plan(step, [], [], [RowWork(row, position, 1, 1)])


@pytest.fixture
def rank_threads() -> RankThreads:
    """The threads started since, but for those of others."""
    before = set(threading.enumerate())
    return lambda: {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("streamserve-")}


@pytest.mark.asyncio
async def test_steps_run_in_the_order_submitted_and_feed_each_other(tiny: TinyLlama, executor: LocalExecutor) -> None:
    info = await executor.start()
    assert info.model == tiny.path
    assert list(info.startup_s) == ["imports", "weights", "kv_cache", "warmup"]
    handles = [executor.submit(prefill(1, [5, 6, 7]))]
    handles += [executor.submit(decode(step, step + 1)) for step in range(2, 8)]
    results = [await handle.result() for handle in handles]
    assert [result.step for result in results] == list(range(1, 8))
    assert [result.token_ids[0][0] for result in results] == tiny.greedy([5, 6, 7], 7)


@pytest.mark.asyncio
async def test_the_event_loop_stays_free_while_the_model_loads(executor: LocalExecutor) -> None:
    starting = asyncio.ensure_future(executor.start())
    await asyncio.sleep(0)
    assert not starting.done()
    assert (await starting).max_num_seqs == 4


@pytest.mark.asyncio
async def test_the_callers_garbage_collector_is_left_alone(executor: LocalExecutor) -> None:
    frozen = gc.get_freeze_count()
    await executor.start()
    assert gc.get_freeze_count() == frozen


@pytest.mark.asyncio
async def test_a_failed_step_raises_and_so_do_all_later_ones(executor: LocalExecutor) -> None:
    await executor.start()
    good = executor.submit(prefill(1, [5, 6, 7]))
    bad = executor.submit(Plan(2, [], [], [RowWork(3, 0, 1, 1)]))
    queued = executor.submit(decode(3, 3))
    assert (await good.result()).step == 1
    with pytest.raises(LookupError, match="row 3"):
        await bad.result()
    for handle in (queued, executor.submit(decode(4, 4))):
        with pytest.raises(EngineDead, match="step 2 failed"):
            await handle.result()


@pytest.mark.asyncio
async def test_settings_that_cannot_work_are_told_at_start(checkpoint: Checkpoint, rank_threads: RankThreads) -> None:
    executor = make(checkpoint, max_model_len=100_000)
    with pytest.raises(ConfigError, match="--max-model-len"):
        await executor.start()
    with pytest.raises(EngineDead):
        await executor.submit(decode(1, 0)).result()
    await executor.stop()
    assert rank_threads() == set()


@pytest.mark.asyncio
async def test_stop_runs_what_was_submitted_and_joins_the_threads(executor: LocalExecutor, rank_threads: RankThreads) -> None:
    await executor.start()
    assert len(rank_threads()) == 2
    handles = [executor.submit(prefill(1, [5, 6])), executor.submit(decode(2, 2))]
    await executor.stop()
    assert [(await handle.result()).step for handle in handles] == [1, 2]
    assert rank_threads() == set()
    with pytest.raises(EngineDead, match="stopped"):
        await executor.submit(decode(3, 3)).result()
    await executor.stop()


@pytest.mark.asyncio
async def test_stop_before_start_and_stop_while_loading(executor: LocalExecutor, rank_threads: RankThreads) -> None:
    await executor.stop()
    starting = asyncio.ensure_future(executor.start())
    await asyncio.sleep(0)
    await executor.stop()
    assert rank_threads() == set()
    assert (await starting).max_num_seqs == 4


@pytest.mark.asyncio
async def test_a_cancelled_waiter_leaves_the_rank_running(executor: LocalExecutor) -> None:
    await executor.start()
    waiting = asyncio.ensure_future(executor.submit(prefill(1, [5, 6])).result())
    await asyncio.sleep(0)
    waiting.cancel()
    assert (await executor.submit(decode(2, 2)).result()).step == 2


def test_the_executor_imports_no_torch_before_it_starts() -> None:
    code = "import sys, streamserve.executor.local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
