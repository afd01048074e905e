"""The GPU that kernels are compiled for. Knows no kernel and no Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Target(NamedTuple):
    """A compute capability, and the number of multiprocessors that work is divided among."""

    capability: tuple[int, int]
    multiprocessors: int


def target_of(device: torch.device) -> Target:
    """The target of a CUDA device; for others, small numbers with which Triton's interpreter can run the kernels."""
    if device.type != "cuda":
        return Target((0, 0), 4)
    properties = torch.cuda.get_device_properties(device)
    return Target((properties.major, properties.minor), properties.multi_processor_count)
