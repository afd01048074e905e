"""Caches of 8-bit floats in Triton against the reference: what is written, byte for byte, and attention over it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve_kernels import Heads, KvScales, Scoring, StepTokens
from streamserve_kernels.reference import attention as reference
from streamserve_kernels.reference.attention import kv_format as format_reference
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, PagedBatch, paged_batch, random, relative_error, triton_area

attention = triton_area("attention")

FORMATS = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in format_reference.EIGHT_BIT_DTYPES]
SCALES = KvScales(0.037, 1.3)
E4M3, E5M2 = format_reference.EIGHT_BIT_DTYPES
EVERYTHING: dict[str, Any] = {"window": 20, "softcap": 3.0, "sinks": True}
CASES = [(DTYPES[0], E4M3, EVERYTHING), (DTYPES[0], E5M2, {}), (DTYPES[-1], E4M3, {}), (DTYPES[-1], E5M2, EVERYTHING)]


def eight_bits(batch: PagedBatch, dtype: torch.dtype) -> PagedBatch:
    """The batch with a cache of this dtype; slots that no sequence owns hold NaN."""
    keys, values = batch.cache.unbind(1)
    parts = format_reference.quantize(keys, SCALES.key, dtype), format_reference.quantize(values, SCALES.value, dtype)
    return replace(batch, cache=torch.stack([part.view(torch.uint8) for part in parts], dim=1).view(dtype))


def clean(cache: Tensor) -> Tensor:
    """The cache with zeros in the place of NaN, for the reference."""
    return cache.float().nan_to_num().to(cache.dtype)


def bytes_of(cache: Tensor) -> Tensor:
    return cache.view(torch.uint8)


@pytest.mark.parametrize(("dtype", "kept_as", "variant"), CASES)
def test_attention_over_eight_bits_agrees_with_the_reference(
    variant: dict[str, Any], dtype: torch.dtype, kept_as: torch.dtype
) -> None:
    plain = paged_batch([150, 30, 1, 40, 50], [1, 1, 1, 9, 50], kv_heads=2, head_dim=24, block_size=16, dtype=torch.float32)
    batch = eight_bits(plain, kept_as)
    q = random(batch.num_tokens, 4, 24, dtype=dtype)
    scoring = Scoring(0.3, **variant | ({"sinks": random(4) * 2} if "sinks" in variant else {}))
    actual = attention.paged_attention(q, batch.cache, batch.sequences, scoring, kv_scales=SCALES)
    expected = reference.paged_attention(q.float(), clean(batch.cache), batch.reference_sequences, scoring, kv_scales=SCALES)
    assert relative_error(actual, expected) < LIMITS[dtype]


@pytest.mark.parametrize(
    ("dtype", "rot_dim", "block_size", "kept_as"),
    [(DTYPES[0], 16, 16, E4M3), (DTYPES[-1], 16, 64, E5M2), (DTYPES[-1], 8, 16, E4M3)],
)
def test_what_is_written_is_what_the_reference_writes_and_what_is_attended_to(
    dtype: torch.dtype, rot_dim: int, block_size: int, kept_as: torch.dtype
) -> None:
    plain = paged_batch([150, 1, 24, 18], [1, 1, 3, 18], kv_heads=2, head_dim=16, block_size=block_size, dtype=torch.float32)
    batch = eight_bits(plain, kept_as)
    heads, scoring = Heads(4, 2, 16, random(16, dtype=dtype), random(16, dtype=dtype)), Scoring(0.25)
    qkv, tokens = random(batch.num_tokens, heads.width, dtype=dtype), batch.tokens(random(batch.max_seq_len, rot_dim))
    tokens.slots[3] = -1
    expected_cache = batch.cache.clone()
    q = reference.rotary_write(qkv.clone(), tokens, expected_cache, heads, kv_scales=SCALES)
    expected = reference.paged_attention(q.float(), clean(expected_cache), batch.reference_sequences, scoring, kv_scales=SCALES)

    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    actual = attention.rotary_attention(qkv, tokens, batch.cache, batch.sequences, heads, scoring, kv_scales=SCALES)
    assert relative_error(actual, expected) < max(LIMITS[dtype], 1e-2)
    # A key may be another number where sums in another order lead to the other side of a tie.
    differing = (bytes_of(batch.cache) != bytes_of(expected_cache)).float().mean()
    assert float(differing) < 1e-3


@pytest.mark.parametrize("kept_as", FORMATS)
def test_every_number_is_rounded_as_torch_rounds_it(kept_as: torch.dtype) -> None:
    largest = torch.finfo(kept_as).max
    numbers = torch.arange(128, dtype=torch.uint8).view(kept_as).float()
    finite = numbers[numbers.isfinite()]
    between = (finite[1:] + finite[:-1]) / 2
    beyond = torch.tensor([largest * 1.5, float("inf"), float("nan"), largest * 1e-9])
    x = torch.cat([finite, between, between * (1 - 1e-6), between * (1 + 1e-6), beyond]).to(DEVICE)
    x = torch.nn.functional.pad(torch.cat([x, -x]), (0, -2 * len(x) % 16)).view(-1, 16)
    cache = torch.zeros(len(x), 2, 1, 16, 16, dtype=torch.uint8, device=DEVICE).view(kept_as)
    expected = format_reference.quantize(x, 1.0, kept_as)
    qkv = torch.cat([torch.zeros_like(x), x, x], dim=1)
    slots = torch.arange(len(x), device=DEVICE) * 16
    attention.rotary_write(qkv, StepTokens(slots, None, slots), cache, Heads(1, 1, 16))
    for written in (cache[:, 0, 0, 0], cache[:, 1, 0, 0]):
        assert torch.equal(written.float().nan_to_num(nan=1e9), expected.float().nan_to_num(nan=1e9))
