"""Experts of 8-bit floats, stacked, with a scale for each row or for each block of 128 × 128."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, Region, left_out
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertPart, ExpertsSpec
from streamserve.models.weights.forms.fp8 import SPREAD
from streamserve.models.weights.noise import STD, tile
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.fp8 import Fp8Scheme, refuse_cut_blocks
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve_kernels import (
    FP8_BLOCK,
    Fp8ExpertsWeight,
    can_keep_fp8,
    fp8_scale_columns,
)

_STEP = 16
"""Kernels read this many numbers of a row at once."""


class Fp8Experts(ExpertsForm):
    """Activations of a lone token keep their precision; those of more are rounded to 8 bits, by what they are.

    gate_up, down              float8_e4m3fn, as `DenseExperts` has them
    gate_up_scale, down_scale  fp32, as `Fp8ExpertsWeight` has them
    """

    gate_up: nn.Parameter
    gate_up_scale: nn.Parameter
    down: nn.Parameter
    down_scale: nn.Parameter
    is_expanded = False

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> None:
        super().__init__(spec, place, scheme)
        assert isinstance(scheme, Fp8Scheme)
        self._scheme = scheme
        count, hidden, inner = len(spec.experts), spec.hidden_size, len(spec.inner)

        def scale(matrices: int, rows: int, columns: int) -> nn.Parameter:
            if scheme.per == "block":
                rows, columns = -(-rows // FP8_BLOCK), fp8_scale_columns(columns)
            else:
                columns = 1
            # What is beyond the columns of a scale is not filled, and not used.
            made = place.empty(count, matrices * rows, columns, dtype=torch.float32)
            made.fill_(1.0)
            return made

        self.gate_up = place.empty(count, 2 * inner, hidden, dtype=torch.float8_e4m3fn)
        self.gate_up_scale = scale(2, inner, hidden)
        self.down = place.empty(count, hidden, inner, dtype=torch.float8_e4m3fn)
        self.down_scale = scale(1, hidden, inner)
        self._weights = (
            Fp8ExpertsWeight(self.gate_up, self.gate_up_scale, alternates=True),
            Fp8ExpertsWeight(self.down, self.down_scale),
        )

    @classmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        fits = spec.hidden_size % _STEP == 0 and len(spec.inner) % _STEP == 0
        return isinstance(scheme, Fp8Scheme) and fits and can_keep_fp8(place.dtype, place.device)

    @property
    def weights(self) -> tuple[Fp8ExpertsWeight, Fp8ExpertsWeight]:
        return self._weights

    def weight_destinations(self) -> Iterator[Destination]:
        weights = self.spec.weights(self.gate_up, self.down)
        for part, scale in zip(weights, self.spec.weights(self.gate_up_scale, self.down_scale), strict=True):
            yield from self._part(part, scale.target)

    def _part(self, part: ExpertPart, scale: Tensor | None) -> Iterator[Destination]:
        name = part.name.removesuffix(".weight")
        if self._scheme.per == "block":
            refuse_cut_blocks(name, part.region, ends_late=part.region.ranges[0].stop == part.region.whole[0])
        if self._scheme.input_scale:
            yield left_out(f"{name}.input_scale", Region.of(1))
        if part.target is not None and scale is not None:
            yield from self._scheme.parts(part.name, part.region, part.target, scale)
            return
        # Another rank's: only names are wanted.
        nothing = torch.empty(0, 0, device="meta")
        for destination in self._scheme.parts(part.name, part.region, nothing, nothing):
            yield left_out(destination.name, destination.region)

    def randomize_weights(self, noise: Tensor) -> None:
        narrow = (noise.float() * (SPREAD / STD)).to(self.gate_up.dtype)
        for weight in self.weights:
            tile(weight.values, narrow)
            weight.scale.fill_(STD / SPREAD)
