"""A rank's share of a model."""

from __future__ import annotations

from pathlib import Path

import torch

from streamserve.checkpoint.names import resolve
from streamserve.models.architectures.base import CausalModel
from streamserve.models.communicator import Apart
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model


def load_rank(path: Path, rank: int, world_size: int, dtype: torch.dtype = torch.float32) -> CausalModel:
    checkpoint = resolve(str(path))
    arch = read_arch(checkpoint.config)
    return load_model(checkpoint, arch, dtype=dtype, device="cpu", communicator=Apart(rank, world_size))
