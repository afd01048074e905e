"""How TorchInductor compiles our `products`: as calls of oneDNN, with the weight that it is given.

Importing this registers them, and imports the compiler.
"""

from __future__ import annotations

import torch
from torch._inductor.ir import TensorBox
from torch._inductor.lowering import register_lowering
from torch._inductor.mkldnn_ir import LinearBinary, LinearUnary

import streamserve.models.aot.products  # noqa: F401  defines them


@register_lowering(torch.ops.streamserve.blocked_linear.default, type_promotion_kind=None)
def _(x: TensorBox, weight: TensorBox, bias: TensorBox | None) -> object:
    return TensorBox.create(LinearUnary.create(x, weight, bias, "none", [], ""))  # type: ignore[no-untyped-call]


@register_lowering(torch.ops.streamserve.blocked_linear_residual.default, type_promotion_kind=None)
def _(x: TensorBox, residual: TensorBox, weight: TensorBox, bias: TensorBox | None) -> object:
    return TensorBox.create(LinearBinary.create(x, residual, weight, bias, "add"))  # type: ignore[no-untyped-call]
