"""How Triton kernels are launched: programmatic dependent launch, block shapes, device facts.

Host side only, on whichever thread launches a step. Knows no kernel.

Programmatic dependent launch (PDL, compute capability 9.0 and later) lets a kernel start while its predecessor on the stream
still runs. A kernel launched that way
 * may read weights, what an earlier step wrote, and a step's inputs (rows.py) before `gdc_wait`;
 * calls `gdc_wait` before it touches anything else, and in at least one program: completion is transitive only because each
   kernel completes after its own predecessor did;
 * calls `gdc_launch_dependents` as its first act, so that successors prefetch their weights meanwhile.

A kernel is compiled again for every pattern of arguments that are 1 or divisible by 16, pointers included. Arguments that
change from step to step are therefore exempt (`do_not_specialize`): a server must not stop to compile.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
import triton.language as tl

MAX_ARRIVALS = 1 << 16


@triton.jit
def prefetch(ptrs, num_bytes):
    """Ask for `num_bytes` at each of `ptrs` to come to the L2 cache, multiples of 16; 0 asks for nothing. Needs 9.0."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [ptrs.to(tl.int64), num_bytes], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@functools.cache
def dependent_launch(device: torch.device) -> dict[str, Any]:
    """Launch options of every kernel for `device`: PDL where the hardware has it (`STREAMSERVE_PDL=0` turns it off)."""
    wanted = os.environ.get("STREAMSERVE_PDL", "1") != "0"
    if device.type != "cuda" or not wanted or torch.cuda.get_device_capability(device) < (9, 0):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`; a plausible small number where the interpreter stands in for a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def power_of_two(size: int, *, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and `least`."""
    return max(least, triton.next_power_of_2(size))


def arrivals(device: torch.device) -> torch.Tensor:
    """[MAX_ARRIVALS] int32 counters of finished parts, zero between launches, those of the current stream.

    Kernels whose last program adds up what the others left count with them. Make them before a capture: run it once without.
    """
    return _arrivals(device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)


@functools.cache
def _arrivals(device: torch.device, stream: int) -> torch.Tensor:
    return torch.zeros(MAX_ARRIVALS, dtype=torch.int32, device=device)
