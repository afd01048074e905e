"""Products of one row with weights of 8-bit floats, which become fp16 in registers and are multiplied by matrix units.

With a norm, a gate or blocks plain lanes take as long to multiply as memory takes to read. A program has 16 weight rows, or as
many of a gate and of what it lets through, and its warps share out the columns; each lane reads what the matrix units take from
it, so that no weight passes through shared memory. Only inputs do: once each, times a power of two by which each warp's lie in
the range of fp16, where they have three bits more than bf16. A norm factors out of the product, as in one_row.py.

Scales of weight rows are applied to sums, those of blocks to inputs: the rows of a program are in one block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import dependent_launch, kernel
from streamserve_kernels.projections.epilogue import Epilogue
from streamserve_kernels.projections.fp8_widen import bytes_of, widen
from streamserve_kernels.reference.projections.fp8 import BLOCK, Fp8Weight

ROWS = 16
"""Weight rows of a program, and of a matrix unit's first operand."""

_ROWS, _BLOCK = tl.constexpr(ROWS), tl.constexpr(BLOCK)


@triton.jit
def _read(ptrs, columns, K: tl.constexpr, FITS: tl.constexpr, EVICTION: tl.constexpr):
    """Numbers of these columns, zeros beyond K. FITS: none is."""
    if FITS:
        return tl.load(ptrs, eviction_policy=EVICTION)
    return tl.load(ptrs, mask=columns < K, other=0.0, eviction_policy=EVICTION)


