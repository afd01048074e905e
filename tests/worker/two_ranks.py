"""Two ranks of one model, each on a thread of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamserve.config import EngineConfig
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.types import EngineInfo
from tests.support.ranks import RankThreads
from tests.support.stepping import Stepper

STEP_TOKENS = 24


def config_of(folder: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=STEP_TOKENS,
        max_model_len=64,
        kv_cache_memory=1 << 20,
        **changes,
    )


def stepper_of(runner: Any, info: EngineInfo, num_blocks: int) -> Stepper:
    limits = SchedulerLimits(
        num_blocks=num_blocks,
        block_size=info.block_size,
        windows=info.windows,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=STEP_TOKENS,
        max_model_len=info.max_model_len,
    )
    return Stepper(runner, limits)


@contextmanager
def two_ranks(folder: Path, **changes: Any) -> Iterator[tuple[RankThreads, EngineInfo]]:
    with RankThreads(config_of(folder, **changes), 2) as ranks:
        yield ranks, ranks.load()
