"""What kernels are compiled for. Knows no kernel and no Triton."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Target(NamedTuple):
    """A compute capability, and the multiprocessors that work is shared out to."""

    capability: tuple[int, int]
    multiprocessors: int


def target_of(device: torch.device) -> Target:
    """What a GPU is; plausible small numbers where the interpreter stands in for one."""
    if device.type != "cuda":
        return Target((0, 0), 4)
    properties = torch.cuda.get_device_properties(device)
    return Target((properties.major, properties.minor), properties.multi_processor_count)
