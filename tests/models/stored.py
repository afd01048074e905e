"""Tensors of a checkpoint that are made up in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve.models.layers.linear import Linear
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor


class MadeUp(StoredTensor):
    """Numbers, or integers that stand for them."""

    def __init__(self, name: str, content: Tensor | GroupedIntegers) -> None:
        self.name = name
        self._content = content
        self.shape = tuple(content.shape if isinstance(content, Tensor) else content.quants.shape)
        self.num_bytes = 0

    @property
    def values(self) -> Tensor:
        return self._content if isinstance(self._content, Tensor) else numbers(self._content)

    @property
    def integers(self) -> GroupedIntegers:
        assert isinstance(self._content, GroupedIntegers)
        return self._content


def numbers(integers: GroupedIntegers) -> Tensor:
    """What grouped integers stand for, in fp64, with scales and zeros as kernels have them."""
    scale = integers.scale.bfloat16().double().repeat_interleave(32, dim=1)
    if integers.zero is None:
        return integers.quants.double() * scale
    return (integers.quants.double() - 8) * scale + integers.zero.bfloat16().double().repeat_interleave(32, dim=1)


def four_bits(rows: int, columns: int) -> GroupedIntegers:
    quants = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    return GroupedIntegers(quants, torch.rand(rows, columns // 32), torch.randn(rows, columns // 32))


def eight_bits(rows: int, columns: int) -> GroupedIntegers:
    quants = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    return GroupedIntegers(quants, torch.rand(rows, columns // 32) / 16, None)


def fill(linear: Linear, stored: dict[str, Tensor | GroupedIntegers]) -> Linear:
    """A linear filled from tensors by name, as a loader would."""
    with torch.inference_mode():
        for destination in linear.destinations():
            content = MadeUp(destination.name, stored[destination.name])
            assert destination.region.is_of(content.shape)
            destination.fill(content)
        linear.finish()
    return linear
