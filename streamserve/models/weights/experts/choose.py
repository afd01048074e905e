"""Which form a layer's experts take: decided from the checkpoint's description, before anything is allocated."""

from __future__ import annotations

from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement

EXPERTS_FORMS: tuple[type[ExpertsForm], ...] = (DenseExperts,)
"""In order of preference; the last takes all experts."""


def choose_experts_form(spec: ExpertsSpec, place: Placement) -> type[ExpertsForm]:
    """The first form that takes the experts."""
    return next(form for form in EXPERTS_FORMS if form.takes(spec, place))
