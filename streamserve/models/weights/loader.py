"""Weights from a checkpoint into a model, each straight to its final place.

Runs on a rank, once. Knows the kinds of files a checkpoint can have; the model says where its tensors go.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.gguf_file import open_gguf
from streamserve.config import Quantization
from streamserve.errors import ConfigError
from streamserve.models.arch import Arch, ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.communicator import Apart, Communicator
from streamserve.models.implementation import build_model
from streamserve.models.weights.destination import Destination
from streamserve.models.weights.dummy import randomize
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.fp8 import Fp8Experts
from streamserve.models.weights.forms.expanded import ExpandedForm
from streamserve.models.weights.forms.fp8 import Fp8Form
from streamserve.models.weights.gguf import GgufSource
from streamserve.models.weights.kv_scales import KV_SCALE_ENDS, LayerKvScales
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.safetensors import SafetensorsSource
from streamserve.models.weights.source import StoredTensor, WeightSource
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import can_pack, has_fp8_products

logger = logging.getLogger("streamserve")

HEAD = "lm_head.weight"

_REDUNDANT = ("rotary_emb.inv_freq", *KV_SCALE_ENDS)
"""Ends of the names of tensors that models do without."""

Progress = Callable[[int, int], None]


def load_model(
    checkpoint: Checkpoint,
    arch: Arch,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization: Quantization = "auto",
    max_model_len: int | None = None,
    communicator: Communicator | None = None,
    divides_experts: bool = False,
    kv_dtype: torch.dtype | None = None,
    on_progress: Progress | None = None,
) -> CausalModel:
    """Build a model and fill it.

    quantization     as in `EngineConfig`
    max_model_len    positions to prepare for; None takes the model's own limit
    communicator     the ranks among which it divides what it can, of which this one is filled; None for a rank of its own
    divides_experts  each rank holds some experts of a mixture, instead of a share of every one
    kv_dtype         of the KV cache that it will be called with; None for the model's
    on_progress      called with (bytes loaded, bytes in all), in the units of the stored form

    Raises `ConfigError` when the checkpoint lacks a tensor, has one that the architecture does not know, or of another shape,
    and when the model can't be divided; when it has no experts to divide, too.
    """
    source = open_source(checkpoint, arch)
    if source is not None and arch.tied_embeddings and _has_its_own_head(source):
        arch = replace(arch, tied_embeddings=False)
    storage = storage_of(checkpoint, source, quantization)
    place = Placement(dtype, torch.device(device), communicator or Apart(), storage, divides_experts, kv_dtype)
    _refuse_unpackable(quantization, checkpoint, place)
    model = build_model(arch, place, max_model_len or arch.max_model_len)
    if divides_experts and not any(isinstance(module, ExpertsForm) for module in model.modules()):
        raise ConfigError(f"--enable-expert-parallel: {arch.architecture} has no experts to divide; leave it out")
    _say_what_is_widened(model, place)
    with torch.inference_mode():
        if source is None:
            randomize(model)
        else:
            _fill(model, source, _BytesLoaded(source.num_bytes, on_progress))
        model.finish()
    if source is not None:
        _say_what_is_unscaled(model)
    return model.eval()


def open_source(checkpoint: Checkpoint, arch: Arch) -> WeightSource | None:
    """The files of a checkpoint; None for one that has no weights ("dummy").

    Raises `ConfigError` for a .gguf file that transformers' layers are to run.
    """
    if checkpoint.format == "dummy":
        return None
    if checkpoint.format == "gguf":
        if not isinstance(arch, ModelArch):
            raise ConfigError(f"{checkpoint.source}: a .gguf file needs layers of ours: leave --model-impl out")
        return GgufSource(open_gguf(checkpoint.path), arch)
    return SafetensorsSource(checkpoint.path, text_only=checkpoint.has_other_parts)


def _has_its_own_head(source: WeightSource) -> bool:
    """Whether a head is stored that is not the embedding: it counts, as in transformers, whatever config.json says."""
    table = next((name for name in source.names if name.endswith("embed_tokens.weight")), None)
    if table is None or HEAD not in source.names:
        return False
    return not torch.equal(source.tensor(table).values, source.tensor(HEAD).values)


def storage_of(checkpoint: Checkpoint, source: WeightSource | None, quantization: Quantization) -> WeightStorage:
    """The checkpoint's description, by which the forms of weights are chosen."""
    digits = {} if source is None or quantization == "none" else source.num_digits
    names = frozenset[str]() if source is None else frozenset(source.names)
    config = checkpoint.config.get("quantization_config") or {}
    return WeightStorage(digits, config, quantization, names)


