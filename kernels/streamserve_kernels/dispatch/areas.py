"""The Triton module of an area of operations, imported for the first tensor that is not on the CPU."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def triton_area(name: str) -> ModuleType:
    """`streamserve_kernels.<name>`, which has Triton functions by the names of the reference's."""
    return import_module(f"streamserve_kernels.{name}")


def preload() -> None:
    """Import the Triton kernels. Call it before several threads launch: concurrent first calls find Triton partly imported."""
    areas = (
        "activations", "attention", "experts", "norms", "peers.memory", "projections.dense", "projections.quantized",
        "rows.updates", "sampling.choice",
    )  # fmt: skip
    for area in areas:
        triton_area(area)
