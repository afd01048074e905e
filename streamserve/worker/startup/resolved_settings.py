"""Settings that depend on the model or the device: dtypes and context length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from streamserve.config import DTypeName, KvCacheDType
from streamserve.errors import ConfigError
from streamserve.models.arch import Arch
from streamserve.models.weights.schemes.kv_cache import stores_eight_bit_kv

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "float": torch.float32,
}


def resolve_dtype(name: DTypeName, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations.

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


_EIGHT_BITS = {"fp8": torch.float8_e4m3fn, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def resolve_kv_cache_dtype(name: KvCacheDType, config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype of the KV cache of a model with this config.json, which computes in `dtype`.

    "auto" takes 8-bit floats where the checkpoint was calibrated for them. Raises `ConfigError` for 16 bits that are not those
    of the model, and `ModelNotSupported` when "auto" would have to take what there are no kernels for.
    """
    if name in _EIGHT_BITS:
        return _EIGHT_BITS[name]
    if name == "auto":
        return torch.float8_e4m3fn if stores_eight_bit_kv(config.get("quantization_config") or {}) else dtype
    if _DTYPES[name] != dtype:
        ours = str(dtype).removeprefix("torch.")
        raise ConfigError(f"--kv-cache-dtype {name}: the model runs in {ours}, and keeps keys and values in that or in fp8")
    return dtype


def kv_cache_dtype_name(dtype: torch.dtype) -> str:
    """What flags call the dtype of a KV cache."""
    return {torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2"}.get(dtype) or str(dtype).removeprefix("torch.")


def resolve_max_model_len(requested: int | None, arch: Arch) -> int:
    """The context length to serve. Raises `ConfigError` beyond what the model's positions reach."""
    limit = arch.max_model_len
    if requested is not None and requested > limit:
        raise ConfigError(f"--max-model-len {requested}: the model reaches {limit} tokens; lower it to {limit} or leave it out")
    return requested or arch.default_model_len or limit