@triton.jit
def _power_for(largest):
    """A power of two by which numbers up to `largest` come to lie below 2 ** 15, and its inverse."""
    exponent = tl.minimum(tl.maximum(14 + 127 - (largest.to(tl.int32, bitcast=True) >> 23), -126), 126)
    return (exponent + 127 << 23).to(tl.float32, bitcast=True), (127 - exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _first_operand(tile, SLICES: tl.constexpr, CHUNK: tl.constexpr, BITS: tl.constexpr):
    """Weights [SLICES, 16, CHUNK] of 16 bytes of each lane, four of which it keeps in each 16 columns."""
    tile = tl.reshape(tile, [2, CHUNK // 64, SLICES, 8, 4, 4, 4])
    tile = tl.reshape(tl.permute(tile, (2, 0, 3, 1, 5, 4, 6)), [SLICES, _ROWS, CHUNK])
    return widen(tile, BITS, tl.float16)


@triton.jit
def _second_operand(x, SLICES: tl.constexpr, CHUNK: tl.constexpr):
    """Inputs [SLICES, CHUNK] with their columns in that order, eight times, as many as matrix units take."""
    x = tl.permute(tl.reshape(x.to(tl.float16), [SLICES, CHUNK // 64, 4, 4, 4]), (0, 1, 3, 2, 4))
    return tl.broadcast_to(tl.reshape(x, [SLICES, CHUNK])[:, :, None], [SLICES, CHUNK, 8])


@triton.jit
def _row_sums(sums, inverse):
    """[16] of [SLICES, 16, 8] products of inputs that were multiplied by powers of two: all eight columns are alike."""
    return tl.max(tl.sum(sums * inverse[:, None, None], axis=0), axis=1)


@kernel()
def _fp8_one_row_kernel(
    x_ptr, values_ptr, scale_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, N, eps,
    K: tl.constexpr, SLICES: tl.constexpr, CHUNK: tl.constexpr, AHEAD: tl.constexpr,
    SCALES: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[n] = act(Σ weight[n, k] x'[k]) with x' = x or rms_norm(x).

    SLICES  warps, each of which has CHUNK columns of a step; the weights of AHEAD steps are in registers before use
    SCALES  columns of the scale
    """
    if PDL:
        cuda.gdc_launch_dependents()
    gated: tl.constexpr = ACTIVATION != "none"
    span: tl.constexpr = SLICES * CHUNK
    steps: tl.constexpr = (K + span - 1) // span
    fits: tl.constexpr = K % span == 0
    first = tl.program_id(0) * _ROWS
    # All lanes of all warps in one dimension, so that the compiler gives each its own 16 bytes: [2, CHUNK / 64, SLICES, 8, 4].
    lane = tl.arange(0, CHUNK // 32 * SLICES * 32)
    line = lane // (CHUNK // 64 * SLICES * 32) * 8 + lane % 32 // 4
    lanes = lane % (SLICES * 32) // 32 * CHUNK + lane // (SLICES * 32) % (CHUNK // 64) * 64 + lane % 4 * 16
    lanes = lanes[:, None] + tl.arange(0, 16)[None, :]
    # Rows beyond the last are computed as it is, and not stored.
    weight_ptrs = values_ptr + tl.minimum(first + line, N - 1).to(tl.int64)[:, None] * K + lanes
    if gated:
        # Only here, as in one_row.py.
        up_ptrs = weight_ptrs + N.to(tl.int64) * K
    tiles = ()
    up_tiles = ()
    for k in tl.static_range(0, min(steps, AHEAD) * span, span):
        tiles = tiles + (_read(weight_ptrs + k, lanes + k, K, fits, "evict_first"),)  # type: ignore[assignment]
        if gated:
            up_tiles = up_tiles + (_read(up_ptrs + k, lanes + k, K, fits, "evict_first"),)  # type: ignore[assignment]
    # What inputs are multiplied by, and with blocks those of the second half.
    own = tl.arange(0, SLICES)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    factors = ()
    up_factors = ()
    for k in tl.static_range(0, steps * span, span):
        factor = tl.full([SLICES, CHUNK], 1.0, tl.float32)
        if NORM:
            factor = _read(norm_ptr + own + k, own + k, K, fits, "").to(tl.float32)
        if SCALES > 1:
            blocks = (own + k) // _BLOCK
            if gated:
                scale = _read(scale_ptr + (N + first) // _BLOCK * SCALES + blocks, own + k, K, fits, "")
                up_factors = up_factors + (factor * scale,)  # type: ignore[assignment]
            factor *= _read(scale_ptr + first // _BLOCK * SCALES + blocks, own + k, K, fits, "")
        factors = factors + (factor,)  # type: ignore[assignment]
    if PDL:
        cuda.gdc_wait()
    squares = tl.zeros([SLICES, CHUNK], tl.float32)
    largest = tl.zeros([SLICES, CHUNK], tl.float32)
    inputs = ()
    up_inputs = ()
    for k in tl.static_range(0, steps * span, span):
        x = _read(x_ptr + own + k, own + k, K, fits, "").to(tl.float32)
        if NORM:
            squares += x * x
        if SCALES > 1 and gated:
            up_inputs = up_inputs + (x * up_factors[k // span],)  # type: ignore[assignment]
            largest = tl.maximum(largest, tl.abs(up_inputs[k // span]))
        inputs = inputs + (x * factors[k // span],)  # type: ignore[assignment]
        largest = tl.maximum(largest, tl.abs(inputs[k // span]))
    power, inverse = _power_for(tl.max(largest, axis=1))
    sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    up_sums = tl.zeros([SLICES, _ROWS, 8], tl.float32)
    for k in tl.static_range(0, steps * span, span):
        x = _second_operand(inputs[k // span] * power[:, None], SLICES, CHUNK)
        sums = tl.dot(_first_operand(tiles[k // span], SLICES, CHUNK, BITS), x, sums, input_precision="ieee")
        if gated:
            if SCALES > 1:
                x = _second_operand(up_inputs[k // span] * power[:, None], SLICES, CHUNK)
            up_sums = tl.dot(_first_operand(up_tiles[k // span], SLICES, CHUNK, BITS), x, up_sums, input_precision="ieee")
        if k + AHEAD * span < steps * span:
            ahead = k + AHEAD * span
            tiles = tiles + (_read(weight_ptrs + ahead, lanes + ahead, K, fits, "evict_first"),)  # type: ignore[assignment]
            if gated:
                up_tiles = up_tiles + (_read(up_ptrs + ahead, lanes + ahead, K, fits, "evict_first"),)  # type: ignore[assignment]
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / K + eps)
    rows = first + tl.arange(0, _ROWS)
    result = _row_sums(sums, inverse) * factor
    if SCALES == 1:
        result *= tl.load(scale_ptr + rows, mask=rows < N, other=0.0)
    if BIAS:
        result += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    if gated:
        up = _row_sums(up_sums, inverse) * factor
        if SCALES == 1:
            up *= tl.load(scale_ptr + N + rows, mask=rows < N, other=0.0)
        if BIAS:
            up += tl.load(bias_ptr + N + rows, mask=rows < N, other=0.0).to(tl.float32)
        result = activate(result, up, ACTIVATION)
    if RESIDUAL:
        result += tl.load(residual_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < N)


def one_row(
    x: torch.Tensor,
    weight: Fp8Weight,
    after: Epilogue,
    *,
    bits: bool,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    shape: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x).

    x      [1, in]  bf16|fp16
    bits   widen numbers bit by bit: the device has no conversion
    shape  in place of `one_row_shape`'s
    """
    inner = x.shape[1]
    outer = weight.values.shape[0] // (2 if after.gated else 1)
    out = x.new_empty(1, outer)
    slices, chunk, ahead = shape or one_row_shape(inner, after.gated)
    _fp8_one_row_kernel[(-(-outer // ROWS),)](
        x, bytes_of(weight.values, bits), weight.scale, norm_weight, after.bias, after.residual, out, outer, eps,
        K=inner, SLICES=slices, CHUNK=chunk, AHEAD=ahead, SCALES=weight.scale.shape[1], BITS=bits,
        NORM=norm_weight is not None, **after.constants(), num_warps=slices, num_stages=1, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def one_row_shape(inner: int, gated: bool) -> tuple[int, int, int]:
    """SLICES, CHUNK, AHEAD: measured on an H200 for the linears of an 8B model."""
    # A lane holds its inputs in registers.
    slices = 4 if inner <= 12288 else 8 if inner <= 24576 else 16
    return (slices, 128, 4) if gated or inner <= 4096 else (slices, 256, 2)
