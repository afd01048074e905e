"""`quant_method` "mxfp4": gpt-oss's checkpoints, whose experts alone are stored so (`weights.experts.mxfp4`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.models.weights.schemes.scheme import PLAIN, Schemes


def read_mxfp4(config: Mapping[str, Any]) -> Schemes:
    return lambda name: PLAIN
