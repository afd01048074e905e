"""Which layers share block tables and tensors, and that the memory of one kind is the memory of all."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks import kv_windows
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import PagedKv
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.kv_cache import allocate
from streamserve.worker.kv_layout import MAX_GROUPS, KvLayout, lay_out


def layout_of(*windows: int | None, max_model_len: int = 32768) -> KvLayout:
    layers = [PagedKv(kv_heads=2, head_dim=4, window=window) for window in windows]
    return lay_out(layers, max_model_len=max_model_len, block_size=16, step_tokens=2048, dtype=torch.float32)


def gemma(num_layers: int, window: int) -> list[int | None]:
    return [None if layer % 6 == 5 else window for layer in range(num_layers)]


@pytest.mark.parametrize("window", [None, 4096])
def test_layers_of_one_kind_share_a_block_table_and_have_a_tensor_each(window: int | None) -> None:
    layout = layout_of(*[window] * 5)
    assert layout.groups.windows == (window,)
    assert (layout.group_of, layout.tensor_of) == ((0,) * 5, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("num_layers", "window", "num_groups", "num_tensors"),
    [(26, 512, 13, 2), (34, 1024, 7, 5), (48, 1024, 6, 8), (62, 1024, 13, 5)],
    ids=["Gemma 3 1B", "Gemma 3 4B", "Gemma 3 12B", "Gemma 3 27B"],
)
def test_mixed_kinds_are_split_into_groups_that_leave_little_of_a_block_empty(
    num_layers: int, window: int, num_groups: int, num_tensors: int
) -> None:
    windows = gemma(num_layers, window)
    layout = layout_of(*windows)
    assert (len(layout.groups.windows), layout.num_tensors) == (num_groups, num_tensors)
    assert [layout.groups.windows[group] for group in layout.group_of] == windows
    assert max(Counter(zip(layout.group_of, layout.tensor_of, strict=True)).values()) == 1
    assert num_groups * num_tensors <= 1.05 * num_layers


def test_one_layer_of_another_kind_does_not_make_a_group_of_every_layer() -> None:
    layout = layout_of(None, *[512] * 29)
    assert 1 < len(layout.groups.windows) <= MAX_GROUPS
    assert layout.num_tensors * layout.blocks_for(32768) < 30 * layout_of(*[None] * 30).blocks_for(32768)


def test_windows_that_no_sequence_outgrows_keep_everything() -> None:
    assert layout_of(*gemma(26, 512), max_model_len=512).groups.windows == (None,)
    assert layout_of(4096, 4096, max_model_len=4096).groups.windows == (None,)
    assert layout_of(4096, 4096, max_model_len=4200).groups.windows == (4096,)


def test_layers_of_different_groups_share_tensors_and_those_of_one_do_not() -> None:
    layout = layout_of(512, None, 512)
    caches = allocate(layout, 3, CpuDevice())
    assert [cache.shape for cache in caches] == [(3, 2, 2, 16, 4)] * 3
    assert layout.num_tensors == 1
    assert len({cache.data_ptr() for cache in caches}) == 1
    of_one_group = allocate(layout_of(512, 512, 512), 3, CpuDevice())
    assert len({cache.data_ptr() for cache in of_one_group}) == 3


def test_layers_of_different_sizes_are_refused() -> None:
    layers = [PagedKv(2, 64, None), PagedKv(4, 64, 512)]
    with pytest.raises(ModelNotSupported, match="KV heads"):
        lay_out(layers, max_model_len=4096, block_size=16, step_tokens=2048, dtype=torch.float32)


@pytest.mark.parametrize(("name", "times"), [("Gemma 3 1B", 5.5), ("Gemma 3 27B", 5.5), ("Mistral 7B v0.1", 7.5)])
def test_so_many_times_as_many_long_sequences_fit_as_if_everything_were_kept(name: str, times: float) -> None:
    kept, given_back = (
        kv_windows.fitting(layout, 20 << 30, 32768)
        for layout in (kv_windows.keeping(kv_windows.SHAPES[name]), kv_windows.giving_back(kv_windows.SHAPES[name]))
    )
    assert given_back >= times * kept
