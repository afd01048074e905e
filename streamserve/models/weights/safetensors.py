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
from streamserve.checkpoint.text_part import text_name
from streamserve.errors import ConfigError
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor, WeightSource


class SafetensorsSource(WeightSource):
    """The files of a folder that hold the model's weights."""

    num_digits: Mapping[str, int] = {}

    def __init__(self, folder: Path, *, text_only: bool = False) -> None:
        """text_only  the text part of a model that reads images or sound too, by the names that it has where it stands alone"""
        self._files = weight_files(folder, text_only=text_only)
        self._text_only = text_only

    @property
    def num_bytes(self) -> int:
        if self._text_only:
            return sum(tensor.num_bytes for tensor in self.tensors())
        return sum(file.stat().st_size for file in self._files)

    @property
    def names(self) -> Collection[str]:
        return self._stored.keys()

    def tensor(self, name: str) -> StoredTensor:
        path, stored = self._stored[name]
        with _opened(path) as file:
            return MappedTensor(name, file.get_tensor(stored))

    def tensors(self) -> Iterator[StoredTensor]:
        for path in self._files:
            with _opened(path) as file:
                for stored in file.offset_keys():
                    if (name := self._name(stored)) is not None:
                        yield MappedTensor(name, file.get_tensor(stored))

    def _name(self, stored: str) -> str | None:
        """Of a tensor in the model; None where it is of another part."""
        return text_name(stored) if self._text_only else stored

    @cached_property
    def _stored(self) -> dict[str, tuple[Path, str]]:
        """File and name there of every tensor, by its name in the model."""
        found: dict[str, tuple[Path, str]] = {}
        for path in self._files:
            with _opened(path) as file:
                named = ((self._name(stored), stored) for stored in file.offset_keys())
                found |= {name: (path, stored) for name, stored in named if name is not None}
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
