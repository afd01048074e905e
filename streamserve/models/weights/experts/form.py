"""What every form of experts' weights is to its layer and to the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.noise import tile
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve_kernels import Activation, Routes


class ExpertsForm(nn.Module, ABC):
    """The weights of a layer's experts: their parameters, which stored tensors fill them, and the kernels that multiply.

    Made with uninitialised parameters; once every destination is filled, `finish` makes it ready to multiply.

    is_expanded  the checkpoint stores the experts in fewer bits than they have here
    """

    is_expanded: bool

    @classmethod
    @abstractmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        """Whether experts can have this form, by how they are stored and where they will live.

        scheme  of all of their weights; None where those are stored unlike each other
        """

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def destinations(self) -> Iterator[Destination]:
        """What fills its parameters."""

    def finish(self) -> None:
        """Bring the parameters, now filled, into the layout that the kernels want; called once."""

    def randomize(self, noise: Tensor) -> None:
        """Fill its parameters with numbers like these, [many] of the model's dtype, instead."""
        for parameter in self.parameters():
            tile(parameter, noise)

    @abstractmethod
    def onto(self, residual: Tensor, routes: Routes, activation: Activation) -> Tensor:
        """residual [tokens, hidden] + the weighted sum of what each token's experts make of it.

        The residual's memory may be taken for the sum; experts that another rank holds are left out.
        """
