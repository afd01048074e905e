"""Attention in Triton against the reference in fp32: mixed batches, splits, windows, caps, head and block sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streamserve_kernels import Heads, QueryScaling, Scoring
from streamserve_kernels.reference import attention as reference
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, PagedBatch, paged_batch, random, relative_error, triton_area

attention = triton_area("attention")

SCALING = QueryScaling(0.5, 16)
SHAPES = [
    pytest.param(16, 4, 2, 16, id="grouped"),
    pytest.param(16, 3, 1, 32, id="one-kv-head"),
    pytest.param(16, 2, 2, 64, id="head-per-kv-head"),
    pytest.param(24, 4, 2, 16, id="odd-head-dim"),
]
VARIANTS = [
    pytest.param({}, id="plain"),
    pytest.param({"window": 20}, id="window"),
    pytest.param({"softcap": 5.0}, id="softcap"),
    pytest.param({"window": 150, "softcap": 3.0}, id="both"),
    pytest.param({"sinks": True}, id="sinks"),
    pytest.param({"sinks": True, "window": 20, "softcap": 3.0}, id="sinks-window-softcap"),
]


def mixed(kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> PagedBatch:
    """Two decoding sequences that take several parts each, one of a single token, a chunk in the middle, a whole prompt."""
    lens, queries = [300, 30, 1, 40, 50], [1, 1, 1, 9, 50]
    return paged_batch(lens, queries, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "q_heads", "kv_heads", "block_size"), SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mixed_batch_agrees_with_the_reference(
    head_dim: int, q_heads: int, kv_heads: int, block_size: int, variant: dict[str, Any], dtype: torch.dtype
) -> None:
    batch = mixed(kv_heads, head_dim, block_size, dtype)
    q = random(batch.num_tokens, q_heads, head_dim, dtype=dtype)
    scoring = Scoring(head_dim**-0.5, **variant | ({"sinks": random(q_heads) * 2} if "sinks" in variant else {}))
    actual = attention.paged_attention(q, batch.cache, batch.sequences, scoring)
    expected = reference.paged_attention(q.float(), batch.finite_cache, batch.reference_sequences, scoring)
    assert relative_error(actual, expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "q_heads", "kv_heads", "block_size"), SHAPES[::3])
@pytest.mark.parametrize(("rot_dim", "normed"), [("all", True), ("all", False), ("half", True), (None, False)])
def test_rotation_write_and_attention_in_one_agree_with_the_reference(
    head_dim: int, q_heads: int, kv_heads: int, block_size: int, rot_dim: str | None, normed: bool, dtype: torch.dtype
) -> None:
    batch = mixed(kv_heads, head_dim, block_size, dtype)
    assert_agrees_with_the_reference(batch, q_heads, rot_dim, normed)


@pytest.mark.parametrize(
    ("rot_dim", "normed", "turn"),
    [
        ("all", True, {"interleaved": True}),
        ("half", False, {"interleaved": True}),
        ("all", True, {"norm_rotated": True}),
        ("half", True, {"norm_rotated": True}),
        ("all", False, {"query_scaling": SCALING}),
        ("all", True, {"interleaved": True, "norm_rotated": True, "query_scaling": SCALING}),
        ("half", True, {"interleaved": True, "norm_rotated": True, "query_scaling": SCALING}),
        (None, True, {"norm_rotated": True, "query_scaling": SCALING}),
    ],
)
def test_other_pairs_norms_after_the_rotation_and_scaled_queries_agree_with_the_reference(
    rot_dim: str | None, normed: bool, turn: dict[str, Any]
) -> None:
    dtype = DTYPES[-1] if len(turn) > 1 else torch.float32
    batch = paged_batch([40, 1, 24, 18], [1, 1, 3, 18], kv_heads=2, head_dim=24, block_size=16, dtype=dtype)
    assert_agrees_with_the_reference(batch, 4, rot_dim, normed, **turn)


def assert_agrees_with_the_reference(batch: PagedBatch, q_heads: int, rot_dim: str | None, normed: bool, **turn: Any) -> None:
    kv_heads, head_dim, dtype = batch.cache.shape[2], batch.cache.shape[4], batch.cache.dtype
    width = {"all": head_dim, "half": head_dim // 2, None: None}[rot_dim]
    heads = heads_of(q_heads, kv_heads, head_dim, dtype, normed)._replace(**turn)
    qkv = random(batch.num_tokens, heads.width, dtype=dtype)
    cos_sin = None if width is None else random(batch.max_seq_len, width)
    expected_cache = batch.cache.clone()
    tokens, scoring = batch.tokens(cos_sin), Scoring(head_dim**-0.5)
    q = reference.rotary_write(qkv.clone(), tokens, expected_cache, heads)
    expected = reference.paged_attention(q.float(), expected_cache.float().nan_to_num(), batch.reference_sequences, scoring)

    settle()
    actual = attention.rotary_attention(qkv, tokens, batch.cache, batch.sequences, heads, scoring)
    assert relative_error(actual, expected) < LIMITS[dtype]
    assert torch.equal(batch.cache.isnan(), expected_cache.isnan())
    assert relative_error(batch.finite_cache, expected_cache.float().nan_to_num()) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rot_dim", [16, 8, None])
def test_padding_is_written_nowhere(rot_dim: int | None, dtype: torch.dtype) -> None:
    batch = paged_batch([5, 20], [5, 3], kv_heads=2, head_dim=16, block_size=16, dtype=dtype)
    heads = heads_of(4, 2, 16, dtype, normed=True)
    qkv = random(8, 8 * 16, dtype=dtype)
    cos_sin = None if rot_dim is None else random(20, rot_dim)
    tokens = batch.tokens(cos_sin)
    tokens.slots[3] = -1
    expected_cache, cache = batch.cache.clone(), batch.cache.clone()
    expected = reference.rotary_write(qkv.clone(), tokens, expected_cache, heads)
    settle()
    actual = attention.rotary_write(qkv, tokens, cache, heads)
    assert relative_error(actual, expected) < LIMITS[dtype]
    assert relative_error(cache.float().nan_to_num(), expected_cache.float().nan_to_num()) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES[-1:])
@pytest.mark.parametrize("window", [1, 20, 150])
def test_blocks_that_left_the_window_may_be_anybodys_and_full_of_nan(window: int, dtype: torch.dtype) -> None:
    batch = mixed(2, 16, 16, dtype)
    q = random(batch.num_tokens, 4, 16, dtype=dtype)
    stale, unused = batch.block_tables.clone(), torch.isnan(batch.cache).flatten(1).all(1).nonzero().item()
    firsts = batch.seq_lens - batch.query_start.diff() - window + 1
    for row, first in enumerate(firsts.clamp(min=0).tolist()):
        stale[row, : first // 16] = unused
    assert not torch.equal(stale, batch.block_tables)
    outputs = [
        attention.paged_attention(q, batch.cache, batch.sequences._replace(block_tables=tables), Scoring(0.25, window))
        for tables in (stale, batch.block_tables)
    ]
    assert not outputs[0].isnan().any()
    assert torch.equal(*outputs)


def test_parts_are_added_up_the_same_way_every_time() -> None:
    batch = paged_batch([700, 300], [1, 1], kv_heads=1, head_dim=16, block_size=16, dtype=torch.float32)
    q = random(2, 2, 16)
    runs = [attention.paged_attention(q, batch.cache, batch.sequences, Scoring(0.25)) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_padded_sequence_of_no_tokens_gives_zeros() -> None:
    batch = paged_batch([40, 1], [1, 1], kv_heads=1, head_dim=16, block_size=16, dtype=torch.float32)
    lens = torch.tensor([40, 0], dtype=torch.int32, device=DEVICE)
    padded = batch.sequences._replace(seq_lens=lens)
    out = attention.paged_attention(random(2, 2, 16), batch.cache, padded, Scoring(0.25))
    assert torch.equal(out[1], torch.zeros_like(out[1]))


def heads_of(q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, normed: bool) -> Heads:
    heads = Heads(q_heads, kv_heads, head_dim)
    if not normed:
        return heads
    return heads._replace(q_norm=random(head_dim, dtype=dtype), k_norm=random(head_dim, dtype=dtype))


def settle() -> None:
    """What a decode reads of earlier tokens must be of an earlier step; here, of work that is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
