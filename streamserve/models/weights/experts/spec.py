"""Which tensors of a checkpoint hold a layer's experts, and the part of each that this rank keeps.

A rank holds every expert's share of inner features, or all of some experts. Either way what it computes is a summand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from streamserve.models.division import share_of_blocks
from streamserve.models.mixture import ExpertTensors, Mixture, bias_of
from streamserve.models.weights.destination import Region
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import MXFP4_BLOCK


@dataclass(frozen=True)
class ExpertPart:
    """Numbers of the experts that come out of one tensor of the checkpoint.

    name     of that tensor
    region   what is taken of it
    target   the numbers' place, of the region's shape; a view. None where another rank keeps them
    """

    name: str
    region: Region
    target: Tensor | None


@dataclass(frozen=True)
class ExpertsSpec:
    """A layer's experts, as many of them and as much of each as this rank holds.

    prefix   of the tensors' names
    stored   how the checkpoint stores them
    experts  numbers of those that are held
    inner    which inner features of each
    biased   whether they have biases
    adds_down_bias  whether the bias of down is in what this rank computes: in one rank's only, where all have all experts
    """

    prefix: str
    stored: ExpertTensors
    num_experts: int
    hidden_size: int
    inner_size: int
    experts: range
    inner: range
    biased: bool
    adds_down_bias: bool

    @classmethod
    def of(cls, mixture: Mixture, hidden_size: int, prefix: str, place: Placement) -> ExpertsSpec:
        """Raises `ConfigError` when the experts can't be divided among the ranks."""
        experts, inner, of = range(mixture.num_experts), range(mixture.inner_size), prefix.removesuffix(".")
        names = place.storage.names
        stored = next((each for each in mixture.tensors if each.are_in(names, prefix)), mixture.tensors[0])
        what = f"inner features of the experts of {of}"
        if place.divides_experts:
            experts = place.share(mixture.num_experts, f"experts of {of}")
        elif stored.mxfp4:
            inner = share_of_blocks(mixture.inner_size, MXFP4_BLOCK, place.rank, place.world_size, what)
        else:
            inner = place.share(mixture.inner_size, what)
        adds_down_bias = mixture.biased and (place.divides_experts or place.rank == 0)
        size = mixture.inner_size
        return cls(prefix, stored, mixture.num_experts, hidden_size, size, experts, inner, mixture.biased, adds_down_bias)

    def is_mxfp4(self, storage: WeightStorage) -> bool:
        """Whether the checkpoint has blocks of MXFP4; random weights are made as config.json says."""
        says_so = storage.quantization_config.get("quant_method") == "mxfp4"
        return self.stored.mxfp4 and (says_so or bool(storage.names))

    def names(self) -> Iterator[str]:
        """Of the linears, as schemes call them."""
        for name in dict.fromkeys((self.stored.gate, self.stored.up, self.stored.down)):
            for expert in range(1 if self.stored.is_stacked else self.num_experts):
                yield (self.prefix + name.format(expert)).removesuffix(".weight")

    def weights(self, gate_up: Tensor, down: Tensor) -> Iterator[ExpertPart]:
        """What fills the weights.

        gate_up  [experts, 2 * inner, hidden], where rows of gate and up take turns
        down     [experts, hidden, inner]
        Either may be something else that has rows in turns, or in order, such as scales of rows; regions are those of weights.
        """
        by_kind = gate_up.view(len(self.experts), gate_up.shape[1] // 2, 2, gate_up.shape[2])
        hidden = range(self.hidden_size)
        if self.stored.is_fused:
            yield from self._fused(self.stored.gate, gate_up, by_kind, (hidden,))
        else:
            for name, target in ((self.stored.gate, by_kind[:, :, 0]), (self.stored.up, by_kind[:, :, 1])):
                yield from self._parts(name, target, (self.inner, hidden), (self.inner_size, self.hidden_size))
        yield from self._parts(self.stored.down, down, (hidden, self.inner), (self.hidden_size, self.inner_size))

    def biases(self, gate_up: Tensor, down: Tensor | None) -> Iterator[ExpertPart]:
        """What fills biases, gate_up [experts, 2 * inner] and down [experts, hidden], or None where another rank has that."""
        by_kind = gate_up.view(len(self.experts), len(self.inner), 2)
        if self.stored.is_fused:
            yield from self._fused(bias_of(self.stored.gate), gate_up, by_kind, ())
        else:
            for name, target in ((self.stored.gate, by_kind[:, :, 0]), (self.stored.up, by_kind[:, :, 1])):
                yield from self._parts(bias_of(name), target, (self.inner,), (self.inner_size,))
        yield from self._parts(bias_of(self.stored.down), down, (range(self.hidden_size),), (self.hidden_size,))

    def _fused(self, name: str, both: Tensor, by_kind: Tensor, columns: tuple[range, ...]) -> Iterator[ExpertPart]:
        """The parts of a tensor that holds gate and up."""
        whole = (2 * self.inner_size, *(len(each) for each in columns))
        if self.stored.alternates:
            rows = range(2 * self.inner.start, 2 * self.inner.stop)
            yield from self._parts(name, both, (rows, *columns), whole)
            return
        for kind in range(2):
            first = kind * self.inner_size
            rows = range(first + self.inner.start, first + self.inner.stop)
            yield from self._parts(name, by_kind[:, :, kind], (rows, *columns), whole)

    def _parts(
        self, name: str, target: Tensor | None, taken: tuple[range, ...], whole: tuple[int, ...]
    ) -> Iterator[ExpertPart]:
        """The parts of a weight or bias of each expert, of which `taken` goes to `target` [experts, ...]."""
        if self.stored.transposed and len(whole) == 2:
            taken, whole, target = taken[::-1], whole[::-1], None if target is None else target.mT
        if self.stored.is_stacked:
            region = Region((self.num_experts, *whole), (self.experts, *taken))
            yield ExpertPart(self.prefix + name, region, target)
            return
        for expert in range(self.num_experts):
            own = target[expert - self.experts.start] if target is not None and expert in self.experts else None
            yield ExpertPart(self.prefix + name.format(expert), Region(whole, taken), own)
