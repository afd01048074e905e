"""Which form a layer's experts take: decided from the checkpoint's description, before anything is allocated."""

from __future__ import annotations

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.four_bits import FourBitExperts
from streamserve.models.weights.experts.fp8 import Fp8Experts
from streamserve.models.weights.experts.mxfp4 import Mxfp4Experts
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import schemes_of

EXPERTS_FORMS: tuple[type[ExpertsForm], ...] = (Mxfp4Experts, FourBitExperts, Fp8Experts, DenseExperts)
"""In order of preference; the last takes all experts."""


def make_experts(spec: ExpertsSpec, place: Placement) -> ExpertsForm:
    """The experts in the first form that takes them, unfilled.

    Raises `ModelNotSupported` for experts that are stacked and quantized otherwise than by mxfp4.
    """
    scheme_of = schemes_of(place.storage)
    first, *others = {scheme_of(name) for name in spec.names()}
    scheme = None if others else first
    if spec.stored.is_stacked and not first.has_numbers:
        raise ModelNotSupported(f"experts in one tensor that are {first} are not supported: {next(spec.names())}")
    forms = (DenseExperts,) if place.storage.quantization == "none" else EXPERTS_FORMS
    form = next(form for form in forms if form.takes(spec, place, scheme))
    return form(spec, place, scheme)
