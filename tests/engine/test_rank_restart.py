"""Streams that outlive a rank: one of two is killed, stopped or out of memory, and the engine starts again with both."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import keep_running
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.watchdog import kill_when_hung
from streamserve.fail_points import VARIABLE, arm, disarm
from streamserve.worker.step_memory import OUT_OF_MEMORY, OUT_OF_MEMORY_AMONG_RANKS
from tests.engine.processes import lost, reconnected
from tests.support.reading import read_together
from tests.support.specs import make_spec
from tests.support.tiny_model import TinyLlama

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [3 + token % 90 for token in range(80)]]
LENGTH = 60
RESTART_S = 90


class Serving:
    """Two ranks of a tiny model, and those who keep them running.

    restarts  (exit status, restarts that count)
    kills     why the watchdog killed the engine
    """

    def __init__(self, tiny: TinyLlama, process: EngineProcess, engine: RemoteEngine) -> None:
        self.process, self.engine = process, engine
        self.restarts: list[tuple[int, int]] = []
        self.kills: list[str] = []
        self._tiny = tiny

    async def generate(self) -> None:
        """Every prompt gets its tokens, whatever happens meanwhile."""
        specs = [
            make_spec(f"{id(self)}-{place}", prompt, seed=0, temperature=0.0, max_tokens=LENGTH)
            for place, prompt in enumerate(PROMPTS)
        ]
        with anyio.fail_after(RESTART_S):
            wholes = await read_together(await self.engine.open(specs))
        assert [whole.token_ids for whole in wholes] == [self._tiny.greedy(prompt, LENGTH) for prompt in PROMPTS]

    async def signal_rank(self, rank: int, number: signal.Signals) -> None:
        ranks = await anyio.to_thread.run_sync(children_of, self.process.pid)
        os.kill(ranks[rank], number)

    def count_restart(self, status: int, num_counted: int) -> None:
        self.restarts.append((status, num_counted))


@asynccontextmanager
async def serving(folder: Path, *, max_restarts: int = 1, step_timeout_s: float = 60.0) -> AsyncIterator[Serving]:
    tiny = TinyLlama(folder)
    config = EngineConfig(
        model=tiny.path,
        device="cpu",
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=64,
        tensor_parallel_size=2,
    )
    process = EngineProcess(config, resolve(tiny.path))
    engine = RemoteEngine(process.start(), reconnects=True)
    try:
        await engine.start()
        serving = Serving(tiny, process, engine)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(keep_running, process, max_restarts=max_restarts, on_restart=serving.count_restart))
            tasks.start_soon(
                partial(kill_when_hung, engine, process, step_timeout_s=step_timeout_s, on_kill=serving.kills.append)
            )
            yield serving
            tasks.cancel_scope.cancel()
    finally:
        await engine.stop()
        process.stop()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "streamserve.executor.rank"], capture_output=True, text=True, check=True
    )
    return [int(child) for child in found.stdout.split()]


async def test_streams_go_on_with_the_next_token_when_a_rank_is_killed_and_idle_engines_notice_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, max_restarts=2) as served:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served.generate)
            await served.signal_rank(1, signal.SIGKILL)
        assert served.restarts == [(1, 1)]
        await served.signal_rank(1, signal.SIGKILL)
        await lost(served.engine)
        await reconnected(served.engine)
        assert served.restarts == [(1, 1), (1, 2)]
        await served.generate()


async def test_streams_go_on_when_a_rank_stands_still_and_it_is_killed_with_its_engine(tmp_path: Path) -> None:
    async with serving(tmp_path, step_timeout_s=4.0) as served:
        await served.generate()
        stopped = (await anyio.to_thread.run_sync(children_of, served.process.pid))[1]
        os.kill(stopped, signal.SIGSTOP)
        await served.generate()
        assert served.restarts == [(-signal.SIGKILL, 1)]
        assert ["a step has not ended" in reason for reason in served.kills] == [True]
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)


async def test_a_rank_that_runs_out_of_memory_in_the_middle_of_a_step_or_before_it_costs_no_stream_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = tmp_path / "faults"
    monkeypatch.setenv(VARIABLE, str(faults))
    async with serving(tmp_path, max_restarts=0) as served:
        arm(faults, OUT_OF_MEMORY_AMONG_RANKS, at_least=40)
        await served.generate()
        assert served.restarts == [(1, 0)], "it runs out of memory again"
        assert (await served.engine.stats()).divided_steps >= 1
        arm(faults, OUT_OF_MEMORY, at_least=12)
        await served.generate()
        assert disarm(faults, OUT_OF_MEMORY) == 0
        assert served.restarts == [(1, 0)], "ranks that agree need no restart"
