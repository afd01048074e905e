"""Memory of the largest step, run once before the KV cache exists: what it holds beside the weights must stay free."""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.worker.device.base import Device
from streamserve.worker.kv_cache import KvShape, allocate
from streamserve.worker.rows.rows import Rows
from streamserve_kernels import SamplingTensors, sample


def measure_activations(
    device: Device, model: CausalModel, rows: Rows, shape: KvShape, num_tokens: int, num_lines: int, max_model_len: int
) -> int:
    """Bytes that a step of `num_tokens` tokens and `num_lines` sampled lines holds at its peak, beside what stays."""
    kv_caches = allocate(shape, 1, device)
    inputs = prefill_inputs(device, shape, num_tokens, max_model_len)
    lines = torch.arange(num_lines, dtype=torch.int32, device=device.torch_device)
    padding = torch.full_like(lines, rows.tables.padding_row)
    parameters = SamplingTensors(rows.tables, padding, torch.zeros_like(lines), random=lines)

    def step() -> Tensor:
        hidden = model(inputs, kv_caches)
        return sample(model.logits(hidden[:num_lines].contiguous()), parameters).token_ids

    return device.measure_peak(step)


def prefill_inputs(device: Device, shape: KvShape, num_tokens: int, max_model_len: int) -> StepInputs:
    """Prompts that fill a step. All of them read block 0 and write nowhere."""
    length = min(num_tokens, max_model_len)
    lengths = [length] * (num_tokens // length)
    if num_tokens % length:
        lengths.append(num_tokens % length)

    def on_device(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device.torch_device)

    positions = [position for count in lengths for position in range(count)]
    ends = [0]
    for count in lengths:
        ends.append(ends[-1] + count)
    return StepInputs(
        token_ids=on_device([0] * num_tokens, torch.int64),
        positions=on_device(positions, torch.int64),
        slot_mapping=on_device([-1] * num_tokens, torch.int64),
        # As wide as those of rows: kernels are compiled for what their strides are divisible by.
        block_tables=torch.zeros(len(lengths), shape.blocks_for(max_model_len), dtype=torch.int32, device=device.torch_device),
        seq_lens=on_device(lengths, torch.int32),
        query_start=on_device(ends, torch.int32),
        num_decodes=len(lengths) if length == 1 else 0,
        max_seq_len=length,
    )
