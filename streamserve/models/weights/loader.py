"""Weights from a checkpoint into a model, each straight to its final place.

Runs on a rank, once. Knows the forms a checkpoint can have; the model says where its tensors go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.gguf_file import open_gguf
from streamserve.errors import ConfigError
from streamserve.models.arch import ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import build_model
from streamserve.models.weights.destination import Destination
from streamserve.models.weights.dummy import randomize
from streamserve.models.weights.gguf import GgufSource
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.safetensors import SafetensorsSource
from streamserve.models.weights.source import WeightSource
from streamserve_kernels import prepare_weight

Quantization = Literal["auto", "none", "int4"]
Progress = Callable[[int, int], None]


def load_model(
    checkpoint: Checkpoint,
    arch: ModelArch,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization: Quantization = "auto",
    max_model_len: int | None = None,
    on_progress: Progress | None = None,
) -> CausalModel:
    """Build a model and fill it.

    quantization   "int4" keeps 4- and 8-bit GGUF weights packed beside their expanded form (on a CPU, in bf16), "auto" does so
                   where it can, "none" never
    max_model_len  positions to prepare for; None takes the model's own limit
    on_progress    called with (bytes loaded, bytes in all), in the units of the stored form

    Raises `ConfigError` when the checkpoint lacks a tensor, has one that the architecture does not know, or of another shape.
    """
    place = Placement(dtype, torch.device(device))
    model = build_model(arch, place, max_model_len or arch.max_model_len)
    progress = _Loaded(on_progress)
    with torch.inference_mode():
        if checkpoint.format == "dummy":
            _refuse_packing(quantization, "random weights")
            randomize(model)
        elif checkpoint.format == "gguf":
            source = GgufSource(open_gguf(checkpoint.path), arch)
            progress.total = source.num_bytes
            filled = _fill_packed(model, source, progress) if _packs(quantization, place) else set()
            _fill(model, source, progress, filled)
        else:
            _refuse_packing(quantization, "safetensors weights")
            plain = SafetensorsSource(checkpoint.path)
            progress.total = plain.num_bytes
            _fill(model, plain, progress, set())
        for linear in model.linears():
            if isinstance(linear.weight, torch.Tensor):
                linear.replace_weight(prepare_weight(linear.weight))
    return model.eval()


class _Loaded:
    """Bytes so far."""

    def __init__(self, report: Progress | None) -> None:
        self.total = 0
        self._done = 0
        self._report = report

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._report is not None:
            self._report(self._done, self.total)


def _packs(quantization: Quantization, place: Placement) -> bool:
    can_pack = place.device.type == "cpu" and place.dtype is torch.bfloat16
    if quantization == "int4" and not can_pack:
        raise ConfigError("--quantization int4 runs on a CPU in bfloat16: add --device cpu --dtype bfloat16, or leave it out")
    return quantization != "none" and can_pack


def _refuse_packing(quantization: Quantization, what: str) -> None:
    if quantization == "int4":
        raise ConfigError(f"--quantization int4 needs a 4-bit .gguf file; this model has {what}")


def _fill_packed(model: CausalModel, source: GgufSource, progress: _Loaded) -> set[str]:
    """Fill every linear that can be packed; returns the names of the tensors used."""
    filled = set()
    for linear in model.linears():
        weight = source.packed(linear)
        if weight is not None:
            linear.replace_weight(weight)
            names = {f"{name}.weight" for name in linear.names}
            progress.add(sum(source.take(name) for name in names))
            filled |= names
    return filled


def _fill(model: CausalModel, source: WeightSource, progress: _Loaded, filled: set[str]) -> None:
    arch = model.arch
    wanted = {destination.name: destination for destination in model.destinations() if destination.name not in filled}
    for name, tensor, num_bytes in source.tensors():
        destination = wanted.pop(name, None) or wanted.pop(f"model.{name}", None)
        if destination is not None:
            _copy(tensor, destination)
        elif not _is_redundant(name, arch):
            raise ConfigError(f"the checkpoint's tensor {name!r} has no place in {arch.architecture}")
        progress.add(num_bytes)
    if wanted:
        raise ConfigError(f"the checkpoint lacks {len(wanted)} tensors of {arch.architecture}, among them {min(wanted)!r}")


def _copy(tensor: torch.Tensor, destination: Destination) -> None:
    target = destination.tensor
    if tensor.shape != target.shape:
        raise ConfigError(
            f"the checkpoint's {destination.name!r} has shape {list(tensor.shape)}, config.json says {list(target.shape)}"
        )
    target.copy_(tensor)
    if destination.offset:
        target.add_(destination.offset)


def _is_redundant(name: str, arch: ModelArch) -> bool:
    """Stored by some tools though it follows from the rest."""
    return name.endswith("rotary_emb.inv_freq") or (arch.tied_embeddings and name == "lm_head.weight")
