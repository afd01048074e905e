"""Checkpoint tensors by transformers' names, from files in Hugging Face form.

Files are mapped, not read: a tensor's bytes leave the disk when it is copied to its destination, and exist once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from streamserve.errors import ConfigError
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor, WeightSource


class SafetensorsSource(WeightSource):
    """Every *.safetensors file of a folder."""

    num_digits: Mapping[str, int] = {}

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.safetensors"))

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    def tensors(self) -> Iterator[StoredTensor]:
        from safetensors import SafetensorError, safe_open

        for file in self._files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.offset_keys():
                        yield MappedTensor(name, opened.get_tensor(name))
            except SafetensorError as error:
                raise ConfigError(f"{file}: damaged ({error}); download it again") from error


class MappedTensor(StoredTensor):
    """A tensor of a mapped file, as it lies there."""

    def __init__(self, name: str, mapped: Tensor) -> None:
        self.name, self.shape, self.num_bytes = name, tuple(mapped.shape), mapped.nbytes
        self._mapped = mapped

    @property
    def values(self) -> Tensor:
        return self._mapped

    @property
    def integers(self) -> GroupedIntegers:
        raise LookupError(f"{self.name} is not stored as grouped integers")
