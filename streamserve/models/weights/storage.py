"""How a checkpoint stores its weights, known before anything of them is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class WeightStorage:
    """A checkpoint's description, as far as forms of weights are chosen by it.

    num_digits           4-bit digits per number of the tensors that are stored so, by name; none is listed when they are to be
                         expanded
    quantization_config  of config.json; empty without one
    quantization         what is asked for: "none" expands what the checkpoint stores, "fp8" narrows what it stores wider
    names                of all tensors; empty for random weights
    """

    num_digits: Mapping[str, int] = field(default_factory=dict)
    quantization_config: Mapping[str, Any] = field(default_factory=dict)
    quantization: str = "auto"
    names: Collection[str] = frozenset()
