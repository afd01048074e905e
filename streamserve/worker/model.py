"""What a worker asks of a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from streamserve.models.inputs import StepInputs


class Model(Protocol):
    """A causal language model over a paged KV cache."""

    def __call__(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        """Hidden states [tokens, hidden]; writes the step's keys and values into the caches."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[lines, hidden] -> [lines, vocab]."""
        ...
