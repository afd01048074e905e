"""`quant_method` "compressed-tensors": what llm-compressor writes, a scheme for each group of linears.

https://github.com/vllm-project/compressed-tensors describes `config_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.schemes.fp8 import StoredFp8
from streamserve.models.weights.schemes.names import is_listed
from streamserve.models.weights.schemes.packed import read_pack_quantized
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme, Schemes
from streamserve_kernels import FP8_BLOCK

_EVERY_LINEAR = "Linear"
"""A target that is a class."""

_PER = {"tensor": "tensor", "channel": "row", "block": "block"}


def read_compressed_tensors(config: Mapping[str, Any]) -> Schemes:
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    if sparsity != "dense":
        raise ModelNotSupported(f"compressed-tensors sparsity {sparsity!r} is not supported; supported: dense")
    groups = [(group.get("targets") or (), _scheme(group, config)) for group in config.get("config_groups", {}).values()]
    ignored = config.get("ignore") or ()

    def scheme_of(name: str) -> Scheme:
        if is_listed(name, ignored):
            return PLAIN
        return next((scheme for targets, scheme in groups if _EVERY_LINEAR in targets or is_listed(name, targets)), PLAIN)

    return scheme_of


def _scheme(group: Mapping[str, Any], config: Mapping[str, Any]) -> Scheme:
    weights = group.get("weights") or {}
    kind, bits = weights.get("type"), weights.get("num_bits")
    if (kind, bits) == ("float", 8):
        return _fp8(weights, group.get("input_activations"))
    stored = group.get("format") or config.get("format")
    if kind == "int" and stored == "pack-quantized" and not group.get("input_activations"):
        return read_pack_quantized(weights)
    raise ModelNotSupported(
        f"compressed-tensors {stored!r} with {bits}-bit {kind} weights is not supported; "
        "supported: float-quantized with 8 bits, pack-quantized with 4 and activations as they are"
    )


def _fp8(weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> Scheme:
    strategy, blocks = weights.get("strategy"), weights.get("block_structure")
    if strategy not in _PER or (strategy == "block" and list(blocks or ()) != [FP8_BLOCK, FP8_BLOCK]):
        where = f" of {blocks}" if blocks else ""
        raise ModelNotSupported(
            f"compressed-tensors strategy {strategy!r}{where} of 8-bit weights is not supported; supported: channel, tensor, "
            f"block of [{FP8_BLOCK}, {FP8_BLOCK}]"
        )
    is_static = activations is not None and not activations.get("dynamic", False)
    return StoredFp8("weight_scale", _PER[strategy], input_scale=is_static)  # type: ignore[arg-type]
