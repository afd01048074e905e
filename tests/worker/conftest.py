"""One tiny model for the room, and runners that serve it in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig, KvCacheDType, replace
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.worker.runner import Runner
from tests.support.ranks import RankThreads
from tests.support.stepping import Stepper
from tests.support.tiny_model import TinyLlama

BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every operation crawl where other processes want their cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    return TinyLlama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def stepper(request: pytest.FixtureRequest, tiny: TinyLlama) -> Callable[..., Stepper]:
    """Makes a stepper over a fresh runner: how many blocks, how large a step, how many rows, steps in flight, which cache."""

    def make(
        *,
        num_blocks: int = 64,
        step_tokens: int = 64,
        rows: int = 8,
        in_flight: int = 2,
        kv_cache_dtype: KvCacheDType = "auto",
    ) -> Stepper:
        config = EngineConfig(
            model=tiny.path,
            device=request.param,
            dtype="float32",
            max_num_seqs=rows,
            max_num_batched_tokens=step_tokens,
            max_model_len=min(256, num_blocks * 16),
            kv_cache_memory=num_blocks * BLOCK_BYTES // (1 if kv_cache_dtype == "auto" else 4),
            kv_cache_dtype=kv_cache_dtype,
        )
        runner = Runner(config, resolve(tiny.path))
        info = runner.load()
        assert info.num_blocks == num_blocks
        limits = SchedulerLimits(
            num_blocks=num_blocks,
            block_size=16,
            max_num_seqs=rows,
            max_num_batched_tokens=step_tokens,
            max_model_len=info.max_model_len,
        )
        return Stepper(runner, limits, in_flight=in_flight)

    return make


@pytest.fixture
def rank_stepper(tiny: TinyLlama) -> Iterator[Callable[..., Stepper]]:
    """Makes a stepper over two ranks, in steps of up to 64 tokens; settings as in `EngineConfig`."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Stepper:
            config = EngineConfig(
                model=tiny.path,
                device="cpu",
                dtype="float32",
                max_num_seqs=8,
                max_num_batched_tokens=64,
                max_model_len=256,
                kv_cache_memory=64 * BLOCK_BYTES // 2,
            )
            ranks = stack.enter_context(RankThreads(replace(config, **settings), 2))
            info = ranks.load()
            limits = SchedulerLimits(
                num_blocks=info.num_blocks,
                block_size=16,
                max_num_seqs=8,
                max_num_batched_tokens=64,
                max_model_len=info.max_model_len,
            )
            return Stepper(ranks, limits)

        yield make
