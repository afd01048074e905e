"""Linear layers for one to 64 rows, which stream the weights at the speed of memory, with their neighbours fused in.

* One row: plain lanes (one_row.py).
* Up to eight, where the inner dimension is short: a program's warps share it out, each multiplies its slice on tensor cores,
  and the slices are added at the end, so that a narrow layer fills the device without a second pass.
* Up to `SKINNY_ROWS`: tiles stream through shared memory; the programs of a tile share out the inner dimension, and the last
  to finish adds up.
* Above, and in fp32 beyond one row: cuBLAS.

In the first two a norm needs no pass of its own: the row's scale factors out of the product, so it is gathered along the way
and applied last, and weights are in registers before the predecessor has finished (launch.py).

Tensors of one call live on one device and share one dtype (bf16, fp16 or fp32); products accumulate in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import gated_activation
from streamserve_kernels.launch import arrivals, compute_dtype, dependent_launch, kernel, power_of_two, prefetch
from streamserve_kernels.norms import rms_norm
from streamserve_kernels.projections.epilogue import Epilogue, finish_products
from streamserve_kernels.projections.one_row import one_row

SKINNY_ROWS = 64
"""Rows up to which the tensor-core kernel is used instead of cuBLAS."""


@kernel(do_not_specialize=["M"])
def _few_rows_kernel(
    x_ptr, weight_ptr, norm_ptr, bias_ptr, residual_ptr, out_ptr, M, N, eps,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLICES: tl.constexpr, SLICE_K: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N weight rows times all rows of x; each warp multiplies a slice of every tile."""
    if PDL:
        cuda.gdc_launch_dependents()
    BLOCK_K: tl.constexpr = SLICES * SLICE_K
    if ACTIVATION == "none":
        columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = columns < N
        weight_rows = columns.to(tl.int64)
    else:
        half: tl.constexpr = BLOCK_N // 2
        columns = tl.program_id(0) * half + tl.arange(0, half)
        lines = tl.arange(0, BLOCK_N)
        inside = tl.program_id(0) * half + lines % half < N
        weight_rows = (tl.program_id(0) * half + lines % half).to(tl.int64) + (lines // half) * N
    lanes = tl.arange(0, SLICES)[:, None] * SLICE_K + tl.arange(0, SLICE_K)[None, :]
    weight_ptrs = weight_ptr + weight_rows[None, :, None] * K + lanes[:, None, :]
    tiles = ()
    for k in tl.static_range(0, K, BLOCK_K):
        mask = inside[None, :, None] & (lanes + k < K)[:, None, :]
        tile = tl.load(weight_ptrs + k, mask=mask, other=0.0, eviction_policy="evict_first")
        tiles = tiles + (tile,)  # type: ignore[assignment]
    rows = tl.arange(0, BLOCK_M)
    x_ptrs = x_ptr + rows[None, :, None] * K + lanes[:, None, :]
    sums = tl.zeros([SLICES, BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([SLICES, BLOCK_M], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for k in tl.static_range(0, K, BLOCK_K):
        x = tl.load(x_ptrs + k, mask=(rows < M)[None, :, None] & (lanes + k < K)[:, None, :], other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, axis=2)
            norm = tl.load(norm_ptr + k + lanes, mask=lanes + k < K, other=0.0).to(tl.float32)
            x = (wide * norm[:, None, :]).to(x_ptr.dtype.element_ty)
        x = tl.permute(x.to(COMPUTE), (0, 2, 1))
        sums = tl.dot(tiles[k // BLOCK_K].to(COMPUTE), x, sums, input_precision="ieee")
    finish_products(
        tl.sum(sums, axis=0), tl.sum(squares, axis=0), columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, eps,
        K, BLOCK_M, NORM, BIAS, RESIDUAL, ACTIVATION,
    )  # fmt: skip


@kernel(do_not_specialize=["M"])
def _some_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, M, N,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr,
    X_FIRST: tl.constexpr, PREFETCH: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, COMPUTE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N weight rows streams through shared memory against BLOCK_M rows of x, or a part of the inner dimension.

    The last program of a tile to finish adds its parts up, in their order. Hopper's matrix units take 64 rows of the first
    operand: with X_FIRST they are x's, so that a tile may have fewer weight rows, and more programs read them.

    partial_ptr   fp32 [tiles, row tiles, SPLITS, BLOCK_N, BLOCK_M]
    arrivals_ptr  int32 [tiles, row tiles], zero before and after
    """
    if PDL:
        cuda.gdc_launch_dependents()
    tile = tl.program_id(0)
    split = tl.program_id(1)
    lines = tl.arange(0, BLOCK_N)
    if ACTIVATION == "none":
        columns = tile * BLOCK_N + lines
        inside = columns < N
        weight_rows = columns.to(tl.int64)
    else:
        half: tl.constexpr = BLOCK_N // 2
        columns = tile * half + tl.arange(0, half)
        inside = tile * half + lines % half < N
        weight_rows = (tile * half + lines % half).to(tl.int64) + (lines // half) * N
    per_split: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = split * per_split
    lanes = tl.arange(0, BLOCK_K)
    weight_ptrs = weight_ptr + weight_rows[:, None] * K + lanes[None, :]
    if PDL:
        # The first weights are on their way to the L2 cache while the predecessor still computes x.
        thread = tl.arange(0, 2 * BLOCK_N)
        line = thread // 32 * 16 + thread % 32
        if ACTIVATION == "none":
            ahead = tile * BLOCK_N + line
            wanted = ahead < N
        else:
            ahead = tile * half + line % half
            wanted = ahead < N
            ahead += line // half * N
        line_ptrs = weight_ptr + ahead.to(tl.int64) * K + tl.minimum(begin, K - PREFETCH)
        prefetch(line_ptrs, tl.where(wanted & (thread % 32 < 16), 2 * PREFETCH, 0))
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    x_ptrs = x_ptr + rows[:, None] * K + lanes[None, :]
    sums = tl.zeros([BLOCK_M, BLOCK_N] if X_FIRST else [BLOCK_N, BLOCK_M], tl.float32)
    if PDL:
        cuda.gdc_wait()
    for k in range(begin, tl.minimum(begin + per_split, K), BLOCK_K):
        weights = tl.load(weight_ptrs + k, mask=inside[:, None] & (lanes + k < K)[None, :], other=0.0)
        x = tl.load(x_ptrs + k, mask=(rows < M)[:, None] & (lanes + k < K)[None, :], other=0.0)
        if X_FIRST:
            sums = tl.dot(x.to(COMPUTE), tl.trans(weights.to(COMPUTE)), sums, input_precision="ieee")
        else:
            sums = tl.dot(weights.to(COMPUTE), tl.trans(x.to(COMPUTE)), sums, input_precision="ieee")
    if X_FIRST:
        sums = tl.trans(sums)
    if SPLITS > 1:
        place = tile * tl.num_programs(2) + tl.program_id(2)
        part_ptr = partial_ptr + (place * SPLITS + split).to(tl.int64) * (BLOCK_N * BLOCK_M)
        places = lines[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(part_ptr + places, sums)
        # Every thread's stores must be out before the one thread that announces this part.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + place, 1, sem="acq_rel", scope="gpu") != SPLITS - 1:
            return
        tl.store(arrivals_ptr + place, 0)
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for part in tl.static_range(SPLITS):
            part_ptr = partial_ptr + (place * SPLITS + part).to(tl.int64) * (BLOCK_N * BLOCK_M)
            sums += tl.load(part_ptr + places, cache_modifier=".cg")
    finish_products(
        sums, sums, columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, 0.0,
        K, BLOCK_M, False, BIAS, RESIDUAL, ACTIVATION,
    )  # fmt: skip


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`reference.projections.dense.linear`: a skinny kernel for few rows, else cuBLAS."""
    if not _is_skinny(x, weight):
        return F.linear(x, weight, bias)
    return _skinny(x, weight, bias=bias)


def linear_residual(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`reference.projections.dense.linear_residual`: a skinny kernel for few rows, else cuBLAS."""
    if _is_skinny(x, weight):
        return _skinny(x, weight, bias=bias, residual=residual)
    # Out of place, torch copies the residual first; a copy costs as much as the whole fusion saves.
    out = residual.addmm_(x, weight.t())
    return out if bias is None else out.add_(bias)


def norm_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`reference.projections.dense.norm_linear`; the skinny kernels keep the normed row in fp32, or round before scaling."""
    if not _is_skinny(x, weight):
        return F.linear(rms_norm(x, norm_weight, eps), weight, bias)
    return _skinny(x, weight, bias=bias, norm_weight=norm_weight, eps=eps)


def norm_gated_linear(
    x: torch.Tensor, norm_weight: torch.Tensor, eps: float, gate_up_weight: torch.Tensor, activation: str
) -> torch.Tensor:
    """`reference.projections.dense.norm_gated_linear`: a skinny kernel for few rows, else cuBLAS."""
    if not _is_skinny(x, gate_up_weight):
        return gated_activation(F.linear(rms_norm(x, norm_weight, eps), gate_up_weight), activation)
    return _skinny(x, gate_up_weight, norm_weight=norm_weight, eps=eps, activation=activation)


def _is_skinny(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernels here beat cuBLAS; they need rows that start on 16 bytes."""
    aligned = weight.is_contiguous() and weight.shape[1] % 16 == 0
    rows = x.shape[0]
    return aligned and (rows == 1 or (rows <= SKINNY_ROWS and x.element_size() == 2))


def _skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    activation: str = "none",
) -> torch.Tensor:
    x = x.contiguous()
    rows, inner = x.shape
    gated = activation != "none"
    outer = weight.shape[0] // 2 if gated else weight.shape[0]
    residual = None if residual is None else residual.contiguous()
    if rows == 1:
        return one_row(x, weight, Epilogue(bias, residual, activation), norm_weight=norm_weight, eps=eps)
    out = x.new_empty(rows, outer)
    compute = compute_dtype(x.dtype)
    few = few_rows_shape(rows, outer, inner, gated)
    if few is not None:
        block_m, block_n, slices, slice_k = few
        per_tile = block_n // 2 if gated else block_n
        _few_rows_kernel[(-(-outer // per_tile),)](
            x, weight, norm_weight, bias, residual, out, rows, outer, eps,
            K=inner, BLOCK_M=block_m, BLOCK_N=block_n, SLICES=slices, SLICE_K=slice_k, NORM=norm_weight is not None,
            BIAS=bias is not None, RESIDUAL=residual is not None, ACTIVATION=activation, COMPUTE=compute,
            num_warps=slices, num_stages=1, **dependent_launch(x.device),
        )  # fmt: skip
        return out
    if norm_weight is not None:
        # Here and not in the kernel: what is copied to shared memory in the background can't be changed on the way.
        x = rms_norm(x, norm_weight, eps)
    block_m, block_n, block_k, splits, warps, stages = some_rows_shape(rows, outer, inner, gated)
    tiles = -(-outer // (block_n // 2 if gated else block_n))
    row_tiles = -(-rows // block_m)
    partial = None
    if splits > 1:
        partial = x.new_empty(tiles * row_tiles * splits * block_n * block_m, dtype=torch.float32)
    _some_rows_kernel[(tiles, splits, row_tiles)](
        x, weight, bias, residual, out, partial, arrivals(x.device), rows, outer,
        K=inner, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, SPLITS=splits,
        X_FIRST=block_m == 64, PREFETCH=min(inner // splits // 8 * 8, 512),
        BIAS=bias is not None, RESIDUAL=residual is not None, ACTIVATION=activation, COMPUTE=compute,
        num_warps=warps, num_stages=stages, **dependent_launch(x.device),
    )  # fmt: skip
    return out


def few_rows_shape(rows: int, outer: int, inner: int, gated: bool) -> tuple[int, int, int, int] | None:
    """BLOCK_M, BLOCK_N, slices (one per warp), lanes of a slice; None where streaming is better."""
    if rows > 8 or inner > 3072 or outer > 16384:
        return None
    if not gated and outer * inner > 1 << 23:
        # Programs that hold so much fill the device more than once.
        return None
    block_n = 16 if outer <= 2048 else 32
    return power_of_two(rows, least=8), block_n, 8, max(16, min(128, power_of_two(inner) // 8))


def some_rows_shape(rows: int, outer: int, inner: int, gated: bool) -> tuple[int, int, int, int, int, int]:
    """BLOCK_M, BLOCK_N, BLOCK_K, SPLITS, warps, stages."""
    block_m, block_n = power_of_two(rows, least=16), 64
    tiles = -(-outer // (block_n // 2 if gated else block_n))
    # Half the multiprocessors read fast enough; a part that is too short costs more to add up than it saves to read.
    programs, shortest = (64 if inner < 4096 else 96), (256 if rows <= 16 else 512)
    if block_m == 64:
        # Reading x takes time too, and more programs share it better.
        programs = 96
        if tiles < programs:
            block_n, tiles = 32, 2 * tiles
    splits = 1
    while tiles * splits < programs and inner // (splits * 2) >= shortest:
        splits *= 2
    stages = 5 if block_m == 64 else 6
    if block_m == 64 and not gated and inner < 4096 and tiles > 132:
        # More tiles than multiprocessors: with this, two share one, and none waits for a second round.
        stages = 4
    return block_m, block_n, 128, splits, 4, stages
