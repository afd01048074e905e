"""Weights that are stored wider and become 8-bit floats while they are loaded: `--quantization fp8`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.expanded import ExpandedAtLast
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.forms.fp8 import Fp8Form
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.fp8 import keeps_fp8
from streamserve.models.weights.schemes.names import is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import quantize_fp8_rows

_KEPT = ("lm_head", "router", "re:.*\\.gate$")
"""Heads, and routers of experts: few numbers that decide much."""


@dataclass(frozen=True)
class Fp8OnLoad(Scheme):
    """Numbers of a float dtype; each row is given a scale of its own."""

    has_numbers = True

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        if spec.table is not None:
            return PLAIN.form(spec, place)
        narrow = Fp8Form(spec, place, _fill)
        return narrow if keeps_fp8(spec, place) else ExpandedAtLast(narrow, spec, place)


def quantize_on_load(name: str) -> Scheme:
    """The scheme of a linear by its name."""
    return PLAIN if is_listed(name, _KEPT) else Fp8OnLoad()


def _fill(form: Fp8Form) -> Iterator[Destination]:
    for (part, values), (_, scale) in zip(form.spec.split(form.values), form.spec.split(form.scale), strict=True):
        yield Destination(f"{part.name}.weight", part.region, _rounds(part, values, scale))


def _rounds(part: WeightPart, values: Tensor, scale: Tensor) -> Callable[[StoredTensor], None]:
    def fill(stored: StoredTensor) -> None:
        narrow, factors = quantize_fp8_rows(stored.values[part.region.slices].to(values.device))
        values.copy_(narrow)
        scale.copy_(factors)

    return fill
