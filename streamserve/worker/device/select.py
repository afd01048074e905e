"""From the --device flag to a device."""

from __future__ import annotations

import torch

from streamserve.config import Device as DeviceName
from streamserve.errors import ConfigError
from streamserve.worker.device.base import Device
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.device.cuda import CudaDevice


def open_device(name: DeviceName, index: int | None = None) -> Device:
    """The device by its flag; "auto" takes a GPU when there is one. Raises `ConfigError` when it is not there.

    index  among the GPUs that this process sees; None takes torch's current one
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CpuDevice()
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu or install a torch built for CUDA")
    if index is None:
        return CudaDevice(torch.device("cuda", torch.cuda.current_device()))
    num_gpus = torch.cuda.device_count()
    if index >= num_gpus:
        raise ConfigError(
            f"--tensor-parallel-size times --data-parallel-size is {index + 1} or more, and torch sees {num_gpus} "
            f"{'GPU' if num_gpus == 1 else 'GPUs'}: lower one of them"
        )
    torch.cuda.set_device(index)
    return CudaDevice(torch.device("cuda", index))
