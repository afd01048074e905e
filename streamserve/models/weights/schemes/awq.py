"""`quant_method` "awq": 4-bit integers as AutoAWQ stores them for its GEMM kernels (Lin et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.destination import Region
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.schemes.four_bits import PER_WORD, StoredFourBits, check_bits, unpack_words, words_of
from streamserve.models.weights.schemes.names import HEADS, is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Schemes

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word, by fours of bits, each of eight rows is."""


@dataclass(frozen=True)
class Awq(StoredFourBits):
    """qweight [columns, rows / 8], qzeros [groups, rows / 8], scales [groups, rows]."""

    rows_per_word: ClassVar[int] = PER_WORD

    def regions(self, region: Region) -> Mapping[str, Region]:
        (rows, columns), (num_rows, num_columns) = region.ranges, region.whole
        groups = range(columns.start // self.group, columns.stop // self.group)
        num_groups = num_columns // self.group
        return {
            "qweight": Region((num_columns, num_rows // PER_WORD), (columns, words_of(rows))),
            "qzeros": Region((num_groups, num_rows // PER_WORD), (groups, words_of(rows))),
            "scales": Region((num_groups, num_rows), (groups, rows)),
        }

    def read(self, tensors: Mapping[str, Tensor]) -> FourBits:
        quants, zero = (_in_order(unpack_words(tensors[name], 1)).t().contiguous() for name in ("qweight", "qzeros"))
        return FourBits(quants, tensors["scales"].t(), zero)

    def __str__(self) -> str:
        return f"4-bit integers of AWQ in groups of {self.group}"


def read_awq(config: Mapping[str, Any]) -> Schemes:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise ModelNotSupported(f"awq version {version!r} is not supported; supported: gemm")
    if not config.get("zero_point", True):
        raise ModelNotSupported("awq weights without zero points are not supported; supported: zero_point true")
    group = check_bits("awq", config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size")))
    scheme = Awq(group, has_zero=True, has_order=False)
    kept = [*HEADS, *(config.get("modules_to_not_convert") or ())]
    return lambda name: PLAIN if is_listed(name, kept) else scheme


def _in_order(integers: Tensor) -> Tensor:
    """integers [any, rows] in the order of their places in words"""
    apart = integers.view(integers.shape[0], -1, PER_WORD)
    return apart[:, :, list(_PLACES)].flatten(1)
