"""The attention reference against a plain formula, one query at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve_kernels import Scoring, StepSequences
from streamserve_kernels.reference.attention import paged_attention
from streamserve_kernels.reference.attention.kv_format import EIGHT_BIT_DTYPES, KvScales, quantize

BLOCK_SIZE = 16
KV_HEADS, Q_HEADS, HEAD_DIM = 2, 6, 32


def one_query(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None, sinks: Tensor | None = None
) -> Tensor:
    """q [q_heads, head_dim] over exactly the keys it sees, [seen, kv_heads, head_dim]; fp64."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for head in range(q.shape[0]):
        shared = head // (q.shape[0] // keys.shape[1])
        scores = keys[:, shared].double() @ q[head].double() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp()
        total = weights.sum() if sinks is None else weights.sum() + sinks[head].double().exp()
        out[head] = weights / total @ values[:, shared].double()
    return out


class Batch:
    """Sequences given as (tokens in the cache, queries), in a cache whose other slots hold garbage."""

    def __init__(self, shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shapes = shapes
        self.num_queries = sum(queries for _, queries in shapes)
        blocks = sum(-(-length // BLOCK_SIZE) for length, _ in shapes) + 3
        order = torch.randperm(blocks, generator=generator).tolist()
        self.kv_cache = torch.full((blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), 1e4, dtype=dtype)
        self.q = torch.randn(self.num_queries, Q_HEADS, HEAD_DIM, generator=generator).to(dtype)
        width = max(-(-length // BLOCK_SIZE) for length, _ in shapes) + 2
        self.block_tables = torch.full((len(shapes), width), -1, dtype=torch.int32)
        self.contents: list[tuple[Tensor, Tensor]] = []
        for row, (length, _) in enumerate(shapes):
            keys, values = torch.randn(2, length, KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
            self.contents.append((keys, values))
            for index in range(-(-length // BLOCK_SIZE)):
                block = order.pop()
                self.block_tables[row, index] = block
                part = slice(index * BLOCK_SIZE, min((index + 1) * BLOCK_SIZE, length))
                self.kv_cache[block, 0, :, : part.stop - part.start] = keys[part].transpose(0, 1)
                self.kv_cache[block, 1, :, : part.stop - part.start] = values[part].transpose(0, 1)

    def attend(self, *, kv_scales: KvScales | None = None, num_decodes: int | None = None, **scoring: Any) -> Tensor:
        queries = [queries for _, queries in self.shapes]
        leading = next((index for index, count in enumerate(queries) if count > 1), len(queries))
        sequences = StepSequences(
            self.block_tables,
            torch.tensor([length for length, _ in self.shapes], dtype=torch.int32),
            torch.tensor([0, *queries]).cumsum(0).int(),
            num_decodes=leading if num_decodes is None else num_decodes,
            max_seq_len=max(length for length, _ in self.shapes),
        )
        return paged_attention(self.q, self.kv_cache, sequences, Scoring(HEAD_DIM**-0.5, **scoring), kv_scales=kv_scales)

    def round(self, kept_as: torch.dtype, scales: KvScales) -> None:
        """Keep the numbers as 8-bit floats."""
        parts = [quantize(part, scale, kept_as) for part, scale in zip(self.kv_cache.unbind(1), scales, strict=True)]
        self.kv_cache = torch.stack([part.view(torch.uint8) for part in parts], dim=1).view(kept_as)
        self.contents = [
            (
                quantize(keys, scales.key, kept_as).double() * scales.key,
                quantize(values, scales.value, kept_as).double() * scales.value,
            )
            for keys, values in self.contents
        ]

    def expected(self, *, window: int | None = None, softcap: float | None = None, sinks: Tensor | None = None) -> Tensor:
        rows = iter(self.q)
        out = []
        for (length, queries), (keys, values) in zip(self.shapes, self.contents, strict=True):
            for position in range(length - queries, length):
                first = 0 if window is None else max(0, position + 1 - window)
                seen = slice(first, position + 1)
                out.append(one_query(next(rows), keys[seen], values[seen], HEAD_DIM**-0.5, softcap, sinks))
        return torch.stack(out)


MIXES = {
    "one decode": [(37, 1)],
    "one token": [(1, 1)],
    "decodes of like lengths": [(37, 1), (5, 1), (64, 1)],
    "decodes of unlike lengths": [(700, 1), (5, 1), (300, 1), (16, 1)],
    "many decodes": [(37, 1), (5, 1), (64, 1), (200, 1), (1, 1), (16, 1)],
    "one prefill": [(45, 45)],
    "a prefill longer than a chunk": [(300, 300)],
    "a later chunk of a prefill": [(300, 140)],
    "decodes and prefills": [(33, 1), (600, 1), (40, 40), (150, 30)],
}


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("mix", MIXES)
def test_every_query_sees_exactly_its_own_past(mix: str, window: int | None) -> None:
    batch = Batch(MIXES[mix])
    torch.testing.assert_close(batch.attend(window=window).double(), batch.expected(window=window), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 20])
@pytest.mark.parametrize("mix", MIXES)
def test_blocks_that_left_the_window_may_be_anybodys(mix: str, window: int) -> None:
    batch = Batch(MIXES[mix])
    for row, (length, queries) in enumerate(batch.shapes):
        first = max(0, length - queries - window + 1) // BLOCK_SIZE
        batch.block_tables[row, :first] = torch.randint(0, len(batch.kv_cache), (first,), dtype=torch.int32)
    torch.testing.assert_close(batch.attend(window=window).double(), batch.expected(window=window), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"window": 20}, {"softcap": 3.0}, {"sinks": True, "window": 20}], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_nan_that_a_sequence_left_in_the_cache_reaches_no_other(mix: str, options: dict[str, Any]) -> None:
    batch = Batch(MIXES[mix])
    if "sinks" in options:
        options = {**options, "sinks": torch.randn(batch.q.shape[1])}
    expected, window = batch.expected(**options), options.get("window")
    broken = len(batch.kv_cache)
    batch.kv_cache = torch.cat([batch.kv_cache, torch.full_like(batch.kv_cache[:1], torch.nan)])
    for row, (length, queries) in enumerate(batch.shapes):
        first = 0 if window is None else max(0, length - queries - window + 1) // BLOCK_SIZE
        last = -(-length // BLOCK_SIZE)
        batch.block_tables[row, :first] = broken
        batch.block_tables[row, last:] = broken
        batch.kv_cache[batch.block_tables[row, last - 1], :, :, (length - 1) % BLOCK_SIZE + 1 :] = torch.nan
    torch.testing.assert_close(batch.attend(**options).double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mix", ["many decodes", "decodes and prefills"])
def test_scores_are_capped_softly(mix: str) -> None:
    batch = Batch(MIXES[mix])
    capped = batch.attend(softcap=0.5)
    torch.testing.assert_close(capped.double(), batch.expected(softcap=0.5), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(capped, batch.attend(), atol=1e-3)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("mix", MIXES)
def test_sinks_take_their_share_of_the_weights(mix: str, window: int | None) -> None:
    batch, sinks = Batch(MIXES[mix]), torch.linspace(-2, 4, Q_HEADS)
    attended = batch.attend(window=window, sinks=sinks)
    torch.testing.assert_close(attended.double(), batch.expected(window=window, sinks=sinks), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attended, batch.attend(window=window), atol=1e-3)


@pytest.mark.parametrize("kept_as", EIGHT_BIT_DTYPES)
@pytest.mark.parametrize("mix", ["one decode", "many decodes", "decodes and prefills"])
def test_eight_bits_stand_for_their_numbers_times_the_scales(mix: str, kept_as: torch.dtype) -> None:
    batch, scales, options = Batch(MIXES[mix]), KvScales(0.01, 3.0), {"window": 60, "softcap": 2.0}
    batch.round(kept_as, scales)
    attended = batch.attend(kv_scales=scales, **options)
    torch.testing.assert_close(attended.double(), batch.expected(**options), atol=1e-5, rtol=1e-4)


def test_decodes_give_the_same_whether_they_are_announced_or_not() -> None:
    batch = Batch(MIXES["decodes of unlike lengths"])
    torch.testing.assert_close(batch.attend(num_decodes=0), batch.attend(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mix", ["many decodes", "decodes and prefills"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_its_inputs(dtype: torch.dtype, mix: str) -> None:
    batch = Batch(MIXES[mix], dtype)
    error = (batch.attend().double() - batch.expected()).abs().max().item()
    assert error < 4 * math.ldexp(1.0, -8 if dtype is torch.bfloat16 else -11)


def test_masks_of_prompts_that_are_divided_differently_are_kept_apart() -> None:
    """The last queries of a long prompt and all those of a short one see as much, and are multiplied in other ways."""
    batch = Batch([(192, 192), (192, 64)], torch.bfloat16)
    assert (batch.attend().double() - batch.expected()).abs().max().item() < math.ldexp(1.0, -6)
