"""Which form a linear's weight takes: decided from the checkpoint's description, before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.placement import Placement

FORMS: tuple[type[Form], ...] = (Int4Form, BlockedForm, DenseForm)
"""In order of preference; the last takes every weight."""


def choose_form(spec: WeightSpec, place: Placement) -> type[Form]:
    """The first form that takes the weight."""
    return next(form for form in FORMS if form.takes(spec, place))


def refuse_unknown_quantization(config: Mapping[str, Any]) -> None:
    """Raises `ModelNotSupported` when config.json names a quantization method that no form is made for."""
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method", "unknown")
    if all(method not in form.methods for form in FORMS):
        raise ModelNotSupported(f"quantization method {method!r} is not supported; use an unquantized or a .gguf checkpoint")
