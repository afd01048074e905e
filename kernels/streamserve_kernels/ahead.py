"""Kernels compiled and not run, for a GPU that this process does not touch: Triton's cache then has them for those that do.

Whoever wants them calls this package as ever, with tensors on torch's meta device, which have a shape and no memory: each
launch compiles what it would have run. For a process of its own, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from .launch import CompileOnly, compiles_only
from .target import Target


@contextmanager
def compile_only(target: Target, claim: Callable[[str, Hashable], bool]) -> Iterator[None]:
    """Inside, launches on meta tensors compile for `target` and run nothing.

    claim  asked before a kernel is compiled, with its name and the kind of its arguments; on False it is not
    """
    driver.set_active(_StandIn(target))
    try:
        with compiles_only(CompileOnly(target, claim, _compile_launcher)), _Shapes():
            yield
    finally:
        driver._active = None


def _like_first(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _embedding(ids: Tensor, table: Tensor, *_: Any, **__: Any) -> Tensor:
    return table.new_empty(*ids.shape, table.shape[1])


_ELEMENTWISE = (Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, torch.tanh, torch.empty_like, torch.zeros_like)
_RESULTS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(_ELEMENTWISE, _like_first),
    **dict.fromkeys((Tensor.add_, Tensor.addmm_), _first),
    F.linear: _linear,
    F.embedding: _embedding,
}


class _Shapes(TorchFunctionMode):
    """What torch's own operations between the kernels give, in shape.

    torch could tell, but for arithmetic without memory it loads its compiler, 800 modules; what is not listed pays for that.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _RESULTS.get(function, function)(*args, **(kwargs or {}))


class _StandIn:
    """As much of a driver of Triton's as compiling asks for."""

    def __init__(self, target: Target) -> None:
        major, minor = target.capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def _compile_launcher(compiled: Any) -> None:
    """Versions up to 3.6 have a C compiler make a launcher for every signature; later ones have one launcher for all."""
    if hasattr(nvidia, "make_launcher"):
        nvidia.CudaLauncher(compiled.src, compiled.metadata)
