"""Kernels for a paged KV cache: a torch reference that is the specification, and Triton on NVIDIA GPUs.

Import from here; the modules behind are private to this package and its tests. Knows nothing of streamserve.
"""

from streamserve_kernels.dispatch.activations import gated_activation
from streamserve_kernels.dispatch.areas import preload
from streamserve_kernels.dispatch.attention import paged_attention, rotary_attention, rotary_write
from streamserve_kernels.dispatch.experts import experts_residual, norm_route
from streamserve_kernels.dispatch.norms import head_squares, layer_norm, norm_all_heads_, rms_norm, rms_norm_residual
from streamserve_kernels.dispatch.peers import peer_gather, peer_sum
from streamserve_kernels.dispatch.projections import (
    LinearWeight,
    has_fp8_products,
    linear,
    linear_residual,
    norm_gated_linear,
    norm_linear,
)
from streamserve_kernels.dispatch.rows import accept_drafts, apply_row_deltas, gather_inputs, scatter_sampled
from streamserve_kernels.dispatch.sampling import sample, token_logprobs
from streamserve_kernels.peers.slots import PeerSlots, clear_slots, slot_bytes
from streamserve_kernels.reference.activations import CLAMPED_SILU_ALPHA, CLAMPED_SILU_LIMIT, Activation
from streamserve_kernels.reference.attention.arguments import Heads, QueryScaling, Scoring, StepSequences, StepTokens
from streamserve_kernels.reference.attention.kv_format import KvScales
from streamserve_kernels.reference.attention.kv_format import is_eight_bit as is_eight_bit_cache
from streamserve_kernels.reference.attention.shared import Shared
from streamserve_kernels.reference.experts import Routes, RoutingRule
from streamserve_kernels.reference.projections.blocked import block_weight, blocked_linear, blocked_linear_residual, can_block
from streamserve_kernels.reference.projections.fp8 import BLOCK as FP8_BLOCK
from streamserve_kernels.reference.projections.fp8 import Fp8Weight, can_keep_fp8
from streamserve_kernels.reference.projections.fp8 import dequantize as dequantize_fp8
from streamserve_kernels.reference.projections.fp8 import quantize_rows as quantize_fp8_rows
from streamserve_kernels.reference.projections.fp8 import scale_columns as fp8_scale_columns
from streamserve_kernels.reference.projections.grouped import COLUMNS as GROUPED_COLUMNS
from streamserve_kernels.reference.projections.grouped import GROUPS as GROUPED_GROUPS
from streamserve_kernels.reference.projections.grouped import ROWS as GROUPED_ROWS
from streamserve_kernels.reference.projections.grouped import GroupedWeight, can_keep_grouped
from streamserve_kernels.reference.projections.grouped import dequantize as dequantize_grouped
from streamserve_kernels.reference.projections.grouped import pack as pack_grouped
from streamserve_kernels.reference.projections.int4 import FEW_ROWS as INT4_FEW_ROWS
from streamserve_kernels.reference.projections.int4 import GROUP as INT4_GROUP
from streamserve_kernels.reference.projections.int4 import ROW_MULTIPLE as INT4_ROW_MULTIPLE
from streamserve_kernels.reference.projections.int4 import Int4Weight, can_pack, int4_linear, pack_eight_bits, pack_four_bits
from streamserve_kernels.reference.quantized_experts import (
    MXFP4_BLOCK,
    ExpertsWeight,
    Fp8ExpertsWeight,
    GroupedExpertsWeight,
    Mxfp4ExpertsWeight,
    can_keep_mxfp4,
    mxfp4_numbers,
)
from streamserve_kernels.reference.quantized_experts import pack_exponents as pack_mxfp4_exponents
from streamserve_kernels.reference.quantized_experts import pack_groups as pack_expert_groups
from streamserve_kernels.reference.rows import GatheredInputs
from streamserve_kernels.rows.tables import BEHIND_TOKENS, RowLayout, RowTables, make_row_tables
from streamserve_kernels.sampling.tensors import (
    NO_TOKEN,
    BadWords,
    LogitEdits,
    LogprobRequest,
    Logprobs,
    Penalties,
    SampledTokens,
    SamplingTensors,
    TokenMasks,
)
from streamserve_kernels.target import Target, target_of

__all__ = [
    "BEHIND_TOKENS",
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
    "NO_TOKEN",
    "Activation",
    "BadWords",
    "ExpertsWeight",
    "Fp8ExpertsWeight",
    "Fp8Weight",
    "GatheredInputs",
    "GroupedExpertsWeight",
    "GroupedWeight",
    "Heads",
    "Int4Weight",
    "KvScales",
    "LinearWeight",
    "LogitEdits",
    "LogprobRequest",
    "Logprobs",
    "Mxfp4ExpertsWeight",
    "PeerSlots",
    "Penalties",
    "QueryScaling",
    "Routes",
    "RoutingRule",
    "RowLayout",
    "RowTables",
    "SampledTokens",
    "SamplingTensors",
    "Scoring",
    "Shared",
    "StepSequences",
    "StepTokens",
    "Target",
    "TokenMasks",
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
    "clear_slots",
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
    "make_row_tables",
    "mxfp4_numbers",
    "norm_all_heads_",
    "norm_gated_linear",
    "norm_linear",
    "norm_route",
    "pack_eight_bits",
    "pack_expert_groups",
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
    "slot_bytes",
    "target_of",
    "token_logprobs",
]
