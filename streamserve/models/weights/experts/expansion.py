"""Experts that stand for numbers of the model's dtype, a matrix at a time: stored quantized, or rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from streamserve.models.weights.destination import Destination, left_out
from streamserve.models.weights.experts.spec import ExpertPart
from streamserve.models.weights.forms.expanded import ExpandedForm
from streamserve.models.weights.forms.form import WeightPart, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.gguf import GgufIntegers
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import Fp8Weight, dequantize_fp8, quantize_fp8_rows


def expanded(part: ExpertPart, scheme: Scheme, place: Placement) -> Iterator[Destination]:
    """The destinations of what a matrix is stored as; when all of it is there, its numbers fill the part's target."""
    matrix = _Matrix(part, scheme, place)
    for name, destination in matrix.wanted(torch.device("meta")).items():
        if part.target is None:
            yield left_out(name, destination.region)
        else:
            yield replace(destination, fill=matrix.receives(name))


def rounded(part: ExpertPart, *, transposed: bool) -> Destination:
    """The destination of numbers that become those which 8-bit floats stand for; of one matrix, or of several, stacked.

    transposed  matrices are stored [in, out]
    """
    target = part.target
    if target is None:
        return left_out(part.name, part.region)

    def fill(stored: StoredTensor) -> None:
        numbers = stored.values[part.region.slices]
        stacked = (numbers, target) if target.dim() == 3 else (numbers.unsqueeze(0), target.unsqueeze(0))
        for of_expert, filled in zip(*stacked, strict=True):
            weight = (of_expert.t() if transposed else of_expert).to(filled.device)
            wide = dequantize_fp8(Fp8Weight(*quantize_fp8_rows(weight)))
            filled.copy_(wide.t() if transposed else wide)

    return Destination(part.name, part.region, fill)


def is_stored_wide(scheme: Scheme) -> bool:
    """Whether a source reads the tensor as the matrix's numbers."""
    return scheme is PLAIN or isinstance(scheme, GgufIntegers)


class _Matrix:
    """One of an expert's matrices. While it arrives, and only then, it has a form of its own."""

    def __init__(self, part: ExpertPart, scheme: Scheme, place: Placement) -> None:
        self._target, self._scheme = part.target, scheme
        self._spec = WeightSpec((WeightPart(part.name.removesuffix(".weight"), part.region),))
        # In fp32 no weight stays as it is stored.
        self._place = replace(place, dtype=torch.float32)
        self._form: ExpandedForm | None = None
        self._missing: dict[str, Destination] = {}

    def wanted(self, device: torch.device) -> dict[str, Destination]:
        """What a new form of it takes, by name."""
        form = self._scheme.form(self._spec, replace(self._place, device=device))
        assert isinstance(form, ExpandedForm)
        self._form = form
        return {destination.name: destination for destination in form.destinations()}

    def receives(self, name: str) -> Callable[[StoredTensor], None]:
        def fill(stored: StoredTensor) -> None:
            if not self._missing:
                self._missing = self.wanted(self._place.device)
            self._missing.pop(name).fill(stored)
            if not self._missing and self._form is not None and self._target is not None:
                self._form.finish()
                self._target.copy_(self._form.numbers)
                self._form = None

        return fill
