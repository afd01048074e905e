"""Out of memory while starting: which part of the start asked for too much, and which setting makes it ask for less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.worker.device import Device
from streamserve.worker.startup.timeline import Timeline

_GIB = 1 << 30


@contextmanager
def explain_shortage(device: Device, config: EngineConfig, timeline: Timeline) -> Iterator[None]:
    """Turn the device's out-of-memory error into a `ConfigError` that names a flag and a value for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = f"{device.name} ({device.memory().total / _GIB:.1f} GiB)"
        raise ConfigError(f"out of memory on {where} at {timeline.part}: {_advice(config, timeline.part)}") from error


def _advice(config: EngineConfig, part: str) -> str:
    if part == "weights":
        return "the weights alone don't fit beside what others hold: use --dtype half, a smaller model or a larger GPU"
    if part == "kv_cache":
        return f"a step's activations don't fit: lower --max-num-batched-tokens to {config.max_num_batched_tokens // 2}"
    return f"leave more room beside the KV cache: lower --gpu-memory-utilization to {config.gpu_memory_utilization - 0.05:.2f}"
