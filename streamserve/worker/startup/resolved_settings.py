"""Settings that depend on the model or the device: dtype and context length."""

from __future__ import annotations

import torch

from streamserve.config import DTypeName
from streamserve.errors import ConfigError
from streamserve.models.arch import Arch

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}


def resolve_dtype(name: DTypeName, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of weights, activations and KV cache.

    "auto" takes the checkpoint's; for float32 checkpoints the half precision that the device is fast in: float16 on a GPU,
    bfloat16 on a CPU. Raises `ConfigError` for what the device can't do.
    """
    if name == "auto":
        dtype = _DTYPES.get(checkpoint_dtype, torch.float32)
        if dtype == torch.float32:
            dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    else:
        dtype = _DTYPES[name]
    if dtype == torch.bfloat16 and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no bfloat16: use --dtype half")
    return dtype


def resolve_max_model_len(requested: int | None, arch: Arch) -> int:
    """The context length to serve. Raises `ConfigError` beyond what the model's positions reach."""
    limit = arch.max_model_len
    if requested is not None and requested > limit:
        raise ConfigError(f"--max-model-len {requested}: the model reaches {limit} tokens; lower it to {limit} or leave it out")
    return requested or arch.default_model_len or limit
