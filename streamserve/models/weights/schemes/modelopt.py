"""`quant_method` "modelopt": checkpoints of NVIDIA's Model Optimizer, whose `quant_algo` is FP8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.schemes.fp8 import StoredFp8
from streamserve.models.weights.schemes.names import HEADS, is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Schemes


def read_modelopt(config: Mapping[str, Any]) -> Schemes:
    algorithm = config.get("quant_algo")
    if algorithm != "FP8":
        raise ModelNotSupported(f"modelopt quant_algo {algorithm!r} is not supported; supported: FP8")
    scheme = StoredFp8("weight_scale", "tensor", input_scale=True)
    kept = [*HEADS, *(config.get("exclude_modules") or config.get("ignore") or ())]
    return lambda name: PLAIN if is_listed(name, kept) else scheme
