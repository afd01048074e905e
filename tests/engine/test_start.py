"""An engine that starts on a thread while its API side does something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamserve.config import EngineConfig
from streamserve.engine.process.start import EngineStart
from streamserve.engine.remote import RemoteEngine
from streamserve.errors import ConfigError
from tests.engine.conftest import MakeSpec
from tests.support.reading import read_all

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
CONFIG = EngineConfig(model=str(ROOT / "benchmarks" / "configs" / "Qwen3-0.6B"), load_format="dummy", max_num_seqs=8)


def start(config: EngineConfig) -> EngineStart:
    return EngineStart(config, executor="tests.support.scripted:instant", compile_constraint=None)


async def test_what_was_found_and_started_serves(make_spec: MakeSpec) -> None:
    begun = start(CONFIG)
    try:
        started = begun.result()
        assert (started.config.model, started.checkpoint.format) == (str(started.checkpoint.path), "dummy")
        remote = RemoteEngine(started.processes[0].address)
        await remote.start()
        (stream,) = await remote.open([make_spec(max_tokens=3)])
        assert len((await read_all(stream)).token_ids) == 3
        await remote.stop()
    finally:
        begun.stop()
    assert started.processes[0].pid is None


async def test_a_model_that_is_not_there_is_told_to_who_waits() -> None:
    begun = start(EngineConfig(model="/nowhere/at/all"))
    with pytest.raises(ConfigError, match="no such file"):
        begun.result()
    begun.stop()


async def test_nothing_runs_after_a_stop() -> None:
    for _ in range(3):
        begun = start(CONFIG)
        begun.stop()
        # Either the start came first and was ended, or it found itself stopped.
        error = begun._outcome.exception()
        if error is None:
            assert begun.result().processes[0].pid is None
        begun.stop()
