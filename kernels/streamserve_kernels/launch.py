"""Launches Triton kernels: cached binaries, programmatic dependent launch, block shapes, properties of the device.

Runs on the host, on whichever thread launches a step. Knows no particular kernel.

Programmatic dependent launch (PDL, compute capability 9.0 and later) lets a kernel start while its predecessor on the stream
still runs. A kernel launched that way
 * may read weights, what an earlier step wrote, and a step's inputs (rows/updates.py) before `gdc_wait`;
 * calls `gdc_wait` before it touches anything else, and in at least one program: completion is transitive only because each
   kernel completes after its own predecessor did;
 * calls `gdc_launch_dependents` as its first act, so that successors prefetch their weights meanwhile; after `gdc_wait` only
   where its successor reads, before its own, what the predecessor wrote (the first product of experts).

Triton compiles a kernel again for every pattern of arguments that are 1 or divisible by 16, pointers included. Arguments that
change from step to step are therefore exempt (`do_not_specialize`): a server must not stop to compile.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .target import Target, target_of

MAX_ARRIVALS = 1 << 16


class CompileOnly(NamedTuple):
    """How launches on meta tensors are compiled; see compile_ahead.py.

    claim        decides by a kernel's name and specialization whether to compile it
    on_compiled  called with each compiled kernel
    """

    target: Target
    claim: Callable[[str, Hashable], bool]
    on_compiled: Callable[[Any], None]


_COMPILE_ONLY: ContextVar[CompileOnly] = ContextVar("compile_only")


class Kernel:
    """A Triton kernel whose later launches use the binary of the first directly.

    On every launch Triton inspects every argument to find the right binary, which takes longer than most kernels run. This
    class looks binaries up by what that choice depends on. Call it as Triton's own: `kernel[grid](*arguments, **constants)`,
    with run-time arguments by position and all others by name, always in the same order; the first argument is a tensor.
    """

    def __init__(self, function: Any) -> None:
        """function  what `triton.jit` returned"""
        self.function = function
        self._compiled: dict[Hashable, tuple[Any, tuple[str, ...]]] = {}
        self._compiling: dict[Hashable, threading.Lock] = {}
        self._is_interpreted = not isinstance(function, triton.runtime.JITFunction)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        if self._is_interpreted:
            interpreted: Callable[..., None] = self.function[grid]
            return interpreted
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        values: list[Any] = []
        specialization: list[Hashable] = [arguments[0].device.index, *constants.values()]
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                pointer = argument.data_ptr()
                values.append(pointer)
                specialization.append(argument.dtype if pointer % 16 == 0 else (argument.dtype,))
            else:
                values.append(argument)
                specialization.append(_specialize_scalar(argument))
        key = tuple(specialization)
        known = self._compiled.get(key)
        if known is None:
            self._compile(key, grid, arguments, constants)
            return
        compiled, names = known
        compiled[(*grid, 1, 1)[:3]](*values, *(constants[name] for name in names))

    def _compile(self, key: Hashable, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        if arguments[0].is_meta:
            mode = _COMPILE_ONLY.get()
            if mode.claim(self.function.__name__, key):
                mode.on_compiled(self.function.warmup(*arguments, grid=grid, **constants))
            return
        # Threads that start together want the same kernels: without the lock, each would compile all of them.
        with self._compiling.setdefault(tuple(constants.values()), threading.Lock()):
            compiled = self.function[grid](*arguments, **constants)
        self._compiled[key] = compiled, tuple(self.function.arg_names[len(arguments) :])


def _specialize_scalar(argument: float | None) -> Hashable:
    """What the choice of a binary may depend on: a number's type, its width, and whether it is 1 or divisible by 16."""
    if type(argument) is int:
        return argument == 1, argument % 16 == 0, -(1 << 31) <= argument < 1 << 31
    other: type = type(argument)
    return other


def kernel(**options: Any) -> Callable[[Callable[..., None]], Kernel]:
    """Decorator: `triton.jit` with these options, as a `Kernel`."""
    return lambda function: Kernel(triton.jit(**options)(function))


@triton.jit
def prefetch(ptrs, num_bytes):
    """Prefetch `num_bytes` at each of `ptrs` into the L2 cache, multiples of 16 or 0 for none. Needs compute capability 9.0."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [ptrs.to(tl.int64), num_bytes], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


def _target(device: torch.device) -> Target:
    return _COMPILE_ONLY.get().target if device.type == "meta" else target_of(device)


@contextmanager
def intercept_meta_launches(mode: CompileOnly) -> Iterator[None]:
    """Handle launches on meta tensors by `mode` in this context; without it such a launch raises LookupError."""
    token = _COMPILE_ONLY.set(mode)
    _forget_targets()
    try:
        yield
    finally:
        _COMPILE_ONLY.reset(token)
        _forget_targets()


def _forget_targets() -> None:
    for remembered in (dependent_launch, multiprocessors, capability):
        remembered.cache_clear()


@functools.cache
def dependent_launch(device: torch.device) -> dict[str, Any]:
    """Launch options of every kernel on `device`: PDL where the hardware has it (`STREAMSERVE_PDL=0` turns it off)."""
    is_enabled = os.environ.get("STREAMSERVE_PDL", "1") != "0"
    if not is_enabled or _target(device).capability < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of streaming multiprocessors of `device`."""
    return _target(device).multiprocessors


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of `device`."""
    return _target(device).capability


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of the dtype in which a kernel multiplies tensors of `dtype`."""
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


def power_of_two(size: int, *, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and `least`."""
    return max(least, int(triton.next_power_of_2(size)))


class _Counters(threading.local):
    """A thread's counters, by device."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, torch.Tensor] = {}


_COUNTERS = _Counters()


def arrivals(device: torch.device) -> torch.Tensor:
    """Arrival counters of this thread, [MAX_ARRIVALS] int32, zero between launches; a thread launches on one stream.

    Kernels in which the last program combines the results of the others count their programs with them. Allocated on first
    use: run such a kernel once before capturing it.
    """
    if device not in _COUNTERS.by_device:
        _COUNTERS.by_device[device] = torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=device)
    return _COUNTERS.by_device[device]
