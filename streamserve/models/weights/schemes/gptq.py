"""`quant_method` "gptq": 4-bit integers as AutoGPTQ and GPTQModel store them (Frantar et al., 2022)."""

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


@dataclass(frozen=True)
class Gptq(StoredFourBits):
    """qweight [columns / 8, rows], qzeros [groups, rows / 8], scales [groups, rows], g_idx [columns].

    zero_offset  what is added to a stored zero point
    """

    zero_offset: int = 1

    rows_per_word: ClassVar[int] = PER_WORD

    def regions(self, region: Region) -> Mapping[str, Region]:
        (rows, columns), (num_rows, num_columns) = region.ranges, region.whole
        groups = range(columns.start // self.group, columns.stop // self.group)
        num_groups = num_columns // self.group
        return {
            "qweight": Region((num_columns // PER_WORD, num_rows), (words_of(columns), rows)),
            "qzeros": Region((num_groups, num_rows // PER_WORD), (groups, words_of(rows))),
            "scales": Region((num_groups, num_rows), (groups, rows)),
            "g_idx": Region((num_columns,), (columns,)),
        }

    def read(self, tensors: Mapping[str, Tensor]) -> FourBits:
        quants, scale = unpack_words(tensors["qweight"], 0).t(), tensors["scales"].t()
        zero = (unpack_words(tensors["qzeros"], 1) + self.zero_offset).t() if self.has_zero else None
        return FourBits.of_groups(quants.contiguous(), scale, zero, tensors["g_idx"] if self.has_order else None)

    def __str__(self) -> str:
        return f"4-bit integers of GPTQ in groups of {self.group}"


def read_gptq(config: Mapping[str, Any]) -> Schemes:
    """`bits`, `group_size`, `sym`, `desc_act`; `dynamic` leaves modules out by patterns that begin with "-:".

    Raises `ModelNotSupported` for rules that give modules settings of their own.
    """
    group = check_bits("gptq", config.get("bits"), config.get("group_size"))
    scheme = Gptq(
        group,
        has_zero=not config.get("sym", True),
        has_order=bool(config.get("desc_act", False)),
        zero_offset=0 if config.get("checkpoint_format") == "gptq_v2" else 1,
    )
    rules = config.get("dynamic") or ()
    if others := [rule for rule in rules if not rule.startswith("-:")]:
        raise ModelNotSupported(
            f"gptq settings of their own for {others[0]!r} are not supported; supported: the same for all, or none"
        )
    left_out = [rule.removeprefix("-:") for rule in rules]
    kept = [*(config.get("modules_to_not_convert") or ()), *(f"re:{pattern}" for pattern in left_out)]
    kept += () if config.get("lm_head", False) else HEADS
    return lambda name: PLAIN if is_listed(name, kept) else scheme
