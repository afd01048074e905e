"""The ranks of an engine in processes of their own: two of a real model, and scripted ones that fail in every way there is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import anyio
import anyio.to_thread
import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, EngineDead, RankOutOfMemory
from streamserve.executor.group import CAUSE_S, GroupExecutor
from streamserve.executor.launchers.mp import ProcessLauncher
from streamserve.executor.messages import RankFailed, RankLoaded, RankMessage, StepDone, plan_decoder
from streamserve.process.framing import encode
from streamserve.scheduling.plan import Plan, RowGrowth, RowStart, RowWork, StepResult
from streamserve.types import EngineInfo, Sampling
from tests.support.tiny_model import TinyLlama

pytestmark = pytest.mark.asyncio

GREEDY = Sampling(seed=0, temperature=0.0)

INFO = EngineInfo(
    model="scripted",
    architecture="none",
    dtype="float32",
    kv_cache_dtype="float32",
    device="none",
    max_model_len=64,
    vocab_size=10,
    num_blocks=4,
    block_size=16,
    max_num_seqs=1,
)


class ScriptedRanks:
    """A launcher whose ranks a test plays: `ends` are their ends of the connections."""

    def __init__(self, world_size: int = 2) -> None:
        pairs = [socket.socketpair() for _ in range(world_size)]
        self.ends = [theirs for _, theirs in pairs]
        self._ours = [ours for ours, _ in pairs]
        self.stops = 0

    async def launch(self) -> list[socket.socket]:
        return self._ours

    def fate(self, rank: int) -> str:
        return "fell silent"

    async def stop(self) -> None:
        self.stops += 1
        for end in self.ends:
            end.close()

    def say(self, rank: int, message: RankMessage) -> None:
        self.ends[rank].sendall(encode(message))

    def load(self) -> None:
        for rank in range(len(self.ends)):
            self.say(rank, RankLoaded(INFO))

    def wait_disconnected(self, rank: int) -> None:
        """Return once the rank is told to exit."""
        while self.ends[rank].recv(1 << 16):
            continue

    def read_plan(self, rank: int) -> Plan:
        return next(plan_decoder().feed(self.ends[rank].recv(1 << 16)))


def plan(step: int) -> Plan:
    return Plan(step, [], [], [RowWork(0, 0, 1, 1)])


async def started(ranks: ScriptedRanks, **options: float) -> GroupExecutor:
    executor = GroupExecutor(ranks, **options)
    ranks.load()
    assert await executor.start() == INFO
    return executor


async def test_every_rank_gets_every_plan_and_the_first_one_answers() -> None:
    ranks = ScriptedRanks()
    executor = await started(ranks)
    handles = [executor.submit(plan(1)), executor.submit(plan(2))]
    assert [ranks.read_plan(rank) for rank in range(2)] == [plan(1), plan(1)]
    for step in (1, 2):
        ranks.say(0, StepDone(StepResult(step, [[step]])))
    assert [(await handle.result()).token_ids for handle in handles] == [[[1]], [[2]]]
    await executor.stop()
    await executor.stop()
    with pytest.raises(EngineDead, match="stopped"):
        await executor.submit(plan(3)).result()


async def test_a_rank_that_fails_or_leaves_fails_every_step_and_is_named() -> None:
    for message, reason in ((RankFailed("boom", False), "rank 1 failed: boom"), (None, "rank 1 fell silent")):
        ranks = ScriptedRanks()
        executor = await started(ranks)
        handles = [executor.submit(plan(1)), executor.submit(plan(2))]
        if message is None:
            ranks.ends[1].close()
        else:
            ranks.say(1, message)
        for handle in handles:
            with pytest.raises(EngineDead, match=reason):
                await handle.result()
        with pytest.raises(EngineDead, match=reason):
            await executor.submit(plan(3)).result()
        await anyio.to_thread.run_sync(ranks.wait_disconnected, 0)
        await executor.stop()


async def test_a_rank_that_runs_out_of_memory_ends_the_group_at_once_and_says_in_what_step() -> None:
    ranks = ScriptedRanks()
    executor = await started(ranks)
    handle = executor.submit(plan(1))
    ranks.say(1, RankFailed("no memory is left", False, 4096))
    with pytest.raises(RankOutOfMemory, match="rank 1 ran out of memory: no memory is left") as told, anyio.fail_after(CAUSE_S):
        await handle.result()
    assert told.value.num_tokens == 4096
    await anyio.to_thread.run_sync(ranks.wait_disconnected, 0)
    await executor.stop()


async def test_a_rank_that_ends_without_a_step_to_run_is_told_at_once_and_one_that_is_stopped_is_not() -> None:
    for is_lost in (True, False):
        ranks, losses = ScriptedRanks(), asyncio.Queue[EngineDead]()
        executor = GroupExecutor(ranks)
        ranks.load()
        await executor.start(losses.put_nowait)
        if is_lost:
            ranks.ends[1].close()
            assert "rank 1 fell silent" in (await losses.get()).message
        await executor.stop()
        assert losses.empty()


async def test_a_step_that_does_not_end_is_given_up_but_an_idle_group_is_not() -> None:
    ranks = ScriptedRanks()
    executor = await started(ranks, step_timeout_s=0.2)
    done = executor.submit(plan(1))
    ranks.say(0, StepDone(StepResult(1, [[1]])))
    await done.result()
    idle = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.3, idle.set_result, None)
    await idle
    hung = executor.submit(plan(2))
    with pytest.raises(EngineDead, match=r"has not ended for 0\.2 s: a rank hangs"), anyio.fail_after(5):
        await hung.result()
    await executor.stop()


async def test_settings_that_a_rank_refuses_are_told_at_start_and_the_others_are_ended() -> None:
    ranks = ScriptedRanks()
    executor = GroupExecutor(ranks)
    ranks.say(0, RankLoaded(INFO))
    ranks.say(1, RankFailed("lower --tensor-parallel-size to 1", True))
    with pytest.raises(ConfigError, match="lower --tensor-parallel-size"):
        await executor.start()
    assert ranks.stops == 1


async def test_a_rank_that_ends_while_loading_is_told_at_start() -> None:
    ranks = ScriptedRanks()
    ranks.ends[1].close()
    with pytest.raises(EngineDead, match="rank 1 fell silent"):
        await GroupExecutor(ranks).start()


async def test_a_rank_that_ends_as_soon_as_it_has_loaded_is_told_at_start_and_the_others_are_ended() -> None:
    ranks = ScriptedRanks()
    ranks.say(0, RankLoaded(INFO))
    ranks.say(1, RankLoaded(INFO))
    ranks.say(1, RankFailed("no memory is left", False, 4096))
    with pytest.raises(RankOutOfMemory, match="no memory is left"):
        await GroupExecutor(ranks).start()
    assert ranks.stops == 1


async def test_a_peer_that_is_no_rank_is_not_listened_to() -> None:
    ranks = ScriptedRanks()
    executor = await started(ranks)
    handle = executor.submit(plan(1))
    ranks.ends[1].sendall(b"\x00\x00\x00\x01\xc1")
    with pytest.raises(EngineDead, match="rank 1 broke the protocol"):
        await handle.result()
    await executor.stop()


async def test_two_processes_give_the_tokens_of_one_until_one_of_them_is_killed(tiny: TinyLlama) -> None:
    config = EngineConfig(model=tiny.path, device="cpu", dtype="float32", max_num_seqs=4, tensor_parallel_size=2)
    launcher = ProcessLauncher(config, resolve(tiny.path))
    executor = GroupExecutor(launcher)
    info = await executor.start()
    assert info.device.startswith("2 x cpu")
    assert list(info.startup_s) == ["imports", "weights", "kv_cache", "warmup"]
    prompt = [5, 6, 7]
    start, growth = RowStart(0, prompt, 3, GREEDY), RowGrowth(0, 0, 0, [0])
    handles = [executor.submit(Plan(1, [start], [growth], [RowWork(0, 0, 3, 1)]))]
    handles += [executor.submit(Plan(step, [], [], [RowWork(0, step + 1, 1, 1)])) for step in range(2, 8)]
    results = [await handle.result() for handle in handles]
    assert [result.token_ids[0][0] for result in results] == tiny.greedy(prompt, 7)

    pids = launcher.pids
    os.kill(pids[1], signal.SIGKILL)
    with anyio.fail_after(10), pytest.raises(EngineDead, match="rank 1 was killed by SIGKILL"):
        for step in range(8, 1000):
            await executor.submit(Plan(step, [], [], [RowWork(0, step + 1, 1, 1)])).result()
    await executor.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
