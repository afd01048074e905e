"""The public operations: each call runs the torch reference or Triton, by the device of its tensors.

Triton is imported for the first tensor that is not on the CPU, so a CPU machine does not need it. Shapes and dtypes are
specified in the docstrings of the references, which both implementations fulfil.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from streamserve_kernels.peers.slots import PeerSlots
from streamserve_kernels.reference import attention as _attention
from streamserve_kernels.reference import experts as _experts
from streamserve_kernels.reference import kv_write as _kv_write
from streamserve_kernels.reference import norm_rope as _norm_rope
from streamserve_kernels.reference import projections as _projections
from streamserve_kernels.reference import quantized as _quantized
from streamserve_kernels.reference import rows as _rows
from streamserve_kernels.reference import sampling as _sampling
from streamserve_kernels.reference.blocked import block_weight, blocked_linear, blocked_linear_residual, can_block
from streamserve_kernels.reference.experts import Routes, RoutingRule
from streamserve_kernels.reference.fp8 import BLOCK as FP8_BLOCK
from streamserve_kernels.reference.fp8 import Fp8Weight, can_keep_fp8
from streamserve_kernels.reference.fp8 import dequantize as dequantize_fp8
from streamserve_kernels.reference.fp8 import quantize_rows as quantize_fp8_rows
from streamserve_kernels.reference.fp8 import scale_columns as fp8_scale_columns
from streamserve_kernels.reference.grouped import COLUMNS as GROUPED_COLUMNS
from streamserve_kernels.reference.grouped import GROUPS as GROUPED_GROUPS
from streamserve_kernels.reference.grouped import ROWS as GROUPED_ROWS
from streamserve_kernels.reference.grouped import GroupedWeight, can_keep_grouped
from streamserve_kernels.reference.grouped import dequantize as dequantize_grouped
from streamserve_kernels.reference.grouped import pack as pack_grouped
from streamserve_kernels.reference.int4 import FEW_ROWS as INT4_FEW_ROWS
from streamserve_kernels.reference.int4 import GROUP as INT4_GROUP
from streamserve_kernels.reference.int4 import ROW_MULTIPLE as INT4_ROW_MULTIPLE
from streamserve_kernels.reference.int4 import Int4Weight, can_pack, int4_linear, pack_eight_bits, pack_four_bits
from streamserve_kernels.reference.kv_format import KvScales
from streamserve_kernels.reference.kv_format import is_eight_bit as is_eight_bit_cache
from streamserve_kernels.reference.kv_write import QueryScaling
from streamserve_kernels.reference.norm_rope import CLAMPED_SILU_ALPHA, CLAMPED_SILU_LIMIT, Activation
from streamserve_kernels.reference.quantized import QuantizedWeight
from streamserve_kernels.reference.quantized_experts import (
    MXFP4_BLOCK,
    ExpertsWeight,
    Fp8ExpertsWeight,
    Mxfp4ExpertsWeight,
    can_keep_mxfp4,
    mxfp4_numbers,
)
from streamserve_kernels.reference.quantized_experts import pack_exponents as pack_mxfp4_exponents
from streamserve_kernels.reference.rows import GatheredInputs
from streamserve_kernels.reference.shared import Shared
from streamserve_kernels.row_tables import RowTables
from streamserve_kernels.sampling.tensors import Logprobs, SampledTokens, SamplingTensors

LinearWeight: TypeAlias = Tensor | QuantizedWeight
"""What a linear layer multiplies with."""


@cache
def _triton(area: str) -> ModuleType:
    return import_module(f"streamserve_kernels.{area}")


def preload() -> None:
    """Import the Triton kernels. Call it before several threads launch: concurrent first calls find Triton partly imported."""
    areas = (
        "attention", "experts", "kv_write", "norm_rope", "peers.memory", "projections.dense", "projections.quantized", "rows",
        "sampling.choice",
    )  # fmt: skip
    for area in areas:
        _triton(area)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; see `reference.norm_rope`."""
    area = _norm_rope if x.is_cpu else _triton("norm_rope")
    y: Tensor = area.rms_norm(x, weight, eps)
    return y


