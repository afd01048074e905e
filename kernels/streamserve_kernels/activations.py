"""Gated activations in Triton: one pass over memory, or a device function for the kernels of the product before.

The specification is `reference/activations.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import dependent_launch, kernel, power_of_two


@triton.jit
def activate(gate, up, ACTIVATION: tl.constexpr):
    """`reference.activations.gate_up_activation` in fp32."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate) * up
    if ACTIVATION == "clamped_silu":
        gate = tl.minimum(gate, 7.0)
        return gate * tl.sigmoid(1.702 * gate) * (tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0)
    # (1 + tanh(z)) / 2 is sigmoid(2 z)
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up


@kernel()
def _gate_kernel(x_ptr, out_ptr, width, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr):
    """Compute BLOCK elements of one row of the output."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < width
    gate_ptrs = x_ptr + row * (2 * width) + lanes
    gate = tl.load(gate_ptrs, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + lanes, activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty), mask=inside)


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """`reference.activations.gated_activation` in one launch."""
    x = x.contiguous()
    width = x.shape[1] // 2
    out = x.new_empty(x.shape[0], width)
    block = min(power_of_two(width), 2048)
    _gate_kernel[(x.shape[0], -(-width // block))](
        x, out, width, BLOCK=block, ACTIVATION=activation, num_warps=max(1, block // 512), **dependent_launch(x.device)
    )
    return out
