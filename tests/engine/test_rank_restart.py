"""Streams that outlive a rank: one of two is killed or stopped under them, and the engine starts again with both."""

from __future__ import annotations

import os
import signal
import subprocess
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
from tests.support.reading import read_together
from tests.support.specs import make_spec
from tests.support.tiny_model import TinyLlama

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def children_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "streamserve.executor.rank"], capture_output=True, text=True, check=True
    )
    return [int(child) for child in found.stdout.split()]


async def test_streams_go_on_with_the_next_token_when_a_rank_is_killed(tmp_path: Path) -> None:
    tiny = TinyLlama(tmp_path)
    config = EngineConfig(model=tiny.path, device="cpu", dtype="float32", max_num_seqs=4, tensor_parallel_size=2)
    process = EngineProcess(config, resolve(tiny.path))
    restarts: list[int] = []
    engine = RemoteEngine(process.start(), reconnects=True)
    try:
        await engine.start()
        prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
        specs = [make_spec(str(place), prompt, seed=0, temperature=0.0, max_tokens=150) for place, prompt in enumerate(prompts)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(keep_running, process, max_restarts=1, on_restart=lambda status, _: restarts.append(status))
            )
            streams = await engine.open(specs)
            assert process.pid is not None
            ranks = await anyio.to_thread.run_sync(children_of, process.pid)
            os.kill(ranks[1], signal.SIGKILL)
            with anyio.fail_after(90):
                wholes = await read_together(streams)
            tasks.cancel_scope.cancel()
        assert restarts == [1]
        assert [whole.token_ids for whole in wholes] == [tiny.greedy(prompt, 150) for prompt in prompts]
    finally:
        await engine.stop()
        process.stop()
