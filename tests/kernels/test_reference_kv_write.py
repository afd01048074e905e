"""Splitting, norming, rotating and storing, against the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference.attention import kv_write
from streamserve_kernels.reference.attention.arguments import Heads, QueryScaling, StepTokens
from streamserve_kernels.reference.attention.kv_write import rotary_write, write_kv

Q_HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 2, 16, 16
SLOTS = torch.tensor([35, 3, 64, 17, 18])
POSITIONS = torch.tensor([7, 0, 40, 2, 3])


def write(cos_sin: Tensor | None, slots: Tensor = SLOTS, **norms: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(projection, queries returned, cache) with a cache full of sevens."""
    qkv = torch.randn(5, (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=torch.Generator().manual_seed(1))
    kv_cache = torch.full((6, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), 7.0)
    heads = Heads(Q_HEADS, KV_HEADS, HEAD_DIM, **norms, eps=1e-5)
    q = rotary_write(qkv.clone(), StepTokens(POSITIONS, cos_sin, slots), kv_cache, heads)
    return qkv.view(5, -1, HEAD_DIM), q, kv_cache


def stored(kv_cache: Tensor, side: int) -> Tensor:
    """What lies in SLOTS: [tokens, kv_heads, head_dim]."""
    return torch.stack([kv_cache[slot // BLOCK_SIZE, side, :, slot % BLOCK_SIZE] for slot in SLOTS.tolist()])


def table(rot_dim: int) -> Tensor:
    angles = torch.arange(64.0).unsqueeze(1) * torch.tensor([0.9**i for i in range(rot_dim // 2)])
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotated(heads: Tensor, rot_dim: int) -> Tensor:
    """Rotation as a complex product, dimension i paired with i + rot_dim / 2."""
    cos, sin = table(rot_dim)[POSITIONS].chunk(2, dim=1)
    half = rot_dim // 2
    turned = torch.complex(heads[..., :half], heads[..., half:rot_dim]) * torch.complex(cos, sin).unsqueeze(1)
    return torch.cat([turned.real, turned.imag, heads[..., rot_dim:]], dim=-1)


def normed(heads: Tensor, weight: Tensor) -> Tensor:
    return heads / (heads.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("rot_dim", [HEAD_DIM, 8])
def test_queries_and_keys_are_rotated_and_values_are_not(rot_dim: int) -> None:
    heads, q, kv_cache = write(table(rot_dim))
    torch.testing.assert_close(q, rotated(heads[:, :Q_HEADS], rot_dim))
    torch.testing.assert_close(stored(kv_cache, 0), rotated(heads[:, Q_HEADS:-KV_HEADS], rot_dim))
    assert torch.equal(stored(kv_cache, 1), heads[:, -KV_HEADS:])


def test_heads_are_normed_before_they_are_rotated() -> None:
    q_norm, k_norm = torch.rand(HEAD_DIM) + 0.5, torch.rand(HEAD_DIM) + 0.5
    heads, q, kv_cache = write(table(HEAD_DIM), q_norm=q_norm, k_norm=k_norm)
    torch.testing.assert_close(q, rotated(normed(heads[:, :Q_HEADS], q_norm), HEAD_DIM))
    torch.testing.assert_close(stored(kv_cache, 0), rotated(normed(heads[:, Q_HEADS:-KV_HEADS], k_norm), HEAD_DIM))
    assert torch.equal(stored(kv_cache, 1), heads[:, -KV_HEADS:])


@pytest.mark.parametrize("whole_heads", [True, False])
@pytest.mark.parametrize("rot_dim", [HEAD_DIM, 8])
def test_interleaved_pairs_are_neighbours(rot_dim: int, whole_heads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_write, "WHOLE_HEAD_TOKENS", 32 if whole_heads else 0)
    heads, q, kv_cache = write(table(rot_dim), interleaved=True)
    cos, sin = table(rot_dim)[POSITIONS].chunk(2, dim=1)
    turns = torch.complex(cos, sin).unsqueeze(1)

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_real(torch.view_as_complex(x[..., :rot_dim].reshape(*x.shape[:2], -1, 2)) * turns)
        return torch.cat([pairs.flatten(-2), x[..., rot_dim:]], dim=-1)

    torch.testing.assert_close(q, turned(heads[:, :Q_HEADS]))
    torch.testing.assert_close(stored(kv_cache, 0), turned(heads[:, Q_HEADS:-KV_HEADS]))
    assert torch.equal(stored(kv_cache, 1), heads[:, -KV_HEADS:])


def test_heads_are_normed_after_they_are_rotated_where_that_is_said() -> None:
    q_norm, k_norm = torch.rand(HEAD_DIM) + 0.5, torch.rand(HEAD_DIM) + 0.5
    heads, q, kv_cache = write(table(HEAD_DIM), q_norm=q_norm, k_norm=k_norm, norm_rotated=True)
    torch.testing.assert_close(q, normed(rotated(heads[:, :Q_HEADS], HEAD_DIM), q_norm))
    torch.testing.assert_close(stored(kv_cache, 0), normed(rotated(heads[:, Q_HEADS:-KV_HEADS], HEAD_DIM), k_norm))


def test_queries_grow_with_every_length_of_positions_and_keys_do_not() -> None:
    _, plain, plain_cache = write(table(HEAD_DIM))
    _, q, kv_cache = write(table(HEAD_DIM), query_scaling=QueryScaling(0.5, 8))
    factors = [1 + 0.5 * math.log(1 + position // 8) for position in POSITIONS.tolist()]
    torch.testing.assert_close(q, plain * torch.tensor(factors).view(-1, 1, 1))
    assert torch.equal(kv_cache, plain_cache)


def test_without_a_table_nothing_is_rotated() -> None:
    heads, q, kv_cache = write(None)
    assert torch.equal(q, heads[:, :Q_HEADS])
    assert torch.equal(stored(kv_cache, 0), heads[:, Q_HEADS:-KV_HEADS])


def test_only_the_named_slots_are_written() -> None:
    _, _, kv_cache = write(table(HEAD_DIM))
    untouched = torch.ones(6 * BLOCK_SIZE, dtype=torch.bool).index_fill_(0, SLOTS, False)
    by_slot = kv_cache.permute(0, 3, 1, 2, 4).flatten(0, 1)
    assert (by_slot[untouched] == 7.0).all()


def test_padding_is_written_nowhere() -> None:
    padded = SLOTS.clone()
    padded[1], padded[4] = -1, -1
    _, q, kv_cache = write(table(HEAD_DIM), slots=padded)
    by_slot = kv_cache.permute(0, 3, 1, 2, 4).flatten(0, 1)
    assert (by_slot[[3, 18, 6 * BLOCK_SIZE - 1]] == 7.0).all()
    assert q.shape == (5, Q_HEADS, HEAD_DIM)


@pytest.mark.parametrize("slots", [[], [35], [-1], [17, 18], [-1, 3], [3, -1], [35, -1, 64]])
def test_however_few_tokens_each_goes_to_its_slot_or_nowhere(slots: list[int]) -> None:
    key_value = torch.randn(len(slots), 2, KV_HEADS, HEAD_DIM)
    kv_cache = torch.full((6, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), 7.0)
    write_kv(key_value, kv_cache, torch.tensor(slots, dtype=torch.int64))
    expected = torch.full((6 * BLOCK_SIZE, 2, KV_HEADS, HEAD_DIM), 7.0)
    for slot, token in zip(slots, key_value, strict=True):
        if slot >= 0:
            expected[slot] = token
    assert torch.equal(kv_cache.permute(0, 3, 1, 2, 4).flatten(0, 1), expected)
