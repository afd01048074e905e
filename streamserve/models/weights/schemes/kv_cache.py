"""The format of a KV cache that a `quantization_config` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.errors import ModelNotSupported

_EXPECTED = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True, "dynamic": False}


def stores_eight_bit_kv(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is meant for a KV cache of 8-bit floats with a scale for each layer.

    So say `kv_cache_scheme` (compressed-tensors, ModelOpt) and `kv_cache_quant_algo` (ModelOpt). Raises `ModelNotSupported` for
    caches of another kind, naming what is different.
    """
    scheme = config.get("kv_cache_scheme")
    if scheme:
        differing = [f"{name} {scheme[name]!r}" for name, value in _EXPECTED.items() if scheme.get(name, value) != value]
        if differing:
            raise ModelNotSupported(
                f"the checkpoint asks for a KV cache with {', '.join(differing)}, which is not supported; supported: 8-bit "
                "floats with a stored scale per tensor. --kv-cache-dtype with another value than auto overrides it"
            )
        return True
    algorithm = config.get("kv_cache_quant_algo")
    if algorithm not in (None, "FP8"):
        raise ModelNotSupported(
            f"the checkpoint asks for a KV cache of {algorithm}, which is not supported; supported: FP8. --kv-cache-dtype with "
            "another value than auto overrides it"
        )
    return algorithm == "FP8"
