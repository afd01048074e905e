"""Weights stored as 4-bit integers: what the ways of tools to store them have in common.

Eight integers are an int32. They are unpacked on the device that keeps them, where one tensor at a time takes 8 times its size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.weights.destination import Destination, Region, gathered
from streamserve.models.weights.forms.expanded import ExpandedFourBits
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.forms.four_bits import FourBitForm
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme
from streamserve_kernels import GROUPED_GROUPS

PER_WORD = 8


@dataclass(frozen=True)
class StoredFourBits(Scheme):
    """group     columns that share a scale
    has_zero  zero points are stored, and count
    has_order  columns of a group are scattered (act-order)
    """

    group: int
    has_zero: bool
    has_order: bool

    rows_per_word: ClassVar[int]
    """Rows that a word of the weight, or of its zero points, has parts of."""

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        if spec.out_features == 1:
            # A gate: its only row fills no word.
            return PLAIN.form(spec, place)
        for part in spec.parts:
            self.refuse_cut_groups(part)
        if not self.has_order and Int4Form.can_have(spec, place):
            return Int4Form(spec, place, self._fill_packed, num_digits=1)
        if FourBitForm.can_have(spec, place):
            return FourBitForm(spec, place, self._fill, group=self.group, has_zero=self.has_zero, has_order=self.has_order)
        return ExpandedFourBits(spec, place, self._fill)

    @abstractmethod
    def regions(self, region: Region) -> Mapping[str, Region]:
        """What is taken of each tensor, by the end of its name; for a region of the weight [rows, columns]."""

    @abstractmethod
    def read(self, tensors: Mapping[str, Tensor]) -> FourBits:
        """A part of the weight, of what `regions` has named."""

    def _fill(self, form: FourBitForm | ExpandedFourBits) -> Iterator[Destination]:
        for index, part in enumerate(form.spec.parts):
            yield from self.stored([part], next(form.parameters()).device, _receives(form, index))

    def _fill_packed(self, form: Int4Form) -> Iterator[Destination]:
        def receive(index: int) -> Callable[[Sequence[FourBits]], None]:
            return lambda matrices: form.receive(index, matrices[0].in_groups_of_32())

        for index, part in enumerate(form.spec.parts):
            yield from self.stored([part], torch.device("cpu"), receive(index))

    def stored(
        self, parts: Sequence[WeightPart], device: torch.device, receive: Callable[[Sequence[FourBits]], None]
    ) -> Iterator[Destination]:
        """The destinations of what parts are stored as; `receive` is called once with what they are, on the device."""
        regions = {part.name: self.regions(part.region) for part in parts}
        wanted = {f"{name}.{end}": region for name, ends in regions.items() for end, region in ends.items()}

        def use(tensors: Mapping[str, Tensor]) -> None:
            receive([self.read({end: tensors[f"{name}.{end}"].to(device) for end in ends}) for name, ends in regions.items()])

        return gathered(wanted, use)

    def refuse_cut_groups(self, part: WeightPart) -> None:
        """Raise `ConfigError` for a part of a weight that begins or ends within a group, or within a word."""
        rows, columns = part.region.ranges
        is_whole = len(columns) == part.region.whole[1]
        if self.has_order and not is_whole:
            raise ConfigError(f"{part.name} orders its inputs (act-order), so that its columns can't be divided among ranks")
        cuts = any(end % self.group for end in (columns.start, columns.stop))
        if cuts or any(end % self.rows_per_word for end in (rows.start, rows.stop)):
            raise ConfigError(
                f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop} of {part.name} cut its "
                f"groups of {self.group} columns, or words of 8 integers: use fewer ranks"
            )


def _receives(form: FourBitForm | ExpandedFourBits, index: int) -> Callable[[Sequence[FourBits]], None]:
    return lambda matrices: form.receive(index, matrices[0])


def check_bits(method: str, bits: object, group: object) -> int:
    """The group size. Raises `ModelNotSupported` for bits and group sizes that there are no kernels for."""
    if bits != 4:
        raise ModelNotSupported(f"{method} weights of {bits} bits are not supported; supported: 4")
    if not isinstance(group, int) or group not in GROUPED_GROUPS:
        known = ", ".join(map(str, GROUPED_GROUPS))
        raise ModelNotSupported(f"{method} groups of {group} are not supported; supported: {known}")
    return group


def unpack_words(words: Tensor, dim: int) -> Tensor:
    """The integers of int32 words, the first in the lowest bits, side by side in a dimension 8 times as long; uint8.

    On machines of little-endian bytes, as all that torch runs on.
    """
    # As bytes from the start: as int32 the integers of one large weight would take gigabytes.
    pairs = words.contiguous().unsqueeze(-1).view(torch.uint8)
    apart = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
    return apart.movedim(-1, dim + 1).flatten(dim, dim + 1)


def words_of(taken: range) -> range:
    """The words that hold a range of integers, which begins and ends between words."""
    return range(taken.start // PER_WORD, taken.stop // PER_WORD)
