"""The form of a weight that is a tensor of the model's dtype, by where it lives."""

from __future__ import annotations

from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import can_block


def plain_form(spec: WeightSpec, place: Placement) -> Form:
    """Blocked for oneDNN where this machine multiplies the dtype by it, else dense."""
    return (BlockedForm if can_block(place.dtype, place.device) else DenseForm)(spec, place)
