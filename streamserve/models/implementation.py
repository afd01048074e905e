"""Whose layers run a model: ours where we have them, else transformers'.

Both are one thing to the worker. transformers is imported only for what needs it: it costs seconds.
"""

from __future__ import annotations

from typing import Any

from streamserve.config import ModelImpl
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import Arch, ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.config_reading import architecture_of
from streamserve.models.registry import REGISTRY, read_arch
from streamserve.models.registry import build_model as build_ours
from streamserve.models.weights.placement import Placement


def describe(config: dict[str, Any], model_impl: ModelImpl = "auto") -> Arch:
    """The shape of the model that a config.json describes.

    model_impl  "auto" takes layers of ours where the architecture has some that run this model

    Raises `ModelNotSupported`, naming what is in the way, when the implementation can't run it, and `ConfigError` for values
    that are missing or wrong.
    """
    if model_impl in ("streamserve", "vllm"):
        return read_arch(config)
    if model_impl == "transformers":
        return _described_by_transformers(config)
    try:
        return read_arch(config)
    except ModelNotSupported as refusal:
        try:
            return _described_by_transformers(config)
        except ModelNotSupported as other:
            # Of an architecture that we have, our own words say more.
            raise (refusal if architecture_of(config) in REGISTRY else other) from None


def build_model(arch: Arch, place: Placement, max_positions: int) -> CausalModel:
    """A model with uninitialised weights, its rotations made for sequences of up to `max_positions` tokens."""
    if isinstance(arch, ModelArch):
        return build_ours(arch, place, max_positions)
    from streamserve.models.transformers_model.family import build_transformers

    return build_transformers(arch, place, max_positions)


def _described_by_transformers(config: dict[str, Any]) -> Arch:
    from streamserve.models.transformers_model.family import read_transformers

    return read_transformers(config)
