"""Kernels loaded before the first step, and compiled where Triton's cache lacks them.

Called on the rank's launch thread while nothing else runs. Each of many threads runs one size of step on a stream of its own,
over a cache of one block that no sequence owns. Only devices that compile kernels need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.worker.device.base import Device
from streamserve.worker.graphs.decode_graphs import decode_sizes
from streamserve.worker.kv_cache import allocate
from streamserve.worker.kv_layout import KvLayout
from streamserve.worker.rows.inputs import step_inputs
from streamserve.worker.rows.rows import Rows
from streamserve.worker.startup.activation_memory import prefill_inputs
from streamserve_kernels import SamplingTensors, gather_inputs, sample, scatter_sampled

WarmupStep = Callable[[], object]

_DECODES = (1, 2, 8, 16, 32, 64, 128)
_PREFILLS = (100, 1000, 2000)


def run_at_once(device: Device, steps: Sequence[WarmupStep]) -> None:
    """Run these steps at the same time, each on a thread of its own; call `preload` before."""
    device.synchronize()
    with ThreadPoolExecutor(len(steps), thread_name_prefix="streamserve-compile") as threads:
        for done in [threads.submit(_apart, device, step) for step in steps]:
            done.result()


def kernel_steps(
    device: Device, model: CausalModel, rows: Rows, layout: KvLayout, dtype: torch.dtype, max_num_batched_tokens: int
) -> list[WarmupStep]:
    """Steps that between them launch every kernel of a start; each may run on any thread, in any order.

    dtype  of the model
    """
    kv_caches = allocate(layout, 1, device)
    most = decode_sizes(rows.limits.max_num_seqs)[-1]

    def decode(size: int) -> WarmupStep:
        return lambda: _decode(device, model, rows, kv_caches, size)

    def prefill(num_tokens: int) -> WarmupStep:
        inputs = prefill_inputs(device, rows.limits, num_tokens)
        return lambda: model.logits(model(inputs, kv_caches)[:1])

    prompts = (max_num_batched_tokens, *(size for size in _PREFILLS if size < max_num_batched_tokens))
    decodes = (*(size for size in _DECODES if size < most), most)
    # Sampling takes longest, and waits for nothing: first.
    return [lambda: _choose(rows, most, dtype), *map(prefill, prompts), *map(decode, decodes)]


def _apart(device: Device, step: WarmupStep) -> None:
    with torch.inference_mode(), device.another_stream():
        step()


def _decode(device: Device, model: CausalModel, rows: Rows, kv_caches: list[Tensor], size: int) -> None:
    tables, limits = rows.tables, rows.limits
    padding = torch.full((size,), tables.padding_row, dtype=torch.int32, device=device.torch_device)
    starts = torch.zeros_like(padding)
    # On the host: on the meta device this call alone would load 800 modules of torch's.
    query_start = torch.arange(size + 1, dtype=torch.int32).to(device.torch_device)
    gathered = gather_inputs(tables, padding, starts, query_start, num_tokens=size, block_size=limits.block_size)
    inputs = step_inputs(gathered, query_start, limits.group_of, num_decodes=size, max_seq_len=limits.max_model_len)
    hidden = model(inputs, kv_caches)
    model.logits(hidden)


def _choose(rows: Rows, lines: int, dtype: torch.dtype) -> None:
    tables = rows.tables
    padding = torch.full((lines,), tables.padding_row, dtype=torch.int32, device=tables.state.device)
    places = torch.zeros_like(padding)
    logits = torch.zeros(lines, rows.limits.vocab_size, dtype=dtype, device=tables.state.device)
    for restricted in (places[:1], None):
        tokens = sample(logits, SamplingTensors(tables, padding, places + 1, restricted=restricted))
        scatter_sampled(tables, padding, places + 1, tokens.token_ids)
