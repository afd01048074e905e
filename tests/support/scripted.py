"""An executor that needs no model: next tokens follow from the row's earlier ones, steps end when the test says so.

Stands in at the `Executor` boundary. It keeps rows as a device does, so a plan that names a wrong row, position or token shows
in the tokens that come out.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

import anyio

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, RankOutOfMemory
from streamserve.executor.base import OnLost, ignore_loss
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo
from tests.support.process_settings import process_settings

VOCAB_SIZE = 1000
POISON = 999


def next_token(token_ids: list[int]) -> int:
    """What the script says after these tokens."""
    return (token_ids[-1] * 31 + len(token_ids) * 7 + token_ids[0]) % VOCAB_SIZE


def continuation(prompt: list[int], count: int) -> list[int]:
    """What the script generates after a prompt."""
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(next_token(token_ids))
    return token_ids[len(prompt) :]


class ScriptedExecutor:
    """Runs plans by the script.

    gated       steps wait for `release`; otherwise they end at once
    num_blocks  of 16 tokens each
    lose        call it with a reason: the ranks have ended
    """

    def __init__(self, *, gated: bool = False, num_blocks: int = 64, max_num_seqs: int = 8, max_model_len: int = 512) -> None:
        self.info = EngineInfo(
            model="scripted",
            architecture="scripted",
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            num_blocks=num_blocks,
            block_size=16,
            max_num_seqs=max_num_seqs,
        )
        self.gated = gated
        self.submitted: deque[Plan] = deque(maxlen=1000)
        self.is_stopped = False
        self.failure: Exception | None = None
        self.lose: OnLost = ignore_loss
        self._rows: dict[int, list[int]] = {}
        self._waiting: deque[_Handle] = deque()

    async def start(self, on_lost: OnLost = ignore_loss) -> EngineInfo:
        self.lose = on_lost
        return self.info

    def submit(self, plan: Plan) -> _Handle:
        self.submitted.append(plan)
        handle = _Handle(self._compute(plan))
        if self.gated:
            self._waiting.append(handle)
        else:
            handle.end(self.failure)
        return handle

    async def stop(self) -> None:
        self.is_stopped = True

    @property
    def num_waiting(self) -> int:
        """Steps submitted and not yet released."""
        return len(self._waiting)

    def release(self, count: int = 1) -> None:
        """End the oldest `count` steps, with the failure if one is set."""
        for _ in range(count):
            self._waiting.popleft().end(self.failure)

    def open_gate(self) -> None:
        """End all steps, now and from now on."""
        self.gated = False
        self.release(len(self._waiting))

    def _compute(self, plan: Plan) -> StepResult:
        for start in plan.starts:
            self._rows[start.row] = list(start.token_ids)
        sampled: list[list[int]] = []
        for work in plan.work:
            token_ids = self._rows[work.row]
            known = work.start + work.count
            assert known <= len(token_ids), f"row {work.row} has {len(token_ids)} tokens, the plan computes up to {known}"
            if work.num_sampled:
                assert known == len(token_ids), f"row {work.row}: sampled before all of its tokens were computed"
                token_ids.append(next_token(token_ids))
                sampled.append([token_ids[-1]])
        return StepResult(plan.step, sampled)


class _Handle:
    def __init__(self, result: StepResult) -> None:
        self._result = result
        self._failure: Exception | None = None
        self._ended = anyio.Event()

    def end(self, failure: Exception | None) -> None:
        self._failure = failure
        self._ended.set()

    async def result(self) -> StepResult:
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self._result


def instant(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process: as many sequences as the configuration says, steps that end at once."""
    return ScriptedExecutor(num_blocks=16384, max_num_seqs=config.max_num_seqs, max_model_len=config.max_model_len or 4096)


def steady(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process whose streams last: as `instant`, a step every two milliseconds."""
    executor = instant(config, checkpoint)
    submit = executor.submit

    def submit_and_last(plan: Plan) -> _LastingStep:
        return _LastingStep(submit(plan))

    executor.submit = submit_and_last  # type: ignore[method-assign,assignment]
    return executor


class _LastingStep:
    def __init__(self, handle: _Handle) -> None:
        self._handle = handle

    async def result(self) -> StepResult:
        await anyio.sleep(0.002)
        return await self._handle.result()


def choking(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process that one prompt is too much for: a row that begins with `POISON` makes its step fail."""
    executor = instant(config, checkpoint)
    submit = executor.submit

    def choke(plan: Plan) -> _Handle:
        if any(start.token_ids[0] == POISON for start in plan.starts):
            executor.failure = RuntimeError("the device is gone")
        return submit(plan)

    executor.submit = choke  # type: ignore[method-assign]
    return executor


def cramped(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process among whose ranks one runs out of memory in steps of more than 64 tokens, until they are divided.

    Of rows that begin with `POISON` it does in any step.
    """
    executor = instant(config, checkpoint)
    submit = executor.submit
    most = config.most_step_tokens or config.max_num_batched_tokens

    def cram(plan: Plan) -> _Handle:
        num_tokens = min(plan.num_tokens, most)
        if num_tokens > 64 or any(start.token_ids[0] == POISON for start in plan.starts):
            executor.failure = RankOutOfMemory("no memory is left", num_tokens=num_tokens)
        return submit(plan)

    executor.submit = cram  # type: ignore[method-assign]
    return executor


def reporting_settings(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process that writes its settings, as its first step finds them, to the file that `SETTINGS_FILE` names."""
    executor = instant(config, checkpoint)
    submit = executor.submit

    def report(plan: Plan) -> _Handle:
        Path(os.environ["SETTINGS_FILE"]).write_text(json.dumps(process_settings()))
        return submit(plan)

    executor.submit = report  # type: ignore[method-assign]
    return executor


def failing_start(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process that can't start."""
    executor = instant(config, checkpoint)

    async def start(on_lost: OnLost) -> EngineInfo:
        raise ConfigError("the KV cache does not fit: lower --max-model-len")

    executor.start = start  # type: ignore[method-assign]
    return executor


def hanging_start(config: EngineConfig, checkpoint: Checkpoint) -> ScriptedExecutor:
    """For an engine process whose model never finishes loading, and whose rank can't be stopped meanwhile."""
    executor = instant(config, checkpoint)

    async def hang(on_lost: OnLost = ignore_loss) -> None:
        await anyio.sleep_forever()

    executor.start = hang  # type: ignore[method-assign,assignment]
    executor.stop = hang  # type: ignore[method-assign]
    return executor
