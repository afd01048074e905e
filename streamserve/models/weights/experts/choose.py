"""Which form a layer's experts take: decided from the checkpoint's description, before anything is allocated."""

from __future__ import annotations

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.gguf import GgufIntegers
from streamserve.models.weights.schemes.scheme import PLAIN
from streamserve.models.weights.schemes.table import schemes_of

EXPERTS_FORMS: tuple[type[ExpertsForm], ...] = (DenseExperts,)
"""In order of preference; the last takes all experts."""


def choose_experts_form(spec: ExpertsSpec, place: Placement) -> type[ExpertsForm]:
    """The first form that takes the experts.

    Raises `ModelNotSupported` for a scheme of quantization that none has.
    """
    name = (spec.prefix + spec.stored.gate.format(0)).removesuffix(".weight")
    scheme = schemes_of(place.storage)(name)
    if scheme is not PLAIN and not isinstance(scheme, GgufIntegers):
        raise ModelNotSupported(f"experts that are quantized are not supported, unless by mxfp4 or in a .gguf file: {name}")
    return next(form for form in EXPERTS_FORMS if form.takes(spec, place))
