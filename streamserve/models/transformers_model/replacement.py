"""Modules of transformers that we know, replaced by ours, which have kernels and whose weights have forms."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from streamserve.models.layers.linear import Linear
from streamserve.models.weights.placement import Placement


class WeightWanted(Exception):
    """Somebody wants the weight of a linear, which has no tensor of it in every form."""

    def __init__(self, name: str) -> None:
        """name  of the linear in the module that has it"""
        super().__init__(f"{name} has no weight of its own")
        self.linear = name


class BatchLinear(nn.Module):
    """A linear of ours for states with any number of leading dimensions."""

    def __init__(self, name: str, linear: Linear, in_features: int, out_features: int) -> None:
        super().__init__()
        self.name = name
        self.linear = linear
        self.in_features, self.out_features = in_features, out_features

    @property
    def weight(self) -> Tensor:
        raise WeightWanted(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]"""
        y: Tensor = self.linear(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], self.out_features)


def replace_modules(model: PreTrainedModel, place: Placement, kept: frozenset[str]) -> None:
    """Replace every linear but those of the names in `kept`. What takes their place is allocated at `place`."""
    embedding = model.get_input_embeddings().weight
    names = {id(module): name for name, module in model.named_modules()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight is embedding or name in kept:
                continue
            path, _, leaf = names[id(child)].rpartition(".")
            prefix = f"{path}." if path else ""
            linear = Linear(prefix, {leaf: child.out_features}, child.in_features, place, bias=child.bias is not None)
            setattr(parent, name, BatchLinear(name, linear, child.in_features, child.out_features))
