"""Which form a layer's experts take: decided from the checkpoint's description, before anything is allocated."""

from __future__ import annotations

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.experts.expansion import is_stored_wide
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import schemes_of

EXPERTS_FORMS: tuple[type[ExpertsForm], ...] = (DenseExperts,)
"""In order of preference; the last takes all experts."""


def choose_experts_form(spec: ExpertsSpec, place: Placement) -> type[ExpertsForm]:
    """The first form that takes the experts.

    Raises `ModelNotSupported` for experts that are stacked and quantized otherwise than by mxfp4, and `ConfigError` when they
    are to be quantized while they are loaded.
    """
    name = (spec.prefix + spec.stored.gate.format(0)).removesuffix(".weight")
    scheme = schemes_of(place.storage)(name)
    if not is_stored_wide(scheme):
        if scheme.has_numbers:
            raise ConfigError(
                f"--quantization {place.storage.quantization} leaves out experts, which this model has: leave it out"
            )
        if spec.stored.is_stacked:
            raise ModelNotSupported(f"experts in one tensor that are {scheme} are not supported: {name}")
    return next(form for form in EXPERTS_FORMS if form.takes(spec, place))