def rms_norm_residual(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """residual + rms_norm(x), possibly in place of residual; see `reference.norm_rope`."""
    area = _norm_rope if x.is_cpu else _triton("norm_rope")
    y: Tensor = area.rms_norm_residual(x, weight, eps, residual)
    return y


def head_squares(qkv: Tensor, q_width: int, k_width: int) -> Tensor:
    """Sums of squares of all queries and of all keys; see `reference.norm_rope`."""
    area = _norm_rope if qkv.is_cpu else _triton("norm_rope")
    squares: Tensor = area.head_squares(qkv, q_width, k_width)
    return squares


def norm_all_heads_(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, *, squares: Tensor | None = None, shares: int = 1
) -> None:
    """RMS norm over all query heads, and over all key heads, in place; see `reference.norm_rope`."""
    area = _norm_rope if qkv.is_cpu else _triton("norm_rope")
    area.norm_all_heads_(qkv, q_norm, k_norm, eps, squares=squares, shares=shares)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension; see `reference.norm_rope`."""
    area = _norm_rope if x.is_cpu else _triton("norm_rope")
    y: Tensor = area.layer_norm(x, weight, bias, eps)
    return y


def gated_activation(x: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up of the two halves of each row; see `reference.norm_rope`."""
    area = _norm_rope if x.is_cpu else _triton("norm_rope")
    y: Tensor = area.gated_activation(x, activation)
    return y


def _products(x: Tensor, weight: LinearWeight) -> ModuleType:
    if isinstance(weight, Tensor):
        return _projections if x.is_cpu else _triton("projections.dense")
    return _quantized if x.is_cpu else _triton("projections.quantized")


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; see `reference.projections`."""
    y: Tensor = _products(x, weight).linear(x, weight, bias)
    return y


def linear_residual(x: Tensor, weight: LinearWeight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual + x @ weight.T + bias, possibly in place of residual; see `reference.projections`."""
    y: Tensor = _products(x, weight).linear_residual(x, weight, residual, bias)
    return y


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """linear(rms_norm(x)); see `reference.projections`."""
    y: Tensor = _products(x, weight).norm_linear(x, norm_weight, eps, weight, bias)
    return y


def norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, gate_up_weight: LinearWeight, activation: Activation
) -> Tensor:
    """act(gate) * up of linear(rms_norm(x)); see `reference.projections`."""
    y: Tensor = _products(x, gate_up_weight).norm_gated_linear(x, norm_weight, eps, gate_up_weight, activation)
    return y


def norm_route(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    rule: RoutingRule,
    *,
    bias: Tensor | None = None,
    choice_bias: Tensor | None = None,
) -> Routes:
    """Norm tokens and choose the experts of each; see `reference.experts`."""
    area = _experts if x.is_cpu else _triton("experts")
    routes: Routes = area.norm_route(x, norm_weight, eps, router_weight, rule, bias=bias, choice_bias=choice_bias)
    return routes


def experts_residual(
    residual: Tensor,
    routes: Routes,
    gate_up: ExpertsWeight,
    down: ExpertsWeight,
    activation: Activation,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    first_expert: int = 0,
) -> Tensor:
    """residual + the weighted sum of what each token's experts make of it; see `reference.experts`."""
    area = _experts if residual.is_cpu else _triton("experts")
    out: Tensor = area.experts_residual(
        residual,
        routes,
        gate_up,
        down,
        activation,
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        first_expert=first_expert,
    )
    return out


def has_fp8_products(device: torch.device) -> bool:
    """Whether a GPU multiplies 8-bit floats; if not, `Fp8Weight`s are widened on their way to the product."""
    has: bool = _triton("projections.fp8_widen").has_products(device)
    return has


def rotary_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_rotated: bool = False,
    interleaved: bool = False,
    query_scaling: QueryScaling | None = None,
    kv_scales: KvScales | None = None,
) -> Tensor:
    """Norm and rotate queries and keys, write keys and values to the cache, return the queries; see `reference.kv_write`."""
    area = _kv_write if qkv.is_cpu else _triton("kv_write")
    q: Tensor = area.rotary_write(
        qkv,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_rotated=norm_rotated,
        interleaved=interleaved,
        query_scaling=query_scaling,
        kv_scales=kv_scales,
    )
    return q


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> Tensor:
    """Causal attention of a mixed batch over a paged KV cache; see `reference.attention`."""
    area = _attention if q.is_cpu else _triton("attention")
    out: Tensor = area.paged_attention(
        q,
        kv_cache,
        block_tables,
        seq_lens,
        query_start,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        kv_scales=kv_scales,
        num_decodes=num_decodes,
        max_seq_len=max_seq_len,
        shared=shared,
    )
    return out


def rotary_attention(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_rotated: bool = False,
    interleaved: bool = False,
    query_scaling: QueryScaling | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kv_scales: KvScales | None = None,
    num_decodes: int,
    max_seq_len: int,
    shared: Shared | None = None,
) -> Tensor:
    """`rotary_write`, then `paged_attention` on its queries; see `reference.attention`."""
    area = _attention if qkv.is_cpu else _triton("attention")
    out: Tensor = area.rotary_attention(
        qkv,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        block_tables,
        seq_lens,
        query_start,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        norm_rotated=norm_rotated,
        interleaved=interleaved,
        query_scaling=query_scaling,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        kv_scales=kv_scales,
        num_decodes=num_decodes,
        max_seq_len=max_seq_len,
        shared=shared,
    )
    return out


