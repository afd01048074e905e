"""A mixture of experts as config.json and a checkpoint describe it: plain values, a field of `ModelArch`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from streamserve_kernels import Activation, RoutingRule

_PACKED_ENDS = ("qweight", "weight_packed")
"""What weights of 4-bit integers are called, in place of "weight"."""


@dataclass(frozen=True)
class ExpertTensors:
    """One way in which checkpoints store the experts of a layer; names are those of whole tensors, after the layer's prefix.

    gate, up, down  a tensor for each expert where there is a "{}" in them, else one of all, stacked. Where gate and up are the
                    same name, that tensor holds both
    alternates      rows of gate and up take turns in it; else those of the gate come first
    transposed      weights are stored [in, out]
    mxfp4           weights are stored in blocks of that, under names that end so, and their scales beside them
    """

    gate: str
    up: str
    down: str
    alternates: bool = False
    transposed: bool = False
    mxfp4: bool = False

    @property
    def is_stacked(self) -> bool:
        return "{}" not in self.down

    @property
    def is_fused(self) -> bool:
        """Whether one tensor holds gate and up."""
        return self.gate == self.up

    def are_in(self, names: Collection[str], prefix: str) -> bool:
        """Whether a checkpoint with tensors of these names stores the experts at `prefix` so."""
        first = prefix + self.down.format(0)
        stem = first.removesuffix(".weight")
        return first in names or (stem != first and any(f"{stem}.{end}" in names for end in _PACKED_ENDS))


def bias_of(weight: str) -> str:
    """The name of the bias that belongs to a weight."""
    return f"{weight.removesuffix('.weight')}.bias" if weight.endswith(".weight") else f"{weight.removesuffix('_blocks')}_bias"


@dataclass(frozen=True)
class SharedExpert:
    """The expert that every token has beside those it is routed to.

    inner_size  of its MLP
    name        of its tensors, after the layer's prefix
    gate        name of the linear whose sigmoid scales what it makes of a token; None adds it as it is
    """

    inner_size: int
    name: str
    gate: str | None = None


@dataclass(frozen=True)
class Mixture:
    """What stands in the place of the MLP in some layers.

    inner_size   of each expert
    rule         how a token's experts are chosen and weighed
    layers       which layers have experts; the others have an MLP
    tensors      the ways in which checkpoints store experts; the first is what random weights are made as
    name         of the block in a layer
    router       name of its router, after that
    router_bias  of its logits
    choice_bias  name of what is added to the scores by which experts are chosen; None adds nothing
    biased       gate·up and down of every expert have biases
    activation   of the experts, where it is not that of MLPs
    shared       None without one
    """

    num_experts: int
    inner_size: int
    rule: RoutingRule
    layers: tuple[bool, ...]
    tensors: tuple[ExpertTensors, ...]
    name: str = "mlp."
    router: str = "gate"
    router_bias: bool = False
    choice_bias: str | None = None
    biased: bool = False
    activation: Activation | None = None
    shared: SharedExpert | None = None
