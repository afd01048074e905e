"""What every form of experts' weights is to its layer and to the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.experts.biases import ExpertBiases
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve_kernels import Activation, ExpertsWeight, Routes, experts_residual


class ExpertsForm(nn.Module, ABC):
    """The weights of a layer's experts: their parameters, which stored tensors fill them, and the kernels that multiply.

    Made with uninitialised parameters; once every destination is filled, `finish` makes it ready to multiply.

    is_expanded  the checkpoint stores the experts in fewer bits than they have here
    """

    is_expanded: bool
    biases: ExpertBiases

    @classmethod
    @abstractmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        """Whether experts can have this form, by how they are stored and where they will live.

        scheme  of all of their weights; None where those are stored unlike each other
        """

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None, *, inner: int | None = None) -> None:
        """inner  features of each expert's weights, where that is more than the experts have"""
        super().__init__()
        self.spec, self.scheme = spec, scheme
        self.biases = ExpertBiases(spec, place, inner=inner)

    @property
    @abstractmethod
    def weights(self) -> tuple[ExpertsWeight, ExpertsWeight]:
        """gate_up [experts, 2 * inner, hidden], where rows of gate and up take turns, and down [experts, hidden, inner]."""

    def destinations(self) -> Iterator[Destination]:
        """What fills its parameters."""
        yield from self.weight_destinations()
        yield from self.biases.destinations()

    @abstractmethod
    def weight_destinations(self) -> Iterator[Destination]:
        """What fills all but the biases."""

    def finish(self) -> None:
        """Bring the parameters, now filled, into the layout that the kernels want; called once."""

    def randomize(self, noise: Tensor) -> None:
        """Fill its parameters with numbers like these, [many] of the model's dtype, instead."""
        self.randomize_weights(noise)
        self.biases.randomize(noise)

    @abstractmethod
    def randomize_weights(self, noise: Tensor) -> None:
        """Fill all but the biases."""

    def onto(self, residual: Tensor, routes: Routes, activation: Activation) -> Tensor:
        """residual [tokens, hidden] + the weighted sum of what each token's experts make of it.

        The residual's memory may be taken for the sum; experts that another rank holds are left out.
        """
        gate_up, down = self.weights
        first = self.spec.experts.start
        return experts_residual(residual, routes, gate_up, down, activation, first_expert=first, **self.biases.by_name)
