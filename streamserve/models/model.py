"""What every family is to the worker and the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.inputs import StepInputs
from streamserve.models.layers import Destination, Embedding, Linear, Placement, RmsNorm, Stored, TiedLinear
from streamserve.models.rope import Rope
from streamserve_kernels import norm_linear


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


class RopeTables(nn.Module):
    """Cosines and sines for every layer; layers with the same rotation share a table."""

    def __init__(self, ropes: tuple[Rope | None, ...], length: int, device: torch.device) -> None:
        super().__init__()
        # Without memory torch would load its compiler, some 800 modules, for arithmetic: that is done where there is some.
        where = torch.device("cpu") if device.type == "meta" else device
        self._by_rope = {rope: rope.table(length, where).to(device) for rope in set(ropes) if rope is not None}
        self.by_layer: list[Tensor | None] = [self._by_rope[rope] if rope is not None else None for rope in ropes]


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and the final norm and head that go back to logits."""

    def __init__(self, arch: ModelArch, place: Placement, *, norm_offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.eps, self.softcap = arch.embedding_scale, arch.norm_eps, arch.logit_softcap
        self.table = Embedding("model.embed_tokens", arch.vocab_size, arch.hidden_size, place)
        self.norm = RmsNorm("model.norm", arch.hidden_size, place, offset=norm_offset)
        self.head: Linear = (
            TiedLinear(self.table)
            if arch.tied_embeddings
            else Linear("", {"lm_head": arch.vocab_size}, arch.hidden_size, place)
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [tokens] -> [tokens, hidden_size]"""
        embedded = F.embedding(token_ids, self.table.weight)
        return embedded if self.scale == 1.0 else embedded * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size] -> [rows, vocab_size]"""
        logits = norm_linear(hidden, self.norm.weight, self.eps, self.head.weight)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
