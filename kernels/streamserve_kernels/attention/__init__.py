"""Paged attention in Triton, and the rotation and write of keys and values before it.

The specification is `reference/attention`. Launch sizes depend on host integers only; lengths are read on the device, so a
captured launch serves every context length.
"""

from streamserve_kernels.attention.batch import paged_attention, rotary_attention
from streamserve_kernels.attention.kv_write import rotary_write

__all__ = ["paged_attention", "rotary_attention", "rotary_write"]
