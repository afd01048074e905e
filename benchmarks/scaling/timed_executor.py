"""A device whose steps last what a calibration says, and compute nothing: real engines around it show what time does to them.

Runs on the engine's event loop, in an engine process.
"""

from __future__ import annotations

import asyncio

import msgspec

from benchmarks.scaling.step_time import Calibration, StepTime, read_calibrations
from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo

SLOWDOWN = 5.0
"""Times that steps last longer than measured: a busy machine delays processes by milliseconds."""


def slowed(calibration: Calibration) -> Calibration:
    """The calibration of a device that is `SLOWDOWN` times as slow."""
    decode = [msgspec.structs.replace(step, ms=step.ms * SLOWDOWN) for step in calibration.decode]
    prompt_us, context_ns = calibration.prompt_us * SLOWDOWN, calibration.context_ns * SLOWDOWN
    return msgspec.structs.replace(calibration, decode=decode, prompt_us=prompt_us, context_ns=context_ns)


def slow_h200(config: EngineConfig, checkpoint: Checkpoint) -> TimedExecutor:
    """For an engine process: Qwen3-8B on one H200, slowed."""
    return TimedExecutor(slowed(read_calibrations()["8B, one H200"]), config)


class TimedExecutor:
    """Ends steps one after another, each when it has lasted; every token is the row's own number."""

    def __init__(self, calibration: Calibration, config: EngineConfig) -> None:
        self._step_time = StepTime(calibration)
        self._free_at = 0.0
        self._info = EngineInfo(
            model=config.model,
            architecture="timed",
            dtype="bfloat16",
            device="timed",
            max_model_len=config.max_model_len or 16384,
            vocab_size=1 << 31,
            num_blocks=calibration.kv_tokens // config.block_size,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
        )

    async def start(self) -> EngineInfo:
        return self._info

    def submit(self, plan: Plan) -> _TimedStep:
        decoding = [work for work in plan.work if work.count == 1]
        context = sum(work.start for work in decoding)
        prompt_tokens = sum(work.count for work in plan.work if work.count > 1)
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + self._step_time.step_s(len(decoding), context, prompt_tokens)
        return _TimedStep(StepResult(plan.step, [[work.row] for work in plan.work if work.num_sampled]), self._free_at)

    async def stop(self) -> None:
        self._free_at = 0.0


class _TimedStep:
    def __init__(self, result: StepResult, ends_at: float) -> None:
        self._result = result
        self._ends_at = ends_at

    async def result(self) -> StepResult:
        await asyncio.sleep(self._ends_at - asyncio.get_running_loop().time())
        return self._result
