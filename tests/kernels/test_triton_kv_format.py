"""Caches of 8-bit floats in Triton against the reference: what is written, byte for byte, and attention over it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve_kernels import KvScales
from streamserve_kernels.reference import attention as reference
from streamserve_kernels.reference.attention import kv_format as format_reference
from streamserve_kernels.reference.attention import kv_write as reference_kv_write
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, PagedBatch, paged_batch, random, relative_error, triton_area

attention = triton_area("attention")
kv_write = triton_area("attention.kv_write")

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
    options = {"scale": 0.3, "kv_scales": SCALES, **variant, **batch.sizes}
    if "sinks" in variant:
        options["sinks"] = random(4) * 2
    actual = attention.paged_attention(q, batch.cache, *batch.tables, **options)
    tables = batch.block_tables.clamp(max=batch.cache.shape[0] - 1), batch.seq_lens, batch.query_start
    expected = reference.paged_attention(q.float(), clean(batch.cache), *tables, **options)
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
    heads: dict[str, Any] = {"q_heads": 4, "kv_heads": 2, "head_dim": 16, "kv_scales": SCALES}
    heads |= {"q_norm": random(16, dtype=dtype), "k_norm": random(16, dtype=dtype)}
    qkv, cos_sin = random(batch.num_tokens, 8 * 16, dtype=dtype), random(batch.max_seq_len, rot_dim)
    slots = batch.slots.clone()
    slots[3] = -1
    expected_cache = batch.cache.clone()
    q = reference_kv_write.rotary_write(qkv.clone(), batch.positions, cos_sin, expected_cache, slots, **heads)
    tables = batch.block_tables.clamp(max=batch.cache.shape[0] - 1), batch.seq_lens, batch.query_start
    options = {"scale": 0.25, "kv_scales": SCALES, **batch.sizes}
    expected = reference.paged_attention(q.float(), clean(expected_cache), *tables, **options)

    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    actual = attention.rotary_attention(
        qkv, batch.positions, cos_sin, batch.cache, slots, *batch.tables, **heads, scale=0.25, **batch.sizes
    )
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
    kv_write.rotary_write(qkv, slots, None, cache, slots, q_heads=1, kv_heads=1, head_dim=16)
    for written in (cache[:, 0, 0, 0], cache[:, 1, 0, 0]):
        assert torch.equal(written.float().nan_to_num(nan=1e9), expected.float().nan_to_num(nan=1e9))
