"""Linear layers and what is fused with them, in torch. Fused outputs (q, k, v; gate and up) are rows of one weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from streamserve_kernels.reference.activations import Activation, gated_activation
from streamserve_kernels.reference.norms import rms_norm


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias.

    x        [rows, in]   bf16|fp16|fp32
    weight   [out, in]    same dtype
    bias     [out]        same dtype
    returns  [rows, out]  dtype of x; accumulation in fp32
    """
    return F.linear(x, weight, bias)


def linear_residual(x: Tensor, weight: Tensor, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual + x @ weight.T + bias: the end of an attention or MLP block.

    residual  [rows, out]  dtype of x; not to be used afterwards, since the result may take its place
    returns   [rows, out]  dtype of x
    """
    return F.linear(x, weight, bias).add_(residual)


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """linear(rms_norm(x)): the start of an attention block. Shapes as in `linear` and `rms_norm`."""
    return linear(rms_norm(x, norm_weight, eps), weight, bias)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, gate_up_weight: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up of linear(rms_norm(x)): the start of an MLP block.

    x               [rows, in]
    gate_up_weight  [2 * inner, in]  the gate's rows, then up's
    returns         [rows, inner]    dtype of x
    """
    return gated_activation(linear(rms_norm(x, norm_weight, eps), gate_up_weight), activation)
