"""A model's kernels compiled into Triton's cache by many processes.

Half of compiling holds Python's lock, so threads of one process keep few cores busy. This process imports everything once and
then forks, a process for each core; a kernel that one of them has begun to compile is skipped by the others. The process
never touches the GPU: tensors have shapes and no memory, and the rank says what to compile for.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch

from streamserve.models.communicator import Apart
from streamserve.models.implementation import build_model, describe
from streamserve.models.weights.loader import open_source, storage_of
from streamserve.models.weights.placement import Placement
from streamserve.worker.communication.peers import exchange_launches
from streamserve.worker.device.cpu import ShapeDevice
from streamserve.worker.kv_layout import lay_out
from streamserve.worker.rows.rows import RankLimits, Rows
from streamserve.worker.startup.kernel_warmup import WarmupStep, kernel_steps
from streamserve.worker.startup.resolved_settings import resolve_kv_cache_dtype, resolve_max_model_len
from streamserve.worker.startup.triton_cache import CompileJob, CompileTarget
from streamserve_kernels import Target, preload

Claim = Callable[[str, Hashable], bool]

_MOST_PROCESSES = 16

_LONGEST = ("_decode_kernel", "_prefill_kernel", "_restricted_kernel")
"""Kernels that take several times as long as others to compile: begun last, one process would keep all others waiting."""


def compile_job(job: CompileJob, target: CompileTarget) -> int:
    """Compile every kernel that a rank with this job launches; 1 when a part failed, else 0."""
    preload()
    num_processes = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
    steps = warmup_steps(job, getattr(torch, target.dtype))
    return compile_all(steps, Target(target.capability, target.multiprocessors), num_processes)


@torch.inference_mode()
def warmup_steps(job: CompileJob, dtype: torch.dtype) -> list[WarmupStep]:
    """The steps that launch every kernel a rank with this job needs, on a model without memory."""
    config, arch = job.config, describe(job.checkpoint.config, job.config.model_impl)
    max_model_len = resolve_max_model_len(config.max_model_len, arch)
    device = ShapeDevice()
    storage = storage_of(job.checkpoint, open_source(job.checkpoint, arch), config.quantization)
    kv_dtype = resolve_kv_cache_dtype(config.kv_cache_dtype, job.checkpoint.config, dtype)
    ranks = Apart(0, config.tensor_parallel_size)
    place = Placement(dtype, device.torch_device, ranks, storage, config.enable_expert_parallel, kv_dtype)
    model = build_model(arch, place, max_model_len).eval()
    layout = lay_out(
        [state.among(config.tensor_parallel_size) for state in arch.layer_states],
        max_model_len=max_model_len,
        block_size=config.block_size,
        step_tokens=config.max_num_batched_tokens,
        dtype=kv_dtype,
    )
    limits = RankLimits(config.max_num_seqs, max_model_len, config.block_size, arch.vocab_size, layout.group_of)
    steps = kernel_steps(device, model, Rows(device, limits), layout, dtype, config.max_num_batched_tokens)
    return [*steps, *exchange_launches(config.tensor_parallel_size, dtype, device.torch_device)]


def compile_all(steps: Sequence[WarmupStep], target: Target, num_processes: int) -> int:
    """Compile every kernel that the steps launch, in forks of this process; 1 if one of them failed, else 0."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="streamserve-") as claims:
        # Each begins elsewhere, so that all find something of their own at once.
        starts = [index * len(steps) // num_processes for index in range(num_processes)]
        rotations = [[*steps[start:], *steps[:start]] for start in starts]
        forks = [context.Process(target=_compile, args=(rotation, target, Path(claims))) for rotation in rotations]
        for fork in forks:
            fork.start()
        for fork in forks:
            fork.join()
    return int(any(fork.exitcode for fork in forks))


@torch.inference_mode()
def _compile(steps: Sequence[WarmupStep], target: Target, claims: Path) -> None:
    # Here and not at the top: this is Triton, which a machine without a GPU need not have.
    from streamserve_kernels.compile_ahead import compile_only

    claim = claims_in(claims)

    def claim_longest(name: str, key: Hashable) -> bool:
        return name in _LONGEST and claim(name, key)

    for chosen in (claim_longest, claim):
        with compile_only(target, chosen):
            for step in steps:
                step()


def claims_in(folder: Path) -> Claim:
    """A claim that the first process to ask for a kernel in this folder wins."""

    def claim(name: str, key: Hashable) -> bool:
        path = folder / hashlib.sha256(repr((name, key)).encode()).hexdigest()
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    return claim
