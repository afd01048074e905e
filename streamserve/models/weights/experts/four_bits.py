"""Experts of 4-bit integers in groups, as a GPU's kernels unpack them in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, left_out
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertPart, ExpertsSpec
from streamserve.models.weights.forms.form import WeightPart
from streamserve.models.weights.forms.four_bits import RANDOM_SCALE
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.noise import random_words
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.four_bits import StoredFourBits
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve_kernels import (
    GROUPED_COLUMNS,
    GROUPED_ROWS,
    GroupedExpertsWeight,
    can_keep_grouped,
    pack_expert_groups,
    pack_grouped,
)


class FourBitExperts(ExpertsForm):
    """Activations keep their precision.

    gate_up_words, down_words  int32, as `GroupedExpertsWeight` has them, of [experts, 2 * inner, hidden], whose rows of gate
                               and up take turns, and [experts, hidden, inner]
    gate_up_scale, down_scale  of the model's dtype, as it has those
    gate_up_zero, down_zero    uint8, as it has those; None where all are 8
    Tiles are whole: inner features are made a multiple of their columns by zeros.
    """

    gate_up_words: nn.Parameter
    gate_up_scale: nn.Parameter
    gate_up_zero: nn.Parameter | None
    down_words: nn.Parameter
    down_scale: nn.Parameter
    down_zero: nn.Parameter | None
    is_expanded = False

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> None:
        assert isinstance(scheme, StoredFourBits)
        inner = -(-len(spec.inner) // GROUPED_COLUMNS) * GROUPED_COLUMNS
        super().__init__(spec, place, scheme, inner=inner)
        self._scheme, self._device = scheme, place.device

        def packed(outer: int, columns: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter | None]:
            tiles = len(spec.experts), outer // GROUPED_ROWS
            of_groups = *tiles, columns // scheme.group, 8, 2
            words = place.empty(*tiles, columns // GROUPED_COLUMNS, 32, 4, dtype=torch.int32)
            return words, place.empty(*of_groups), place.empty(*of_groups, dtype=torch.uint8) if scheme.has_zero else None

        self.gate_up_words, self.gate_up_scale, self.gate_up_zero = packed(2 * inner, spec.hidden_size)
        self.down_words, self.down_scale, self.down_zero = packed(spec.hidden_size, inner)
        self._weights = (
            GroupedExpertsWeight(self.gate_up_words, self.gate_up_scale, self.gate_up_zero),
            GroupedExpertsWeight(self.down_words, self.down_scale, self.down_zero),
        )

    @classmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        if not isinstance(scheme, StoredFourBits) or scheme.has_order or spec.stored.is_fused:
            return False
        fits = spec.hidden_size % max(GROUPED_COLUMNS, scheme.group) == 0
        return fits and can_keep_grouped(place.dtype, place.device)

    @property
    def weights(self) -> tuple[GroupedExpertsWeight, GroupedExpertsWeight]:
        return self._weights

    def weight_destinations(self) -> Iterator[Destination]:
        # Only shapes count: numbers are packed on their way.
        count, hidden, inner = len(self.spec.experts), self.spec.hidden_size, len(self.spec.inner)
        shapes = torch.empty(count, 2 * inner, hidden, device="meta"), torch.empty(count, hidden, inner, device="meta")
        parts, num_experts = list(self.spec.weights(*shapes)), self.spec.num_experts
        by_kind = (parts[first : first + num_experts] for first in range(0, len(parts), num_experts))
        for expert, (gate, up, down) in enumerate(zip(*by_kind, strict=True)):
            for matrices, weight in zip(((gate, up), (down,)), self.weights, strict=True):
                yield from self._destinations(matrices, weight, expert - self.spec.experts.start)

    def _destinations(self, parts: Sequence[ExpertPart], weight: GroupedExpertsWeight, index: int) -> Iterator[Destination]:
        """index  of the expert, of those that are held"""
        stored = [WeightPart(part.name.removesuffix(".weight"), part.region) for part in parts]
        for part in stored:
            self._scheme.refuse_cut_groups(part)
        wanted = self._scheme.stored(stored, self._device, _packs(weight, index))
        if parts[0].target is None:
            # Another rank's: only names are wanted.
            wanted = (left_out(each.name, each.region) for each in wanted)
        yield from wanted

    def randomize_weights(self, noise: Tensor) -> None:
        for weight in self.weights:
            weight.words.copy_(random_words(weight.words))
            weight.scale.fill_(RANDOM_SCALE)
            if weight.zero is not None:
                weight.zero.fill_(8)


def _packs(weight: GroupedExpertsWeight, index: int) -> Callable[[Sequence[FourBits]], None]:
    """Packs an expert's matrices, whose rows take turns; rows and columns that they lack are zeros."""

    def use(matrices: Sequence[FourBits]) -> None:
        _, rows, columns = weight.shape

        def in_turns(values: Sequence[Tensor], num_columns: int) -> Tensor:
            joined = torch.stack(list(values), dim=1).flatten(0, 1)
            return F.pad(joined, (0, num_columns - joined.shape[1], 0, rows - joined.shape[0]))

        groups = columns // weight.group
        weight.words[index] = pack_grouped(in_turns([each.quants for each in matrices], columns))
        weight.scale[index] = pack_expert_groups(in_turns([each.scale for each in matrices], groups)).to(weight.scale.dtype)
        if weight.zero is not None:
            zeros = [each.zero for each in matrices if each.zero is not None]
            weight.zero[index] = pack_expert_groups(in_turns(zeros, groups))

    return use
