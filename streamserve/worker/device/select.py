"""From the --device flag to a device."""

from __future__ import annotations

import torch

from streamserve.config import Device as DeviceName
from streamserve.errors import ConfigError
from streamserve.worker.device.base import Device
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.device.cuda import CudaDevice


def open_device(name: DeviceName) -> Device:
    """The device by its flag; "auto" takes a GPU when there is one. Raises `ConfigError` when it is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CpuDevice()
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu or install a torch built for CUDA")
    return CudaDevice(torch.device("cuda", torch.cuda.current_device()))
