"""Linear layers: what one does in a layer's arithmetic is written here, and the form of its weight has the kernels.

The rows of a linear may be several of the checkpoint's tensors, or parts of one. Among ranks a linear is divided by its rows,
so that each computes some of the outputs, or by its columns, so that each computes a summand of all of them, which the linear
adds up before it returns (column- and row-parallel in Megatron-LM, Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053).
A layer made of such linears is the same on one rank and on many: rows first, then columns, and a norm never between the two.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.communicator import Communicator
from streamserve.models.division import shared_heads, vocabulary_per_rank, vocabulary_share
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Destination, Region, Stored, copied, left_out
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import make_form
from streamserve_kernels import Activation, gated_activation

Division = Literal["rows", "columns"]


class Projection(Stored):
    """x @ weight.T + bias of a weight that a checkpoint has, in some form: what all linears are.

    form  of the weight, or of this rank's share
    bias  None without one
    """

    form: Form
    bias: Tensor | None

    def __init__(self, spec: WeightSpec, place: Placement, bias: Tensor | None) -> None:
        super().__init__()
        self._spec = spec
        self.form = make_form(spec, place)
        self.bias = bias

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out features of all ranks]"""

    @abstractmethod
    def after_norm(self, x: Tensor, norm: RmsNorm | None) -> Tensor:
        """forward(norm(x)); forward(x) without a norm"""

    def finish(self) -> None:
        """Bring the weight, now filled, into the layout that its kernels want."""
        self.form = self.form.finish()

    def destinations(self) -> Iterator[Destination]:
        yield from self.form.destinations()
        if self.bias is not None:
            for part, biases in self._spec.split(self.bias):
                yield copied(f"{part.name}.bias", biases, part.region.rows())


class Linear(Projection):
    """A linear inside of a layer, with what may be fused before and after it.

    form  of the weight, [sum of parts, in_features] or this rank's share of that
    bias  [sum of parts] or its share; None also on all ranks but the first where columns are divided
    communicator  sums the outputs of ranks where columns are divided; None where nothing is summed
    """

    communicator: Communicator | None

    def __init__(
        self,
        prefix: str,
        parts: Mapping[str, int],
        in_features: int,
        place: Placement,
        *,
        bias: bool = False,
        stored_as: str | None = None,
        divided: Division | None = None,
        heads: Mapping[str, int] | None = None,
    ) -> None:
        """prefix + part name + ".weight" is a tensor of the checkpoint; the part's value is its number of rows.

        stored_as  the checkpoint has all parts as one tensor of this name instead, one below the other
        divided    what is shared out to ranks: of every part its rows, or the columns; None leaves all of it to each
        heads      parts that consist of so many key heads, which several ranks hold alike where there are fewer than ranks
        Raises `ConfigError` for numbers of rows or columns that can't be divided equally.
        """
        spec = WeightSpec(tuple(_weight_parts(prefix, parts, in_features, place, stored_as, divided, heads or {})))
        # Ranks' outputs are summed where columns are divided, and the bias must be in the sum once.
        leaves_bias = bias and divided == "columns" and place.rank > 0
        super().__init__(spec, place, place.empty(spec.out_features) if bias and not leaves_bias else None)
        self._leaves_bias = leaves_bias
        self.communicator = place.communicator if divided == "columns" and place.world_size > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out_features]"""
        if self.communicator is not None:
            return self.communicator.sum_products(self._product, x, None, self.form.out_features)
        return self.form.multiply(x, self.bias)

    def after_norm(self, x: Tensor, norm: RmsNorm | None) -> Tensor:
        """forward(norm(x)); forward(x) without a norm"""
        if norm is None:
            product: Tensor = self(x)
            return product
        return self.form.after_norm(x, norm.weight, norm.eps, self.bias)

    def gated_after_norm(self, x: Tensor, norm: RmsNorm | None, activation: Activation) -> Tensor:
        """act(gate) * up of after_norm(x) -> [rows, out_features / 2]; the gate's rows come first, then up's."""
        if norm is None:
            return gated_activation(self.form.multiply(x, self.bias), activation)
        return self.form.gated_after_norm(x, norm.weight, norm.eps, activation, self.bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [rows, out_features] + forward(x); the residual is not to be used afterwards."""
        if self.communicator is not None:
            return self.communicator.sum_products(self._product, x, residual, self.form.out_features)
        return self.form.onto(residual, x, self.bias)

    def _product(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return self.form.multiply(x, self.bias) if residual is None else self.form.onto(residual, x, self.bias)

    def destinations(self) -> Iterator[Destination]:
        yield from super().destinations()
        if self._leaves_bias:
            for part in self._spec.parts:
                yield left_out(f"{part.name}.bias", part.region.rows())


class VocabularyLinear(Projection):
    """A linear to logits: its rows, one for each id of the vocabulary, are divided among ranks, and their outputs gathered.

    Every rank returns all logits, the same bits on each.
    """

    def __init__(
        self, name: str, vocab_size: int, in_features: int, place: Placement, *, table: nn.Parameter | None = None
    ) -> None:
        """name + ".weight" is a tensor of the checkpoint, [vocab_size, in_features]

        table  an embedding's vectors of this rank's ids, which are this weight as well and which it fills; None allocates
        """
        ids = vocabulary_share(vocab_size, place.rank, place.world_size)
        region = Region((vocab_size, in_features), (ids, range(in_features)))
        super().__init__(WeightSpec((WeightPart(name, region),), table), place, None)
        self._communicator = place.communicator if place.world_size > 1 else None
        self._vocab_size, self._ids_per_rank = vocab_size, vocabulary_per_rank(vocab_size, place.world_size)

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, vocab_size]"""
        return self._gather(self.form.multiply(x, self.bias))

    def after_norm(self, x: Tensor, norm: RmsNorm | None) -> Tensor:
        """forward(norm(x)); forward(x) without a norm"""
        if norm is None:
            return self.forward(x)
        return self._gather(self.form.after_norm(x, norm.weight, norm.eps, self.bias))

    def _gather(self, logits: Tensor) -> Tensor:
        if self._communicator is None:
            return logits
        missing = self._ids_per_rank - logits.shape[1]
        gathered = self._communicator.gather(F.pad(logits, (0, missing)) if missing else logits)
        return gathered[:, : self._vocab_size]


def _weight_parts(
    prefix: str,
    parts: Mapping[str, int],
    in_features: int,
    place: Placement,
    stored_as: str | None,
    divided: Division | None,
    heads: Mapping[str, int],
) -> Iterator[WeightPart]:
    def share(size: int, what: str, is_divided: bool) -> range:
        return place.share(size, what) if is_divided else range(size)

    columns = share(in_features, f"columns of {prefix}{stored_as or '/'.join(parts)}", divided == "columns")
    begin, stored_rows = 0, sum(parts.values())
    for name, num_rows in parts.items():
        if name in heads:
            size = num_rows // heads[name]
            taken = shared_heads(heads[name], place.rank, place.world_size)
            rows = range(taken.start * size, taken.stop * size)
        else:
            rows = share(num_rows, f"rows of {prefix}{name}", divided == "rows")
        if stored_as is None:
            yield WeightPart(prefix + name, Region((num_rows, in_features), (rows, columns)))
        else:
            below = range(begin + rows.start, begin + rows.stop)
            yield WeightPart(prefix + stored_as, Region((stored_rows, in_features), (below, columns)))
        begin += num_rows
