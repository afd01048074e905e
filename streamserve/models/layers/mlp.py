"""The gated MLP that follows attention in most families, with its norm."""

from __future__ import annotations

from torch import Tensor, nn

from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation


class GatedMlp(nn.Module):
    """down(act(gate) * up) of the hidden state, normed where there is a norm (GLU variants, Shazeer, 2020, https://arxiv.org/abs/2002.05202).

    Two launches: norm, gate, up and activation are one, down is the other, with the residual where there is one.
    """

    def __init__(self, arch: ModelArch, prefix: str, place: Placement, norm: RmsNorm | None) -> None:
        """prefix + "gate_proj", "up_proj" (or "gate_up_proj", where the checkpoint fuses) and "down_proj" are read.

        norm  before it, or None
        """
        super().__init__()
        hidden, inner = arch.hidden_size, arch.intermediate_size
        self.activation = gate_activation(arch)
        self.norm = norm
        self.gate_up = Linear(
            prefix,
            {"gate_proj": inner, "up_proj": inner},
            hidden,
            place,
            bias=arch.mlp_bias,
            stored_as="gate_up_proj" if arch.fused_gate_up else None,
            divided="rows",
        )
        self.down = Linear(prefix, {"down_proj": hidden}, inner, place, bias=arch.mlp_bias, divided="columns")

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape, without the residual"""
        down: Tensor = self.down(self.gate_up.gated_after_norm(hidden, self.norm, self.activation))
        return down

    def onto(self, hidden: Tensor) -> Tensor:
        """hidden + forward(hidden); `hidden` is not to be used afterwards."""
        return self.down.onto(hidden, self.gate_up.gated_after_norm(hidden, self.norm, self.activation))


def gate_activation(arch: ModelArch) -> Activation:
    """The activation of a gated MLP. Raises `ModelNotSupported` for one that no gate has."""
    if arch.activation == "relu":
        raise ModelNotSupported("a gated MLP with ReLU is not supported")
    return arch.activation