class _BytesLoaded:
    """Bytes so far."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._report = report

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._report is not None:
            self._report(self._done, self._total)


def _refuse_unpackable(quantization: Quantization, checkpoint: Checkpoint, place: Placement) -> None:
    if quantization != "int4":
        return
    if checkpoint.format != "gguf":
        what = "random weights" if checkpoint.format == "dummy" else "safetensors weights"
        raise ConfigError(f"--quantization int4 needs a 4-bit .gguf file; this model has {what}")
    if not can_pack(place.dtype, place.device):
        raise ConfigError("--quantization int4 runs on a CPU in bfloat16: add --device cpu --dtype bfloat16, or leave it out")


def _say_what_is_widened(model: CausalModel, place: Placement) -> None:
    forms = [linear.form for linear in model.linears()]
    experts = [module for module in model.modules() if isinstance(module, ExpertsForm)]
    if any(isinstance(form, ExpandedForm) for form in forms) or any(form.is_expanded for form in experts):
        dtype = str(place.dtype).removeprefix("torch.")
        logger.warning("quantized weights are expanded to %s: they are not multiplied as they are on this device", dtype)
    if any(isinstance(form, Fp8Form | Fp8Experts) for form in (*forms, *experts)) and not has_fp8_products(place.device):
        logger.warning(
            "8-bit floats are widened on their way to each product: this device (below compute capability 8.9) has none"
        )


def _say_what_is_unscaled(model: CausalModel) -> None:
    layers = [module for module in model.modules() if isinstance(module, LayerKvScales)]
    if any(not layer.is_stored for layer in layers):
        logger.warning("the checkpoint stores no scales of a KV cache of 8-bit floats: keys and values are rounded as they are")


def _fill(model: CausalModel, source: WeightSource, progress: _BytesLoaded) -> None:
    arch = model.arch
    wanted: defaultdict[str, list[Destination]] = defaultdict(list)
    for destination in model.destinations():
        wanted[destination.name].append(destination)
    for stored in model.stored_tensors(source):
        destinations = wanted.pop(stored.name, None) or wanted.pop(f"model.{stored.name}", None)
        if destinations is None and not _is_redundant(stored.name, arch):
            raise ConfigError(f"the checkpoint's tensor {stored.name!r} has no place in {arch.architecture}")
        for destination in destinations or ():
            _check_shape(stored, destination)
            destination.fill(stored)
        progress.add(stored.num_bytes)
    lacking = [name for name, destinations in wanted.items() if not all(each.is_optional for each in destinations)]
    if lacking:
        raise ConfigError(f"the checkpoint lacks {len(lacking)} tensors of {arch.architecture}, among them {min(lacking)!r}")


def _check_shape(stored: StoredTensor, destination: Destination) -> None:
    if not destination.region.is_of(stored.shape):
        raise ConfigError(
            f"the checkpoint's {destination.name!r} has shape {list(stored.shape)}, "
            f"config.json says {list(destination.region.whole)}"
        )


def _is_redundant(name: str, arch: Arch) -> bool:
    """Stored by some tools though it follows from the rest, or is for another KV cache, or for layers not run."""
    unread = isinstance(arch, ModelArch) and name.startswith(tuple(_unread_layers(arch)))
    return unread or name.endswith(_REDUNDANT) or (arch.tied_embeddings and name == HEAD)


def _unread_layers(arch: ModelArch) -> Iterator[str]:
    """What the names of their tensors begin with."""
    return (f"model.layers.{layer}." for layer in range(arch.num_layers, arch.num_layers + arch.unread_layers))
