"""Weights that are stored wider and become 8-bit floats while they are loaded: `--quantization fp8`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from streamserve.models.weights.destination import Destination, Region
from streamserve.models.weights.forms.expanded import ExpandedAtLast
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.fp8 import Fp8Form
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.fp8 import Fp8Scheme, keeps_fp8
from streamserve.models.weights.schemes.names import is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import quantize_fp8_rows

_KEPT = ("lm_head", "router", "re:.*\\.gate$")
"""Heads, and routers of experts: few numbers that decide much."""


AT_ONCE = 1 << 24
"""Numbers that are rounded at once: 64 MB in fp32."""


@dataclass(frozen=True)
class Fp8OnLoad(Fp8Scheme):
    """Numbers of a float dtype; each row is given a scale of its own."""

    has_numbers = True
    per: Literal["tensor", "row", "block"] = "row"
    input_scale: bool = False

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        if spec.table is not None:
            return PLAIN.form(spec, place)
        narrow = Fp8Form(spec, place, self._fill)
        return narrow if keeps_fp8(spec, place) else ExpandedAtLast(narrow, spec, place)

    def _fill(self, form: Fp8Form) -> Iterator[Destination]:
        for part, values, scale in form.parts():
            yield from self.parts(f"{part.name}.weight", part.region, values, scale)

    def parts(self, name: str, region: Region, values: Tensor, scale: Tensor) -> Iterator[Destination]:
        yield Destination(name, region, _rounds(region, values, scale))


def quantize_on_load(name: str) -> Scheme:
    """The scheme of a linear by its name."""
    return PLAIN if is_listed(name, _KEPT) else Fp8OnLoad()


def _rounds(region: Region, values: Tensor, scale: Tensor) -> Callable[[StoredTensor], None]:
    """Fills values [rows, columns] and scale [rows, 1] with a part of what is stored, or those of several matrices, stacked."""

    def fill(stored: StoredTensor) -> None:
        part = stored.values[region.slices]
        if values.dim() == 2:
            _round(part, values, scale)
        else:
            # One matrix at a time: all experts of a layer take gigabytes in fp32.
            for each in zip(part, values, scale, strict=True):
                _round(*each)

    return fill


def _round(part: Tensor, values: Tensor, scale: Tensor) -> None:
    # Where weights are stored [in, out], what they fill is turned as well, and the scale is a row.
    if scale.shape[1] != 1:
        part, values, scale = part.t(), values.t(), scale.t()
    # Some rows at a time, so that little more than the rounded weights is ever held.
    num_rows = max(1, AT_ONCE // part.shape[1])
    for first in range(0, len(part), num_rows):
        rows = slice(first, first + num_rows)
        narrow, factors = quantize_fp8_rows(part[rows].to(values.device))
        values[rows] = narrow
        scale[rows] = factors
