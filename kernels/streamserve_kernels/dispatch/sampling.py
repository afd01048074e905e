"""Sampling of the next token, on the device of the logits."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import sampling as reference
from streamserve_kernels.sampling.tensors import Logprobs, SampledTokens, SamplingTensors


def sample(logits: Tensor, parameters: SamplingTensors) -> SampledTokens:
    """Sample one token per line; see `reference.sampling`."""
    area = reference if logits.is_cpu else triton_area("sampling.choice")
    sampled: SampledTokens = area.sample(logits, parameters)
    return sampled


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """Log-probabilities of one token per line, and the likeliest tokens; see `reference.sampling`."""
    area = reference if logits.is_cpu else triton_area("sampling.choice")
    logprobs: Logprobs = area.token_logprobs(logits, token_ids, num_top)
    return logprobs
