"""Mixtures of experts in Triton: routing, and products of each expert's weights with the tokens that go to it.

The specification is `reference/experts.py`. Nothing here asks the device for a number: how many tokens an expert has is read by
the programs, and those too many for it end at once, so a captured launch serves every routing.
"""

from streamserve_kernels.experts.products import experts_residual
from streamserve_kernels.experts.routing import norm_route

__all__ = ["experts_residual", "norm_route"]