def apply_row_deltas(tables: RowTables, segments: Tensor, payload: Tensor) -> None:
    """Copy runs of words into rows; see `reference.rows`."""
    area = _rows if segments.is_cpu else _triton("rows")
    area.apply_row_deltas(tables, segments, payload)


def gather_inputs(
    tables: RowTables, rows: Tensor, starts: Tensor, query_start: Tensor, *, num_tokens: int, block_size: int
) -> GatheredInputs:
    """Read the model inputs of a step from the rows; see `reference.rows`."""
    area = _rows if rows.is_cpu else _triton("rows")
    inputs: GatheredInputs = area.gather_inputs(tables, rows, starts, query_start, num_tokens=num_tokens, block_size=block_size)
    return inputs


def scatter_sampled(tables: RowTables, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    """Write sampled ids into their rows; see `reference.rows`."""
    area = _rows if rows.is_cpu else _triton("rows")
    area.scatter_sampled(tables, rows, positions, token_ids)


def accept_drafts(tables: RowTables, rows: Tensor, line_start: Tensor, token_ids: Tensor, *, most: int) -> Tensor:
    """Write sampled ids into rows with drafts, as far as those agree; see `reference.rows`."""
    area = _rows if rows.is_cpu else _triton("rows")
    accepted: Tensor = area.accept_drafts(tables, rows, line_start, token_ids, most=most)
    return accepted


def sample(logits: Tensor, parameters: SamplingTensors) -> SampledTokens:
    """Sample one token per line; see `reference.sampling`."""
    area = _sampling if logits.is_cpu else _triton("sampling.choice")
    sampled: SampledTokens = area.sample(logits, parameters)
    return sampled


def peer_sum(x: Tensor, slots: PeerSlots, residual: Tensor | None = None) -> Tensor:
    """The ranks' x [rows, n] added up in fp32, in the order of ranks, onto a residual that all have alike.

    Every rank gets the same bits. -0.0 counts as 0.0. Only for GPUs, which map each other's memory; see `peers.memory`.
    """
    total: Tensor = _triton("peers.memory").peer_sum(x, slots, residual)
    return total


def peer_gather(x: Tensor, slots: PeerSlots) -> Tensor:
    """The ranks' x [rows, n] side by side, in the order of ranks: [rows, world_size * n]; otherwise as `peer_sum`."""
    gathered: Tensor = _triton("peers.memory").peer_gather(x, slots)
    return gathered


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """Log-probabilities of one token per line, and the likeliest tokens; see `reference.sampling`."""
    area = _sampling if logits.is_cpu else _triton("sampling.choice")
    logprobs: Logprobs = area.token_logprobs(logits, token_ids, num_top)
    return logprobs


__all__ = [
    "CLAMPED_SILU_ALPHA",
    "CLAMPED_SILU_LIMIT",
    "FP8_BLOCK",
    "GROUPED_COLUMNS",
    "GROUPED_GROUPS",
    "GROUPED_ROWS",
    "INT4_FEW_ROWS",
    "INT4_GROUP",
    "INT4_ROW_MULTIPLE",
    "MXFP4_BLOCK",
    "Activation",
    "ExpertsWeight",
    "Fp8ExpertsWeight",
    "Fp8Weight",
    "GatheredInputs",
    "GroupedWeight",
    "Int4Weight",
    "KvScales",
    "LinearWeight",
    "Mxfp4ExpertsWeight",
    "QueryScaling",
    "Routes",
    "RoutingRule",
    "Shared",
    "accept_drafts",
    "apply_row_deltas",
    "block_weight",
    "blocked_linear",
    "blocked_linear_residual",
    "can_block",
    "can_keep_fp8",
    "can_keep_grouped",
    "can_keep_mxfp4",
    "can_pack",
    "dequantize_fp8",
    "dequantize_grouped",
    "experts_residual",
    "fp8_scale_columns",
    "gated_activation",
    "gather_inputs",
    "has_fp8_products",
    "head_squares",
    "int4_linear",
    "is_eight_bit_cache",
    "layer_norm",
    "linear",
    "linear_residual",
    "mxfp4_numbers",
    "norm_all_heads_",
    "norm_gated_linear",
    "norm_linear",
    "norm_route",
    "pack_eight_bits",
    "pack_four_bits",
    "pack_grouped",
    "pack_mxfp4_exponents",
    "paged_attention",
    "peer_gather",
    "peer_sum",
    "preload",
    "quantize_fp8_rows",
    "rms_norm",
    "rms_norm_residual",
    "rotary_attention",
    "rotary_write",
    "sample",
    "scatter_sampled",
    "token_logprobs",
]
