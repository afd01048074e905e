"""Experts that are stored quantized, a tensor each, expanded one matrix at a time while they are loaded."""

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


def expanded(part: ExpertPart, scheme: Scheme, place: Placement) -> Iterator[Destination]:
    """The destinations of what a matrix is stored as; when all of it is there, its numbers fill the part's target."""
    matrix = _Matrix(part, scheme, place)
    for name, destination in matrix.wanted(torch.device("meta")).items():
        if part.target is None:
            yield left_out(name, destination.region)
        else:
            yield replace(destination, fill=matrix.receives(name))


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
