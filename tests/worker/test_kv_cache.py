"""How large the KV cache gets, and what a person is told when it can't be large enough."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.models.arch import PagedKv
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.device.memory import Memory
from streamserve.worker.kv_cache import allocate, count_blocks
from streamserve.worker.kv_layout import KvLayout, lay_out

GIB = 1 << 30


def layout(
    windows: Sequence[int | None],
    *,
    kv_heads: int = 8,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    length: int = 1 << 17,
) -> KvLayout:
    """Of a model with a layer for each window."""
    layers = [PagedKv(kv_heads, head_dim, window) for window in windows]
    return lay_out(layers, max_model_len=length, block_size=16, step_tokens=2048, dtype=dtype)


# 2 caches * 32 layers * 8 heads * 128 * 16 tokens * 2 bytes: 2 MiB a block, 128 KiB a token.
LAYOUT = layout([None] * 32)


def config(**settings: object) -> EngineConfig:
    return EngineConfig(model="m", **settings)  # type: ignore[arg-type]


def test_a_block_counts_keys_and_values_of_every_layer() -> None:
    assert LAYOUT.block_bytes == 2 << 20
    small = layout([None] * 3, kv_heads=2, head_dim=4, dtype=torch.float32)
    caches = allocate(small, 5, CpuDevice())
    assert len(caches) == 3
    assert caches[0].shape == (5, 2, 2, 16, 4)
    assert sum(cache.nbytes for cache in caches) == 5 * small.block_bytes


def test_the_cache_takes_the_share_of_memory_that_weights_others_and_activations_leave() -> None:
    memory = Memory(total=80 * GIB, free=60 * GIB)
    got = count_blocks(config(gpu_memory_utilization=0.9), LAYOUT, 4096, memory, activation_bytes=2 * GIB, cap=None)
    assert got == (72 - 20 - 2) * 512


def test_kv_cache_memory_decides_when_given_and_there() -> None:
    memory = Memory(total=8 * GIB, free=4 * GIB)
    assert count_blocks(config(kv_cache_memory=3 * GIB), LAYOUT, 4096, memory, 5 * GIB, cap=GIB) == 3 * 512
    told = refusal(config(kv_cache_memory=5 * GIB), memory, 4096)
    assert told == f"--kv-cache-memory {5 * GIB}: 4.0 GiB are free; lower it to {4 * GIB} or less"


@pytest.mark.parametrize(
    ("rows", "max_model_len", "expected_gib"),
    [(256, 8192, 4.0), (2, 8192, 2.0), (256, 65536, 8.0)],
    ids=["the cap", "all that the rows can use", "one sequence, past the cap"],
)
def test_a_cap_bounds_the_cache_but_never_below_one_sequence(rows: int, max_model_len: int, expected_gib: float) -> None:
    memory = Memory(total=64 * GIB, free=60 * GIB)
    got = count_blocks(config(max_num_seqs=rows), LAYOUT, max_model_len, memory, 0, cap=4 * GIB)
    assert got == int(expected_gib * 512)


def refusal(config: EngineConfig, memory: Memory, max_model_len: int) -> str:
    with pytest.raises(ConfigError) as caught:
        count_blocks(config, LAYOUT, max_model_len, memory, 0, cap=None)
    return caught.value.message


def test_too_little_memory_names_the_flags_and_values_that_would_do() -> None:
    memory = Memory(total=10 * GIB, free=6 * GIB)
    told = refusal(config(gpu_memory_utilization=0.6), memory, 40960)
    assert told == (
        "max_model_len 40960 needs 5.0 GiB of KV cache for one sequence, 2.0 GiB are free: "
        "lower --max-model-len to 16384 or raise --gpu-memory-utilization to 0.90"
    )
    assert count_blocks(config(gpu_memory_utilization=0.6), LAYOUT, 16384, memory, 0, cap=None) >= 1024
    assert count_blocks(config(gpu_memory_utilization=0.90), LAYOUT, 40960, memory, 0, cap=None) >= 2560


@pytest.mark.parametrize("max_model_len", [17, 5_000, 33_333, 47_000])
def test_the_share_that_is_suggested_does(max_model_len: int) -> None:
    memory = Memory(total=7 * GIB, free=6 * GIB + 12345)
    told = refusal(config(gpu_memory_utilization=0.1), memory, max_model_len)
    share = float(told.rpartition(" ")[2])
    assert count_blocks(config(gpu_memory_utilization=share), LAYOUT, max_model_len, memory, 0, cap=None) * 16 >= max_model_len


def test_too_little_kv_cache_memory_names_the_bytes_that_would_do() -> None:
    memory = Memory(total=10 * GIB, free=6 * GIB)
    told = refusal(config(kv_cache_memory=GIB), memory, 16384)
    assert told.endswith(f"lower --max-model-len to 8192 or raise --kv-cache-memory to {2 * GIB}")
    assert count_blocks(config(kv_cache_memory=2 * GIB), LAYOUT, 16384, memory, 0, cap=None) == 1024


def test_a_device_that_is_too_small_at_any_share_is_told_so() -> None:
    told = refusal(config(), Memory(total=4 * GIB, free=GIB), 40960)
    assert told.endswith("free memory on this device")
    nothing = refusal(config(), Memory(total=4 * GIB, free=0), 40960)
    assert "0.0 MiB are free: use a smaller model or free memory" in nothing


def test_on_a_machine_whose_programs_hold_most_of_its_memory_the_cache_takes_a_share_of_the_rest() -> None:
    """64 GiB with 6 available were "0.0 MiB are free … raise --gpu-memory-utilization": they are free, and there is no GPU."""
    memory = Memory(total=64 * GIB, free=6 * GIB, is_host=True)
    assert count_blocks(config(gpu_memory_utilization=0.5), LAYOUT, 4096, memory, 0, cap=None) == 3 * 512
    assert count_blocks(config(), LAYOUT, 32768, memory, 0, cap=4 * GIB) == 4 * 512
    told = refusal(config(), memory, 45056)
    assert told == (
        "max_model_len 45056 needs 5.5 GiB of KV cache for one sequence, 5.4 GiB are free: "
        f"lower --max-model-len to 44224 or give it --kv-cache-memory {45056 << 17}"
    )
    assert count_blocks(config(kv_cache_memory=45056 << 17), LAYOUT, 45056, memory, 0, cap=None) == 2816
    assert refusal(config(), memory, 65536).endswith("lower --max-model-len to 44224 or free memory on this machine")


GEMMA = layout(([512] * 5 + [None]) * 4 + [512] * 2, kv_heads=1, head_dim=256, length=32768)


def test_too_little_memory_for_windowed_layers_names_the_length_and_the_bytes_that_would_do() -> None:
    memory, length = Memory(total=10 * GIB, free=6 * GIB), 32768
    needed = GEMMA.blocks_for(length) * GEMMA.block_bytes
    with pytest.raises(ConfigError) as caught:
        count_blocks(config(kv_cache_memory=needed - 1), GEMMA, length, memory, 0, cap=None)
    told = caught.value.message
    assert told.endswith(f"raise --kv-cache-memory to {needed}")
    shorter = int(told.partition("lower --max-model-len to ")[2].split()[0])
    assert length - 16 <= shorter < length
    for budget, fitting in ((needed, length), (needed - 1, shorter)):
        got = count_blocks(config(kv_cache_memory=budget), GEMMA, fitting, memory, 0, cap=None)
        assert got == budget // GEMMA.block_bytes
