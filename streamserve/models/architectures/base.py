"""What every family is to the worker and the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.linear import Linear
from streamserve.models.weights.destination import Destination, Stored


class CausalModel(nn.Module, ABC):
    """A decoder-only language model over a paged KV cache.

    Call it under `torch.inference_mode()`; it holds no state between steps.
    """

    def __init__(self, arch: ModelArch) -> None:
        super().__init__()
        self.arch = arch

    @abstractmethod
    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        """Run every layer over a step's tokens and write their keys and values.

        kv_caches  per layer [blocks, 2, kv_heads, block_size, head_dim], of the model's dtype
        returns    [tokens, hidden_size], what `logits` takes
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size], rows picked from what `forward` returned -> [rows, vocab_size], of the model's dtype."""

    def destinations(self) -> Iterator[Destination]:
        """Where each tensor of the checkpoint goes."""
        for module in self.modules():
            if isinstance(module, Stored):
                yield from module.destinations()

    def linears(self) -> Iterator[Linear]:
        """Every linear layer."""
        return (module for module in self.modules() if isinstance(module, Linear))
