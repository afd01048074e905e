"""Weights stored as 8-bit floats, and `quant_method` "fp8": blocks as DeepSeek and Qwen3 have them, or one scale a tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.weights.destination import Destination, Region, copied
from streamserve.models.weights.forms.expanded import ExpandedAtLast
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.fp8 import Fp8Form
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.names import HEADS, is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme, Schemes
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import FP8_BLOCK, can_keep_fp8

_STEP = 16
"""Kernels read this many numbers of a row at once."""


class Fp8Scheme(Scheme):
    """Weights that become 8-bit floats and their scales.

    per          has a scale: the tensor, each of its rows, or each block of 128 × 128
    input_scale  a scale for activations is stored as well
    """

    per: Literal["tensor", "row", "block"]
    input_scale: bool

    @abstractmethod
    def parts(self, name: str, region: Region, values: Tensor, scale: Tensor) -> Iterator[Destination]:
        """What fills a part of a weight.

        name    of the stored weight
        region  of it
        values  [rows, columns] float8_e4m3fn
        scale   fp32: [rows, 1], or [blocks, columns]
        """


@dataclass(frozen=True)
class StoredFp8(Fp8Scheme):
    """A tensor of e4m3 numbers beside one of what they are multiplied by.

    scale_name   ends the name of the scales
    Without an `input_scale` each token, or 128 columns of it, has one of its own.
    """

    scale_name: Literal["weight_scale", "weight_scale_inv"]
    per: Literal["tensor", "row", "block"]
    input_scale: bool = False

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        if self.per == "block":
            for part in spec.parts:
                refuse_cut_blocks(part.name, part.region, ends_late=part is spec.parts[-1])
        stored = Fp8Form(spec, place, self._fill, has_blocks=self.per == "block", has_input_scale=self.input_scale)
        return stored if keeps_fp8(spec, place) else ExpandedAtLast(stored, spec, place)

    def __str__(self) -> str:
        return f"8-bit floats with a scale per {self.per}"

    def _fill(self, form: Fp8Form) -> Iterator[Destination]:
        for part, values, scale in form.parts():
            yield from self.parts(f"{part.name}.weight", part.region, values, scale)
            if form.input_scale is not None:
                yield Destination(f"{part.name}.input_scale", Region.of(1), _largest(form.input_scale))

    def parts(self, name: str, region: Region, values: Tensor, scale: Tensor) -> Iterator[Destination]:
        yield Destination(name, region, _takes(region, values))
        scales = f"{name.removesuffix('weight')}{self.scale_name}"
        if self.per == "tensor":
            yield Destination(scales, Region.of(1), _spreads(scale))
        elif self.per == "row":
            yield copied(scales, scale, region.rows(1))
        else:
            taken = _in_blocks(region)
            yield copied(scales, scale[:, : len(taken.ranges[1])], taken)


def keeps_fp8(spec: WeightSpec, place: Placement) -> bool:
    """Whether a weight stays 8-bit floats: its kernels take it, where it will live."""
    fits = spec.in_features % _STEP == 0 and spec.out_features % _STEP == 0
    return fits and can_keep_fp8(place.dtype, place.device)


def read_fp8(config: Mapping[str, Any]) -> Schemes:
    """`activation_scheme` and `weight_block_size`, as transformers writes them. Raises `ModelNotSupported` for other values."""
    blocks, activations = config.get("weight_block_size"), config.get("activation_scheme", "dynamic")
    if blocks is not None and list(blocks) != [FP8_BLOCK, FP8_BLOCK]:
        raise ModelNotSupported(f"fp8 weights in blocks of {blocks} are not supported; supported: [{FP8_BLOCK}, {FP8_BLOCK}]")
    if activations not in ("dynamic", "static"):
        raise ModelNotSupported(f"fp8 activation_scheme {activations!r} is not supported; supported: dynamic, static")
    scheme = (
        StoredFp8("weight_scale_inv", "block")
        if blocks is not None
        else StoredFp8("weight_scale", "tensor", input_scale=activations == "static")
    )
    kept = [*HEADS, *(config.get("modules_to_not_convert") or config.get("ignored_layers") or ())]
    return lambda name: PLAIN if is_listed(name, kept) else scheme


def refuse_cut_blocks(name: str, region: Region, *, ends_late: bool) -> None:
    """Raise `ConfigError` for a part of a weight that begins or ends within a block of rows, or begins within one of columns.

    ends_late  no rows follow it, so that it may end within one
    """
    rows, columns = region.ranges
    if rows.start % FP8_BLOCK or columns.start % FP8_BLOCK or (rows.stop % FP8_BLOCK and not ends_late):
        raise ConfigError(
            f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop} of {name} cut its blocks of "
            f"{FP8_BLOCK} × {FP8_BLOCK} 8-bit floats: use fewer ranks"
        )


def _in_blocks(region: Region) -> Region:
    ranges = tuple(range(taken.start // FP8_BLOCK, -(-taken.stop // FP8_BLOCK)) for taken in region.ranges)
    return Region(tuple(-(-size // FP8_BLOCK) for size in region.whole), ranges)


def _takes(region: Region, values: Tensor) -> Callable[[StoredTensor], None]:
    def fill(stored: StoredTensor) -> None:
        if stored.values.dtype != values.dtype:
            raise ConfigError(f"config.json says that {stored.name!r} has 8-bit floats, it is stored as {stored.values.dtype}")
        values.copy_(stored.values[region.slices])

    return fill


def _spreads(scales: Tensor) -> Callable[[StoredTensor], None]:
    def fill(stored: StoredTensor) -> None:
        scales.fill_(stored.values.item())

    return fill


def _largest(scale: Tensor) -> Callable[[StoredTensor], None]:
    # Parts of a fused linear have the same activations, and may have different scales for them.
    def fill(stored: StoredTensor) -> None:
        scale.clamp_(min=stored.values.item())

    return fill
