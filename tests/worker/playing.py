"""A stepper on a device that captures, without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.kv_cache import allocate
from streamserve.worker.kv_layout import lay_out
from streamserve.worker.rows.rows import RankLimits, Rows
from streamserve.worker.step import StepRunner
from tests.support.stepping import Stepper
from tests.support.tiny_model import TinyLlama
from tests.support.windowed_model import WindowedModel

NUM_BLOCKS, ROWS, MAX_MODEL_LEN, STEP_TOKENS = 64, 8, 256, 64


class CapturingCpu(CpuDevice):
    """Uploads go where a capture reads them, and are counted, as are captures and replays."""

    captures = True

    def __init__(self) -> None:
        super().__init__()
        self.uploads = self.captured = self.replays = 0

    def buffer(self, num_words: int) -> Tensor:
        return torch.zeros(num_words, dtype=torch.int32)

    def upload(self, words: Tensor, into: Tensor | None = None) -> Tensor:
        self.uploads += 1
        return words.clone() if into is None else into[: len(words)].copy_(words)

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            self.replays += 1
            return work()

        self.captured += 1
        return replay


class Playing(Stepper):
    """A stepper on a device that captures, which counts its steps."""

    def __init__(self, tiny: TinyLlama | WindowedModel, in_flight: int, *, captures: bool = True) -> None:
        self.device, self.steps = CapturingCpu(), 0
        checkpoint = resolve(tiny.path)
        arch = read_arch(checkpoint.config)
        place = torch.device("cpu")
        with torch.inference_mode():
            model = load_model(
                checkpoint, arch, dtype=torch.float32, device=place, quantization="none", max_model_len=MAX_MODEL_LEN
            )
        layout = lay_out(
            arch.layer_states, max_model_len=MAX_MODEL_LEN, block_size=16, step_tokens=STEP_TOKENS, dtype=torch.float32
        )
        rows = Rows(self.device, RankLimits(ROWS, MAX_MODEL_LEN, 16, arch.vocab_size, layout.group_of))
        self._inner = StepRunner(self.device, model, rows, allocate(layout, NUM_BLOCKS, self.device))
        if captures:
            self._inner.capture(STEP_TOKENS)
        limits = SchedulerLimits(
            num_blocks=NUM_BLOCKS,
            block_size=16,
            windows=layout.groups.windows,
            max_num_seqs=ROWS,
            max_num_batched_tokens=STEP_TOKENS,
            max_model_len=MAX_MODEL_LEN,
        )
        super().__init__(self, limits, in_flight=in_flight)  # type: ignore[arg-type]

    def step(self, plan: object) -> object:
        self.steps += 1
        return self._inner.step(plan)  # type: ignore[arg-type]
