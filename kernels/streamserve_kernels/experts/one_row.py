"""One token's experts, multiplied on plain lanes: dense weights, and 8-bit floats, which are widened in registers.

The product of gate and up has a program for some rows of one of the experts; that of down adds its experts up, with the
residual. The token keeps its precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.experts.launches import Layer
from streamserve_kernels.launch import dependent_launch, kernel, power_of_two
from streamserve_kernels.projections.fp8_widen import bytes_of, has_conversion, widen
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.projections.fp8 import BLOCK
from streamserve_kernels.reference.quantized_experts import Fp8ExpertsWeight

_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def _scales_of_columns(scale_ptr, k, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Scales of BLOCK_K columns from k on, [BLOCK_N, BLOCK_K].

    scale_ptr  of the block of the first column; one for all rows, or [BLOCK_N, 1]
    A thread that has 16 columns of a tile reads one number for them.
    """
    columns = k + tl.arange(0, BLOCK_K // 16) * 16
    alike = tl.zeros([BLOCK_N, 1], tl.int32)
    scales = tl.load(scale_ptr + alike + (columns // _BLOCK)[None, :], mask=alike + columns[None, :] < K, other=0.0)
    return tl.reshape(tl.broadcast_to(scales[:, :, None], [BLOCK_N, BLOCK_K // 16, 16]), [BLOCK_N, BLOCK_K])


@kernel()
def _one_row_gate_up_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, ids_ptr, out_ptr, N, first_expert, num_experts,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALES: tl.constexpr, BITS: tl.constexpr,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N / 2 gated values of one of the row's experts; N weight rows of an expert, of which gate and up alternate.

    SCALES  columns of the weight's scale; 0 for a dense weight
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    expert = tl.load(ids_ptr + tl.program_id(1)) - first_expert
    if (expert < 0) | (expert >= num_experts):
        return
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    lanes = tl.arange(0, BLOCK_K)
    tile_ptrs = weight_ptr + (expert.to(tl.int64) * N + rows)[:, None] * K + lanes[None, :]
    if SCALES > 1:
        num_blocks = 2 * ((N // 2 + _BLOCK - 1) // _BLOCK)
        scale_ptrs = scale_ptr + (expert * num_blocks + rows // (2 * _BLOCK) * 2 + rows % 2)[:, None] * SCALES
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for k in tl.static_range(0, K, BLOCK_K):
        mask = inside[:, None] & (lanes + k < K)[None, :]
        tile = tl.load(tile_ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first")
        # Every warp loads the inputs of its own lanes: a row that all share would pass through shared memory, with barriers.
        offsets = tl.zeros([BLOCK_N, 1], tl.int32) + (lanes + k)[None, :]
        x = tl.load(x_ptr + offsets, mask=offsets < K, other=0.0).to(tl.float32)
        if SCALES > 1:
            x = x * _scales_of_columns(scale_ptrs, k, K, BLOCK_N, BLOCK_K)
        sums += widen(tile, BITS, tl.float32) * x
    result = tl.sum(sums, axis=1)
    if SCALES == 1:
        result *= tl.load(scale_ptr + expert.to(tl.int64) * N + rows, mask=inside, other=0.0)
    if bias_ptr is not None:
        result += tl.load(bias_ptr + expert.to(tl.int64) * N + rows, mask=inside, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(result, [BLOCK_N // 2, 2]))
    columns = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    y = activate(gate, up, ACTIVATION).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + tl.program_id(1) * (N // 2) + columns, y, mask=columns < N // 2)


@kernel()
def _one_row_down_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, ids_ptr, weights_ptr, residual_ptr, out_ptr, N, first_expert, num_experts,
    K: tl.constexpr, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALES: tl.constexpr,
    BITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of the row: the residual, and the weighted sum over its experts.

    SCALES  as for the product before
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    lanes = tl.arange(0, BLOCK_K)
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    result = tl.load(residual_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    for index in tl.static_range(TOP_K):
        expert = tl.load(ids_ptr + index) - first_expert
        weight = tl.load(weights_ptr + index)
        first = expert.to(tl.int64) * N + rows
        # A scalar condition is no mask to Triton's interpreter.
        here = inside & (expert + rows * 0 >= 0) & (expert + rows * 0 < num_experts)
        factor = tl.zeros([BLOCK_N], tl.float32) + weight
        if SCALES == 1:
            factor *= tl.load(scale_ptr + first, mask=here, other=0.0)
        for k in tl.static_range(0, K, BLOCK_K):
            held = (lanes + k < K) & (expert + lanes * 0 >= 0) & (expert + lanes * 0 < num_experts)
            mask = here[:, None] & held[None, :]
            tile = tl.load(weight_ptr + first[:, None] * K + (k + lanes)[None, :], mask=mask, other=0.0)
            offsets = tl.zeros([BLOCK_N, 1], tl.int32) + (lanes + k)[None, :]
            x = tl.load(x_ptr + index * K + offsets, mask=held[None, :] & (offsets < K), other=0.0).to(tl.float32)
            if SCALES > 1:
                block = tl.where(here, expert * ((N + _BLOCK - 1) // _BLOCK) + rows // _BLOCK, 0)
                x = x * _scales_of_columns(scale_ptr + block[:, None] * SCALES, k, K, BLOCK_N, BLOCK_K)
            sums += widen(tile, BITS, tl.float32) * (x * factor[:, None])
        if bias_ptr is not None:
            result += tl.load(bias_ptr + first, mask=here, other=0.0).to(tl.float32) * weight
    result += tl.sum(sums, axis=1)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=inside)


def experts_residual(residual: torch.Tensor, routes: Routes, layer: Layer[torch.Tensor | Fp8ExpertsWeight]) -> torch.Tensor:
    """As `products.experts_residual`, for one row."""
    gated = _gate_up(routes, layer.gate_up, layer.gate_up_bias, layer.first_expert, layer.activation)
    return _down(gated, layer.down, layer.down_bias, routes, layer.first_expert, residual)


def _gate_up(
    routes: Routes, weight: torch.Tensor | Fp8ExpertsWeight, bias: torch.Tensor | None, first_expert: int, activation: str
) -> torch.Tensor:
    """act(gate) * up of each of the row's experts: [top_k, inner]; not written for those that are elsewhere."""
    x, (num_experts, outer, hidden) = routes.normed, weight.shape
    top_k = routes.expert_ids.shape[1]
    out = x.new_empty(top_k, outer // 2)
    values, scale, constants = _operands(weight)
    block_n, block_k, warps = gate_up_shape(hidden)
    _one_row_gate_up_kernel[(-(-outer // block_n), top_k)](
        x, values, scale, bias, routes.expert_ids, out, outer, first_expert, num_experts,
        K=hidden, BLOCK_N=block_n, BLOCK_K=block_k, **constants, ACTIVATION=activation, num_warps=warps,
        **dependent_launch(x.device),
    )  # fmt: skip
    return out


def _down(
    gated: torch.Tensor,
    weight: torch.Tensor | Fp8ExpertsWeight,
    bias: torch.Tensor | None,
    routes: Routes,
    first_expert: int,
    residual: torch.Tensor,
) -> torch.Tensor:
    """residual + the weighted sum over the row's experts."""
    num_experts, outer, inner = weight.shape
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    values, scale, constants = _operands(weight)
    block_n, block_k, warps = down_shape()
    _one_row_down_kernel[(-(-outer // block_n),)](
        gated, values, scale, bias, routes.expert_ids, routes.weights, residual, out, outer, first_expert, num_experts,
        K=inner, TOP_K=routes.expert_ids.shape[1], BLOCK_N=block_n, BLOCK_K=block_k, **constants, num_warps=warps,
        **dependent_launch(gated.device),
    )  # fmt: skip
    return out


def _operands(weight: torch.Tensor | Fp8ExpertsWeight) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int | bool]]:
    """What is multiplied, its scale, and constants that say so."""
    if isinstance(weight, torch.Tensor):
        return weight, None, {"SCALES": 0, "BITS": False}
    bits = not has_conversion(weight.values.device)
    return bytes_of(weight.values, bits), weight.scale, {"SCALES": weight.scale.shape[2], "BITS": bits}


def gate_up_shape(hidden: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_K and warps."""
    return 8, min(power_of_two(hidden), 2048), 4


def down_shape() -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_K and warps."""
    return 2, 512, 2
