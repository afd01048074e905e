"""Checkpoint tensors by transformers' names, from files in Hugging Face form.

Files are mapped, not read: a tensor's bytes leave the disk when it is copied to its destination, and exist once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from streamserve.errors import ConfigError
from streamserve.models.weights.source import WeightSource


class SafetensorsSource(WeightSource):
    """Every *.safetensors file of a folder."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.safetensors"))

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        from safetensors import SafetensorError, safe_open

        for file in self._files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.offset_keys():
                        tensor = opened.get_tensor(name)
                        yield name, tensor, tensor.nbytes
            except SafetensorError as error:
                raise ConfigError(f"{file}: damaged ({error}); download it again") from error
