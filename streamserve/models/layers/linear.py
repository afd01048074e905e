"""Linear layers: what one does in a layer's arithmetic is written here, and the form of its weight has the kernels.

The rows of a linear may be several of the checkpoint's tensors, or parts of one. Among ranks a linear is divided by its rows,
so that each computes some of the outputs, or by its columns, so that each computes a summand of all of them (Megatron-LM,
Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Destination, Region, Stored, copied, left_out
from streamserve.models.weights.forms.choose import choose_form
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation

Division = Literal["rows", "columns"]


class Linear(Stored):
    """x @ weight.T + bias, with what may be fused before and after it.

    form  of the weight, [sum of parts, in_features] or this rank's share of that
    bias  [sum of parts] or its share; None without one, and on all ranks but the first where columns are divided
    """

    form: Form
    bias: Tensor | None

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
    ) -> None:
        """prefix + part name + ".weight" is a tensor of the checkpoint; the part's value is its number of rows.

        stored_as  the checkpoint has all parts as one tensor of this name instead, one below the other
        divided    what is shared out to ranks: of every part its rows, or the columns; None leaves all of it to each
        Raises `ConfigError` for numbers of rows or columns that can't be divided equally.
        """
        super().__init__()
        spec = WeightSpec(tuple(_weight_parts(prefix, parts, in_features, place, stored_as, divided)))
        self._spec = spec
        self.form = choose_form(spec, place)(spec, place)
        # Ranks' outputs are summed where columns are divided, and the bias must be in the sum once.
        self._leaves_bias = bias and divided == "columns" and place.rank > 0
        self.bias = place.empty(spec.out_features) if bias and not self._leaves_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, in_features] -> [rows, out_features]"""
        return self.form.multiply(x, self.bias)

    def after_norm(self, x: Tensor, norm: RmsNorm) -> Tensor:
        """forward(norm(x))"""
        return self.form.after_norm(x, norm.weight, norm.eps, self.bias)

    def gated_after_norm(self, x: Tensor, norm: RmsNorm, activation: Activation) -> Tensor:
        """act(gate) * up of forward(norm(x)) -> [rows, out_features / 2]; the gate's rows come first, then up's."""
        return self.form.gated_after_norm(x, norm.weight, norm.eps, activation, self.bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [rows, out_features] + forward(x); the residual is not to be used afterwards."""
        return self.form.onto(residual, x, self.bias)

    def finish(self) -> None:
        """Bring the weight, now filled, into the layout that its kernels want."""
        self.form.finish()

    def destinations(self) -> Iterator[Destination]:
        yield from self.form.destinations()
        if self.bias is not None:
            for part, biases in self._spec.split(self.bias):
                yield copied(f"{part.name}.bias", biases, part.region.rows())
        elif self._leaves_bias:
            for part in self._spec.parts:
                yield left_out(f"{part.name}.bias", part.region.rows())


class TiedLinear(Linear):
    """A linear whose weight is an embedding's table, which it fills."""

    def __init__(self, name: str, table: nn.Parameter, place: Placement) -> None:
        """table [out_features, in_features], the checkpoint's name + ".weight" """
        Stored.__init__(self)
        spec = WeightSpec((WeightPart(name, Region.of(*table.shape)),), table)
        self._spec = spec
        self.form = choose_form(spec, place)(spec, place)
        self.bias, self._leaves_bias = None, False


def _weight_parts(
    prefix: str,
    parts: Mapping[str, int],
    in_features: int,
    place: Placement,
    stored_as: str | None,
    divided: Division | None,
) -> Iterator[WeightPart]:
    columns = _share(in_features, place, f"columns of {prefix}{stored_as or '/'.join(parts)}", divided == "columns")
    begin, stored_rows = 0, sum(parts.values())
    for name, num_rows in parts.items():
        rows = _share(num_rows, place, f"rows of {prefix}{name}", divided == "rows")
        if stored_as is None:
            yield WeightPart(prefix + name, Region((num_rows, in_features), (rows, columns)))
        else:
            taken = range(begin + rows.start, begin + rows.stop)
            yield WeightPart(prefix + stored_as, Region((stored_rows, in_features), (taken, columns)))
        begin += num_rows


def _share(size: int, place: Placement, what: str, is_divided: bool) -> range:
    if not is_divided:
        return range(size)
    share = place.share(size, what)
    return range(place.rank * share, (place.rank + 1) * share)
