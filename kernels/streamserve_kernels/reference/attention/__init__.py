"""Attention over a paged KV cache, in torch: rotation, the write into the cache, its formats, and attention of a batch."""

from streamserve_kernels.reference.attention.arguments import Heads, QueryScaling, Scoring, StepSequences, StepTokens
from streamserve_kernels.reference.attention.batch import paged_attention, rotary_attention
from streamserve_kernels.reference.attention.kv_write import rotary_write

__all__ = [
    "Heads", "QueryScaling", "Scoring", "StepSequences", "StepTokens", "paged_attention", "rotary_attention", "rotary_write",
]  # fmt: skip
