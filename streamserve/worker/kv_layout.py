"""How the layers of a model share one pool of KV blocks.

A block is the same place in each of several tensors. It belongs to one layer group at a time, and each layer of a group uses
one of the tensors: so memory is wherever it is needed, and no share of it is set aside for one kind of layer (as in vLLM's
hybrid KV cache manager). Layers of one kind form one group, with a tensor for each of them; where kinds mix, they are split
into groups of one size, and a group that is smaller leaves some of its blocks' tensors empty. Plain numbers: allocates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from streamserve.errors import ModelNotSupported
from streamserve.kv_groups import KvGroups
from streamserve.models.arch import PagedKv

MAX_GROUPS = 16
"""Every group is a block table to keep, and to gather in each step."""

_HALVINGS = 7
"""Sequences are taken to be as long as `max_model_len`, half as long, and so on, down to a 64th of it."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What one block of a model's cache is made of, and who uses it.

    groups        the layer groups, as a scheduler counts them
    group_of      per layer: its group
    tensor_of     per layer: its tensor; layers of one group have different ones
    num_tensors   of how many tensors a block is made
    dtype         of keys and values
    step_tokens   the most tokens that a step computes
    """

    groups: KvGroups
    group_of: tuple[int, ...]
    tensor_of: tuple[int, ...]
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    step_tokens: int

    @property
    def num_tensors(self) -> int:
        return max(self.tensor_of) + 1

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Of one block in one tensor: [2, kv_heads, block_size, head_dim]."""
        return 2, self.kv_heads, self.groups.block_size, self.head_dim

    @property
    def block_bytes(self) -> int:
        return self.num_tensors * 2 * self.kv_heads * self.groups.block_size * self.head_dim * self.dtype.itemsize

    def blocks_for(self, num_tokens: int) -> int:
        """The most blocks that a sequence of `num_tokens` tokens holds at a time."""
        return self.groups.blocks_for(num_tokens, self.step_tokens)


def lay_out(
    layers: Sequence[PagedKv], *, max_model_len: int, block_size: int, step_tokens: int, dtype: torch.dtype
) -> KvLayout:
    """The layout in which decoding sequences take the least memory: on average over lengths from `max_model_len` down.

    layers  what each layer keeps
    Raises `ModelNotSupported` when they keep tokens of different sizes.
    """
    sizes = {(layer.kv_heads, layer.head_dim) for layer in layers}
    if len(sizes) > 1:
        raise ModelNotSupported("layers with KV heads of different number or size are not supported in one model")
    kv_heads, head_dim = sizes.pop()

    lengths = [max_model_len >> halvings for halvings in range(_HALVINGS) if max_model_len >> halvings]

    def cost(partition: _Partition) -> tuple[float, int]:
        groups = KvGroups(block_size, tuple(window for window, _ in partition))
        largest = max(len(members) for _, members in partition)
        return largest * sum(groups.blocks_for(length, 1) / -(-length // block_size) for length in lengths), len(partition)

    best = min(_partitions(layers, max_model_len), key=cost)
    places = {layer: (group, tensor) for group, (_, members) in enumerate(best) for tensor, layer in enumerate(members)}
    return KvLayout(
        groups=KvGroups(block_size, tuple(window for window, _ in best)),
        group_of=tuple(places[layer][0] for layer in range(len(layers))),
        tensor_of=tuple(places[layer][1] for layer in range(len(layers))),
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        step_tokens=step_tokens,
    )


_Partition = list[tuple[int | None, list[int]]]
"""Layer groups: the window of each, and its layers."""


def _partitions(layers: Sequence[PagedKv], max_model_len: int) -> Iterator[_Partition]:
    """All layers in one group that keeps everything, and every way to split the kinds of layer into groups of one size."""
    yield [(None, list(range(len(layers))))]
    kinds: dict[int | None, list[int]] = {}
    for index, layer in enumerate(layers):
        # A window that no sequence outgrows keeps everything.
        window = layer.window if layer.window is not None and layer.window < max_model_len else None
        kinds.setdefault(window, []).append(index)
    for size in range(1, max(map(len, kinds.values())) + 1):
        groups = [
            (window, members[first : first + size])
            for window, members in kinds.items()
            for first in range(0, len(members), size)
        ]
        if len(groups) <= MAX_GROUPS:
            yield groups
