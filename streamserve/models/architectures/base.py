"""What every model is to the worker and the loader, and what the families with layers of ours have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from streamserve.models.arch import Arch, ModelArch
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.layers.linear import Projection
from streamserve.models.rope import RopeTables
from streamserve.models.weights.destination import Destination, Stored
from streamserve.models.weights.source import StoredTensor, WeightSource


class Layer(nn.Module, ABC):
    """One layer: what comes before attention, attention, and what comes after it."""

    attention: Attention

    @abstractmethod
    def before_attention(self, hidden: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> queries, keys and values [tokens, (q_heads + 2 * kv_heads) * head_dim]"""

    @abstractmethod
    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden [tokens, hidden_size], not to be used afterwards, attended [tokens, q_heads * head_dim] -> the next hidden"""

    def forward(self, hidden: Tensor, inputs: StepInputs, cos_sin: Tensor | None, kv_cache: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape; writes keys and values.

        cos_sin   [positions, rot_dim] of its rotation; None where nothing is rotated
        kv_cache  [blocks, 2, kv_heads, block_size, head_dim]
        """
        attended = self.attention(self.before_attention(hidden), inputs, cos_sin, kv_cache)
        return self.after_attention(hidden, attended)


class CausalModel(nn.Module, ABC):
    """A decoder-only language model over a paged KV cache.

    Call it under `torch.inference_mode()`; it holds no state between steps.
    """

    arch: Arch

    @abstractmethod
    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        """Run every layer over a step's tokens and write their keys and values.

        kv_caches  per layer [blocks, 2, kv_heads, block_size, head_dim], of the dtype that it was built for
        returns    [tokens, hidden_size], what `logits` takes
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size], rows picked from what `forward` returned -> [rows, vocab_size], of the model's dtype."""

    @abstractmethod
    def states(self, hidden: Tensor) -> Tensor:
        """hidden as of `logits` -> [rows, state_size], behind the model's last norm: what embeddings are made of."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Numbers of one of the `states`."""

    def destinations(self) -> Iterator[Destination]:
        """Where each tensor of the checkpoint goes."""
        for module in self.modules():
            if isinstance(module, Stored):
                yield from module.destinations()

    def stored_tensors(self, source: WeightSource) -> Iterator[StoredTensor]:
        """A checkpoint's tensors, as `destinations` names them."""
        return source.tensors()

    def finish(self) -> None:
        """Make ready to run, once every destination is filled."""
        for module in list(self.modules()):
            if isinstance(module, Stored):
                module.finish()
        for module in self.modules():
            # Attributes that only torch's registry knows are found by Python code of its own, some 20 times a layer: several
            # percent of a step of one token on a CPU.
            vars(module).update(module.named_children())

    def linears(self) -> Iterator[Projection]:
        """Every linear, those of layers and the head."""
        return (module for module in self.modules() if isinstance(module, Projection))


class LayeredModel(CausalModel):
    """A model of layers of ours: an embedding, layers around attention, and a head."""

    arch: ModelArch

    def __init__(self, arch: ModelArch, layers: Sequence[Layer], ropes: RopeTables) -> None:
        super().__init__()
        self.arch = arch
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers))
        self.ropes = ropes

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        hidden = self.embed(inputs)
        for layer, cos_sin, kv_cache in zip(self.layers, self.ropes.by_layer, kv_caches, strict=True):
            hidden = layer(hidden, inputs, cos_sin, kv_cache)
        return hidden

    @abstractmethod
    def embed(self, inputs: StepInputs) -> Tensor:
        """What the first layer takes: [tokens, hidden_size]."""
