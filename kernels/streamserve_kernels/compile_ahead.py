"""Compiles kernels without running them, for a GPU that this process does not touch; the results go to Triton's cache.

Inside `compile_only`, callers use this package as usual, with tensors on torch's meta device, which have a shape and no
memory: each launch compiles the kernel that it would have run. Meant for a process of its own, on one thread.
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

from .launch import CompileOnly, intercept_meta_launches
from .target import Target


@contextmanager
def compile_only(target: Target, claim: Callable[[str, Hashable], bool]) -> Iterator[None]:
    """Compile the kernels of all launches on meta tensors for `target`, and run nothing.

    claim  called before a kernel is compiled, with its name and its specialization; on False it is skipped
    """
    driver.set_active(_CompilingDriver(target))
    try:
        with intercept_meta_launches(CompileOnly(target, claim, _compile_launcher)), _MetaShapes():
            yield
    finally:
        driver._active = None


def _like_first(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _first(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _mm(x: Tensor, y: Tensor, *_: Any, out_dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[1], dtype=out_dtype)


def _scaled_mm(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    # All are in bf16 (projections/fp8.py).
    return x.new_empty(x.shape[0], weight.shape[1], dtype=torch.bfloat16)


def _grouped_mm(x: Tensor, y: Tensor, **_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[2])


def _embedding(ids: Tensor, table: Tensor, *_: Any, **__: Any) -> Tensor:
    return table.new_empty(*ids.shape, table.shape[1])


_ELEMENTWISE = (
    Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.lt, Tensor.ge, Tensor.__or__, Tensor.masked_fill,
    torch.tanh, torch.sigmoid, torch.empty_like, torch.zeros_like,
)  # fmt: skip
_RESULTS: dict[Any, Callable[..., Tensor]] = {
    **dict.fromkeys(_ELEMENTWISE, _like_first),
    **dict.fromkeys((Tensor.add_, Tensor.addmm_, Tensor.masked_fill_), _first),
    F.linear: _linear,
    torch.mm: _mm,
    torch._grouped_mm: _grouped_mm,
    Tensor.cumsum: _like_first,
    F.embedding: _embedding,
    torch._scaled_mm_v2: _scaled_mm,
}


class _MetaShapes(TorchFunctionMode):
    """Computes the result shapes of torch's own operations between the kernels.

    torch can do so itself, but for arithmetic on meta tensors it imports its compiler, 800 modules; operations that are not
    listed here take that path.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _RESULTS.get(function, function)(*args, **(kwargs or {}))


class _CompilingDriver:
    """The part of Triton's driver interface that compiling uses; there is no device behind it."""

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
    """Compile the launcher of a kernel: Triton up to 3.6 has a C compiler make one per signature, later versions share one."""
    if hasattr(nvidia, "make_launcher"):
        nvidia.CudaLauncher(compiled.src, compiled.metadata)
