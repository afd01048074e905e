"""The KV cache: its tensors, and how many blocks of it fit.

Sizing is arithmetic on bytes that others measured; errors name the flag to change and the value that would do.
"""

from __future__ import annotations

import math

from torch import Tensor

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.worker.device.base import Device
from streamserve.worker.device.memory import Memory
from streamserve.worker.kv_layout import KvLayout

_GIB = 1 << 30


def allocate(layout: KvLayout, num_blocks: int, device: Device) -> list[Tensor]:
    """Per layer [num_blocks, 2, kv_heads, block_size, head_dim]; layers of different groups share tensors."""
    shape = (num_blocks, *layout.tensor_shape)
    tensors = [device.allocate_cache(shape, layout.dtype) for _ in range(layout.num_tensors)]
    return [tensors[index] for index in layout.tensor_of]


def count_blocks(
    config: EngineConfig, layout: KvLayout, max_model_len: int, memory: Memory, activation_bytes: int, cap: int | None
) -> int:
    """How many blocks the cache gets.

    memory            of the device, with the weights loaded
    activation_bytes  the most that a step needs beside weights and cache
    cap               the most bytes to take unasked; None for no bound

    `--kv-cache-memory` decides when given; otherwise the share of `--gpu-memory-utilization` that is left, on a CPU that share
    of what is free, and under a cap no more than all rows at full length could use. Raises `ConfigError` when that is not
    there, or too little for one sequence of `max_model_len` tokens.
    """
    if config.kv_cache_memory is not None:
        budget = config.kv_cache_memory
        if budget > memory.free:
            raise ConfigError(f"--kv-cache-memory {budget}: {_size(memory.free)} are free; lower it to {memory.free} or less")
    else:
        budget = _unasked_bytes(memory, config.gpu_memory_utilization) - activation_bytes
        if cap is not None:
            one = layout.blocks_for(max_model_len) * layout.block_bytes
            budget = min(budget, max(cap, one), config.max_num_seqs * one)
    num_blocks = max(0, budget) // layout.block_bytes
    if num_blocks < layout.blocks_for(max_model_len):
        raise ConfigError(_too_small(config, layout, max_model_len, budget, memory))
    return num_blocks


def _unasked_bytes(memory: Memory, share: float) -> int:
    # A machine's programs, which may hold nearly all of its memory, are not to be counted as part of the share.
    return int(memory.free * share) if memory.is_host else int(memory.total * share) - (memory.total - memory.free)


def _too_small(config: EngineConfig, layout: KvLayout, max_model_len: int, budget: int, memory: Memory) -> str:
    """budget  below 0 when others hold more than the share allows"""
    needed = layout.blocks_for(max_model_len) * layout.block_bytes
    free = max(0, budget)
    fitting = layout.groups.longest(free // layout.block_bytes, layout.step_tokens, max_model_len)
    problem = f"max_model_len {max_model_len} needs {_size(needed)} of KV cache for one sequence, {_size(free)} are free"
    shorter = f"lower --max-model-len to {fitting}" if fitting else "use a smaller model"
    if config.kv_cache_memory is not None:
        return f"{problem}: {shorter} or raise --kv-cache-memory to {needed}"
    if memory.is_host:
        room = f"give it --kv-cache-memory {needed}" if needed <= memory.free else "free memory on this machine"
        return f"{problem}: {shorter} or {room}"
    wanted = math.ceil(100 * (config.gpu_memory_utilization + (needed - budget) / memory.total)) / 100
    if wanted > 1.0:
        return f"{problem}: {shorter} or free memory on this device"
    return f"{problem}: {shorter} or raise --gpu-memory-utilization to {wanted:.2f}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"
