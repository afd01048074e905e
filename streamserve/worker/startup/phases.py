"""The phases of a start: how long each took, and which setting to change when one ran out of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.worker.device.base import Device

_GIB = 1 << 30


class Phases:
    """Seconds by phase, in the order measured; `current` is the one begun last."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.current = ""

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `phase`."""
        self.current = phase
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


@contextmanager
def explain_out_of_memory(device: Device, config: EngineConfig, phases: Phases) -> Iterator[None]:
    """Turn the device's out-of-memory error into a `ConfigError` that names a flag and a value for it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        where = f"{device.name} ({device.memory().total / _GIB:.1f} GiB)"
        advice = _advice(config, phases.current, is_host=device.memory().is_host)
        raise ConfigError(f"out of memory on {where} at {phases.current}: {advice}") from error


def _advice(config: EngineConfig, phase: str, *, is_host: bool) -> str:
    machine = "machine" if is_host else "GPU"
    if phase == "weights":
        return f"the weights alone don't fit beside what others hold: use --dtype half, a smaller model or a larger {machine}"
    if phase == "kv_cache":
        return f"a step's activations don't fit: lower --max-num-batched-tokens to {config.max_num_batched_tokens // 2}"
    if is_host:
        return "leave more room beside the KV cache: give it less with --kv-cache-memory"
    return f"leave more room beside the KV cache: lower --gpu-memory-utilization to {config.gpu_memory_utilization - 0.05:.2f}"
