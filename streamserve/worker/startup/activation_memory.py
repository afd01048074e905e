"""Memory of the largest step, run once before the KV cache exists: what it holds beside the weights must stay free."""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.worker.device.base import Device
from streamserve.worker.kv_cache import allocate
from streamserve.worker.kv_layout import KvLayout
from streamserve.worker.rows.rows import RankLimits, Rows
from streamserve_kernels import SamplingTensors, sample


def measure_activations(
    device: Device, model: CausalModel, rows: Rows, layout: KvLayout, num_tokens: int, num_lines: int
) -> int:
    """Bytes that a step of `num_tokens` tokens and `num_lines` sampled lines holds at its peak, beside what stays."""
    kv_caches = allocate(layout, 1, device)
    inputs = prefill_inputs(device, rows.limits, num_tokens)
    lines = torch.arange(num_lines, dtype=torch.int32, device=device.torch_device)
    padding = torch.full_like(lines, rows.tables.padding_row)
    parameters = SamplingTensors(rows.tables, padding, torch.zeros_like(lines), random=lines)

    def step() -> Tensor:
        hidden = model(inputs, kv_caches)
        return sample(model.logits(hidden[:num_lines].contiguous()), parameters).token_ids

    return device.measure_peak(step)


def prefill_inputs(device: Device, limits: RankLimits, num_tokens: int) -> StepInputs:
    """Prompts that fill a step. All of them read block 0 and write nowhere."""
    length = min(num_tokens, limits.max_model_len)
    lengths = [length] * (num_tokens // length)
    if num_tokens % length:
        lengths.append(num_tokens % length)

    def on_device(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device.torch_device)

    positions = [position for count in lengths for position in range(count)]
    ends = [0]
    for count in lengths:
        ends.append(ends[-1] + count)
    slots = on_device([-1] * num_tokens, torch.int64)
    # As wide as those of rows: kernels are compiled for what their strides are divisible by.
    tables = torch.zeros(len(lengths), limits.max_blocks, dtype=torch.int32, device=device.torch_device)
    return StepInputs(
        token_ids=on_device([0] * num_tokens, torch.int64),
        positions=on_device(positions, torch.int64),
        slot_mapping=[slots] * len(limits.group_of),
        block_tables=[tables] * len(limits.group_of),
        seq_lens=on_device(lengths, torch.int32),
        query_start=on_device(ends, torch.int32),
        num_decodes=len(lengths) if length == 1 else 0,
        max_seq_len=length,
    )
