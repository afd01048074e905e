"""A checkpoint's tensors, as files hold them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from streamserve.models.weights.grouped import GroupedIntegers


class StoredTensor(ABC):
    """One tensor of a checkpoint; it is read on demand.

    name       as transformers names it
    shape      of the tensor, however it is stored
    num_bytes  as stored
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """Its numbers on the CPU, of any dtype; read-only, and valid until the source's next tensor."""

    @property
    @abstractmethod
    def integers(self) -> GroupedIntegers:
        """Its integers and their scales. Raises `LookupError` when it is not listed in its source's `num_digits`."""


class WeightSource(ABC):
    """A checkpoint's tensors, one after another in the order of its files."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of all tensors as they are stored."""

    @property
    @abstractmethod
    def num_digits(self) -> Mapping[str, int]:
        """How many 4-bit digits a number has, by the name of each tensor that is stored as such."""

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """Of all tensors."""

    @abstractmethod
    def tensor(self, name: str) -> StoredTensor:
        """One of them, valid for as long as it is kept. Raises `KeyError`."""

    @abstractmethod
    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor, each valid until the next one."""
