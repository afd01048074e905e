"""Which kernels a model launches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import streamserve_kernels.dispatch

DISPATCH = Path(streamserve_kernels.dispatch.__file__).parent
FUSED = ["norm_linear", "rotary_attention", "linear_residual", "norm_gated_linear", "linear_residual"]


def launches(run: Callable[[], object]) -> list[str]:
    """The functions of the kernels' dispatch that are called from outside of it, in order."""
    called: list[str] = []

    def see(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and Path(code.co_filename).parent == DISPATCH and code.co_name in streamserve_kernels.__all__:
            called.append(code.co_name)

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return called
