"""Kernels for a paged KV cache: a torch reference that is the specification, and Triton on NVIDIA GPUs.

Import from here; the modules behind are private to this package and its tests. Knows nothing of streamserve.
"""

from streamserve_kernels.dispatch import (
    Activation,
    Int4Weight,
    Weight,
    add_rms_norm,
    gelu_tanh_mul,
    layer_norm,
    linear,
    linear_residual,
    norm_gated_linear,
    norm_linear,
    paged_attention,
    rms_norm,
    rotary_write,
    silu_mul,
)

__all__ = [
    "Activation",
    "Int4Weight",
    "Weight",
    "add_rms_norm",
    "gelu_tanh_mul",
    "layer_norm",
    "linear",
    "linear_residual",
    "norm_gated_linear",
    "norm_linear",
    "paged_attention",
    "rms_norm",
    "rotary_write",
    "silu_mul",
]
