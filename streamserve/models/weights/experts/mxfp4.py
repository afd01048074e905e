"""Experts of MXFP4 numbers as a GPU's kernels unpack them in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.destination import Destination
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.mxfp4_blocks import digits_of, in_blocks
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.noise import random_words
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve_kernels import (
    GROUPED_COLUMNS,
    GROUPED_ROWS,
    Mxfp4ExpertsWeight,
    can_keep_mxfp4,
    pack_grouped,
    pack_mxfp4_exponents,
)

_RANDOM_EXPONENTS = 0x78787878
"""Four times 2 ** -7: numbers have a standard deviation of 2.9 before it."""


class Mxfp4Experts(ExpertsForm):
    """Activations keep their precision.

    gate_up_words, down_words          int32, as `Mxfp4ExpertsWeight` has them, of [experts, 2 * inner, hidden], whose rows of
                                       gate and up take turns, and [experts, hidden, inner]
    gate_up_exponents, down_exponents  int32, as it has those
    Tiles are whole: inner features are made a multiple of their columns by zeros.
    """

    gate_up_words: nn.Parameter
    gate_up_exponents: nn.Parameter
    down_words: nn.Parameter
    down_exponents: nn.Parameter
    is_expanded = False

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> None:
        inner = -(-len(spec.inner) // GROUPED_COLUMNS) * GROUPED_COLUMNS
        super().__init__(spec, place, scheme, inner=inner)

        def packed(outer: int, columns: int, *of_tile: int) -> nn.Parameter:
            tiles = outer // GROUPED_ROWS, columns // GROUPED_COLUMNS
            return place.empty(len(spec.experts), *tiles, *of_tile, dtype=torch.int32)

        self.gate_up_words = packed(2 * inner, spec.hidden_size, 32, 4)
        self.gate_up_exponents = packed(2 * inner, spec.hidden_size, 8)
        self.down_words = packed(spec.hidden_size, inner, 32, 4)
        self.down_exponents = packed(spec.hidden_size, inner, 8)
        self._weights = (
            Mxfp4ExpertsWeight(self.gate_up_words, self.gate_up_exponents),
            Mxfp4ExpertsWeight(self.down_words, self.down_exponents),
        )

    @classmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        fits = spec.hidden_size % GROUPED_COLUMNS == 0
        return spec.is_mxfp4(place.storage) and fits and can_keep_mxfp4(place.dtype, place.device)

    @property
    def weights(self) -> tuple[Mxfp4ExpertsWeight, Mxfp4ExpertsWeight]:
        return self._weights

    def weight_destinations(self) -> Iterator[Destination]:
        # Only shapes count: numbers are packed on their way.
        count, hidden, inner = len(self.spec.experts), self.spec.hidden_size, len(self.spec.inner)
        shapes = torch.empty(count, 2 * inner, hidden, device="meta"), torch.empty(count, hidden, inner, device="meta")
        for part, weight in zip(self.spec.weights(*shapes), self.weights, strict=True):
            yield from in_blocks(part, _packs(part.name, weight))

    def randomize_weights(self, noise: Tensor) -> None:
        for weight in self.weights:
            weight.words.copy_(random_words(weight.words))
            weight.exponents.fill_(_RANDOM_EXPONENTS)


def _packs(name: str, weight: Mxfp4ExpertsWeight) -> Callable[[Tensor, Tensor], None]:
    """Packs blocks and scales of all experts, one at a time; rows and columns that they lack are zeros."""

    def use(blocks: Tensor, scales: Tensor) -> None:
        _, rows, columns = weight.shape
        for words, exponents, *stored in zip(weight.words, weight.exponents, blocks, scales, strict=True):
            of_blocks, of_scales = (each.to(words.device) for each in stored)
            digits = digits_of(of_blocks)
            missing = (0, columns - digits.shape[1], 0, rows - digits.shape[0])
            words.copy_(pack_grouped(F.pad(digits, missing)))
            missing = (0, columns // 32 - of_scales.shape[1], 0, rows - of_scales.shape[0])
            try:
                exponents.copy_(pack_mxfp4_exponents(F.pad(of_scales, missing)))
            except ValueError as error:
                raise ModelNotSupported(f"{name}: {error}") from error

    return use
