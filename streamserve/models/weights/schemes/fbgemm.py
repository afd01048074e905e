"""`quant_method` "fbgemm_fp8": 8-bit floats with a scale for each row, as Llama 3.1's own FP8 checkpoints have them.

Their `activation_scale_ub` bounds what activations are rounded with; here outliers keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.models.weights.schemes.fp8 import StoredFp8
from streamserve.models.weights.schemes.names import HEADS, is_listed
from streamserve.models.weights.schemes.scheme import PLAIN, Schemes


def read_fbgemm(config: Mapping[str, Any]) -> Schemes:
    scheme = StoredFp8("weight_scale", "row")
    kept = [*HEADS, *(config.get("modules_to_not_convert") or ())]
    return lambda name: PLAIN if is_listed(name, kept) else scheme
