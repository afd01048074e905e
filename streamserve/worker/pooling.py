"""Prompts pooled into vectors: of the last token's state, or of the mean of all of them.

`compute` and `keep` run on the launch thread, `read` on the wait thread. Means of prompts that take several steps are summed
up in float32, by row, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from streamserve.models.architectures.base import CausalModel
from streamserve.scheduling.plan import RowWork
from streamserve.types import Pooling
from streamserve.worker.device.base import Device
from streamserve.worker.rows.rows import PooledRow, Rows


@dataclass(frozen=True, slots=True)
class PooledVector:
    """The vector of one row's prompt, [dimensions] float32, on its way to the host."""

    row: int
    values: Tensor

    def read(self) -> bytes:
        """Its bytes. Only after the step's event has passed."""
        values: bytes = self.values.numpy().tobytes()
        return values


@dataclass(frozen=True, slots=True)
class PooledStep:
    """What one step adds: vectors of prompts that it has finished, and sums, by row, of those that go on."""

    vectors: list[PooledVector]
    sums: dict[int, Tensor]


class PromptPooling:
    """Pools the prompts of the rows that say so."""

    def __init__(self, device: Device, model: CausalModel, rows: Rows) -> None:
        self._device = device
        self._model = model
        self._rows = rows
        self._sums: dict[int, Tensor] = {}

    def compute(self, work: Sequence[RowWork], hidden: Tensor) -> PooledStep:
        """Pool a step's prompts; changes nothing until `keep`, so that a step that fails behind it can be run again.

        hidden  [tokens, hidden_size], of the work's tokens one after another
        """
        step = PooledStep([], {})
        if not self._rows.pooled:
            return step
        first = 0
        for item in work:
            pooled = self._rows.pooled.get(item.row)
            if pooled is not None:
                self._add(step, item, pooled, hidden[first : first + item.count])
            first += item.count
        return step

    def keep(self, step: PooledStep) -> None:
        """The step was launched: later ones go on from its sums."""
        self._sums |= step.sums
        for vector in step.vectors:
            self._sums.pop(vector.row, None)

    def _add(self, step: PooledStep, item: RowWork, pooled: PooledRow, hidden: Tensor) -> None:
        is_last = item.start + item.count == pooled.num_tokens
        if pooled.pooling.kind == "last":
            if is_last:
                step.vectors.append(self._vector(item.row, self._model.states(hidden[-1:])[0].float(), pooled.pooling))
            return
        total = self._model.states(hidden).sum(dim=0, dtype=torch.float32)
        if item.start:
            total = total + self._sums[item.row]
        if is_last:
            step.vectors.append(self._vector(item.row, total / pooled.num_tokens, pooled.pooling))
        else:
            step.sums[item.row] = total

    def _vector(self, row: int, state: Tensor, pooling: Pooling) -> PooledVector:
        """state  [state_size] float32"""
        kept = state[: pooling.dimensions]
        return PooledVector(row, self._device.download(F.normalize(kept, dim=0) if pooling.normalize else kept.contiguous()))
