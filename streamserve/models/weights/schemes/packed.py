"""Weights of compressed-tensors' format "pack-quantized": 4-bit integers in int32 words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.destination import Region
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.schemes.four_bits import PER_WORD, StoredFourBits, check_bits, unpack_words, words_of


@dataclass(frozen=True)
class PackQuantized(StoredFourBits):
    """weight_packed [rows, columns / 8], weight_scale [rows, groups], weight_zero_point [rows / 8, groups].

    The group of each column, weight_g_idx [columns], is stored where groups are scattered. Integers are stored plus 8.
    """

    rows_per_word: ClassVar[int] = PER_WORD

    def regions(self, region: Region) -> Mapping[str, Region]:
        (rows, columns), (num_rows, num_columns) = region.ranges, region.whole
        groups = range(columns.start // self.group, columns.stop // self.group)
        num_groups = num_columns // self.group
        regions = {
            "weight_packed": Region((num_rows, num_columns // PER_WORD), (rows, words_of(columns))),
            "weight_scale": Region((num_rows, num_groups), (rows, groups)),
            "weight_shape": Region.of(2),
        }
        if self.has_zero:
            regions["weight_zero_point"] = Region((num_rows // PER_WORD, num_groups), (words_of(rows), groups))
        if self.has_order:
            regions["weight_g_idx"] = Region((num_columns,), (columns,))
        return regions

    def read(self, tensors: Mapping[str, Tensor]) -> FourBits:
        zero = unpack_words(tensors["weight_zero_point"], 0) if self.has_zero else None
        group_of = tensors["weight_g_idx"] if self.has_order else None
        return FourBits.of_groups(unpack_words(tensors["weight_packed"], 1), tensors["weight_scale"], zero, group_of)

    def __str__(self) -> str:
        return f"4-bit integers of compressed-tensors in groups of {self.group}"


def read_pack_quantized(weights: Mapping[str, Any]) -> PackQuantized:
    """The weights of a config group. Raises `ModelNotSupported` for integers that are not quantized in groups."""
    if weights.get("strategy") != "group":
        strategy = weights.get("strategy")
        raise ModelNotSupported(f"compressed-tensors strategy {strategy!r} of integers is not supported; supported: group")
    group = check_bits("compressed-tensors", weights.get("num_bits"), weights.get("group_size"))
    ordered = weights.get("actorder") in (True, "group", "dynamic")
    return PackQuantized(group, has_zero=not weights.get("symmetric", True), has_order=ordered)
