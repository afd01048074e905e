"""What a scheme is: how a checkpoint stores the weight of a linear, and which form that becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.plain import plain_form
from streamserve.models.weights.placement import Placement


class Scheme(ABC):
    """How the weight of one linear is stored. Those of a fused linear's parts must be equal: frozen dataclasses are."""

    has_numbers: ClassVar[bool] = False
    """The tensor called like the linear can be read as the weight's numbers."""

    @abstractmethod
    def form(self, spec: WeightSpec, place: Placement) -> Form:
        """The form that such a weight takes where it will live, unfilled.

        Raises `ConfigError` for a share of it that can't be taken.
        """


class Plain(Scheme):
    """Numbers of a float dtype."""

    has_numbers = True

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        return plain_form(spec, place)

    def __str__(self) -> str:
        return "not quantized"


PLAIN = Plain()

Schemes: TypeAlias = Callable[[str], Scheme]
"""The scheme of a linear by its name in the checkpoint."""

Reader: TypeAlias = Callable[[Mapping[str, Any]], Schemes]
"""What a `quantization_config` says. Raises `ModelNotSupported` naming what has no scheme, and what has one."""
