"""The KV cache: one tensor per layer, and how many blocks of it fit.

A block holds `block_size` tokens in every layer. Sizing is arithmetic on bytes that others measured; errors name the flag to
change and the value that would do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.worker.device.base import Device
from streamserve.worker.device.memory import Memory

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token and one block of a model's cache are made of."""

    num_layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        return 2 * self.num_layers * self.kv_heads * self.head_dim * self.block_size * self.dtype.itemsize

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


def allocate(shape: KvShape, num_blocks: int, device: Device) -> list[Tensor]:
    """Per layer [num_blocks, 2, kv_heads, block_size, head_dim]."""
    layer = (num_blocks, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    return [device.allocate_cache(layer, shape.dtype) for _ in range(shape.num_layers)]


def count_blocks(
    config: EngineConfig, shape: KvShape, max_model_len: int, memory: Memory, activation_bytes: int, cap: int | None
) -> int:
    """How many blocks the cache gets.

    memory            of the device, with the weights loaded
    activation_bytes  the most that a step needs beside weights and cache
    cap               the most bytes to take unasked; None for no bound

    `--kv-cache-memory` decides when given; otherwise the share of `--gpu-memory-utilization` that is left, and under a cap no
    more than all rows at full length could use. Raises `ConfigError` when that is not there, or too little for one sequence of
    `max_model_len` tokens.
    """
    if config.kv_cache_memory is not None:
        budget = config.kv_cache_memory
        if budget > memory.free:
            raise ConfigError(f"--kv-cache-memory {budget}: {_size(memory.free)} are free; lower it to {memory.free} or less")
    else:
        budget = int(memory.total * config.gpu_memory_utilization) - (memory.total - memory.free) - activation_bytes
        if cap is not None:
            one = shape.blocks_for(max_model_len) * shape.block_bytes
            budget = min(budget, max(cap, one), config.max_num_seqs * one)
    num_blocks = max(0, budget) // shape.block_bytes
    if num_blocks < shape.blocks_for(max_model_len):
        raise ConfigError(_too_small(config, shape, max_model_len, budget, memory))
    return num_blocks


def _too_small(config: EngineConfig, shape: KvShape, max_model_len: int, budget: int, memory: Memory) -> str:
    """budget  below 0 when others hold more than the share allows"""
    needed = shape.blocks_for(max_model_len) * shape.block_bytes
    free = max(0, budget)
    fitting = free // shape.block_bytes * shape.block_size
    problem = f"max_model_len {max_model_len} needs {_size(needed)} of KV cache for one sequence, {_size(free)} are free"
    shorter = f"lower --max-model-len to {fitting}" if fitting else "use a smaller model"
    if config.kv_cache_memory is not None:
        return f"{problem}: {shorter} or raise --kv-cache-memory to {needed}"
    wanted = math.ceil(100 * (config.gpu_memory_utilization + (needed - budget) / memory.total)) / 100
    if wanted > 1.0:
        return f"{problem}: {shorter} or free memory on this device"
    return f"{problem}: {shorter} or raise --gpu-memory-utilization to {wanted:.2f}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"
