"""Checkpoint tensors by transformers' names, from files in Hugging Face form.

Files are mapped, not read: a tensor's bytes leave the disk when it is copied to its destination, and exist once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from streamserve.checkpoint.files import weight_files
from streamserve.errors import ConfigError
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor, WeightSource


class SafetensorsSource(WeightSource):
    """The files of a folder that hold the model's weights."""

    num_digits: Mapping[str, int] = {}

    def __init__(self, folder: Path) -> None:
        self._files = weight_files(folder)

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    @property
    def names(self) -> Collection[str]:
        return self._file_of.keys()

    def tensor(self, name: str) -> StoredTensor:
        with _opened(self._file_of[name]) as file:
            return MappedTensor(name, file.get_tensor(name))

    def tensors(self) -> Iterator[StoredTensor]:
        for path in self._files:
            with _opened(path) as file:
                for name in file.offset_keys():
                    yield MappedTensor(name, file.get_tensor(name))

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self._files:
            with _opened(path) as file:
                found |= dict.fromkeys(file.keys(), path)
        return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ConfigError(f"{path}: damaged ({error}); download it again") from error


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
