"""Checkpoints with quantized linears, and the same with the numbers that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.families import SHAPE, reference_model

WIDE = SHAPE | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
Store = Callable[[int, int], tuple[dict[str, Tensor], Tensor]]


def fp8_blocks(rows: int, columns: int) -> tuple[dict[str, Tensor], Tensor]:
    weight, scale = torch.randn(rows, columns).to(torch.float8_e4m3fn), torch.rand(rows // 128, columns // 128) / 16 + 0.01
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return {"weight": weight, "weight_scale_inv": scale}, weight.double() * wide.double()


def save_quantized(
    folder: Path, store: Store, config: dict[str, Any], model: tuple[str, dict[str, Any]] = ("Llama", WIDE)
) -> tuple[Path, Path]:
    """A checkpoint whose linears are stored so, and one of the numbers that they stand for."""
    quantized, expanded = folder / "quantized", folder / "expanded"
    for each in (quantized, expanded):
        reference_model(*model).save_pretrained(each)
    tensors, plain = load_file(quantized / "model.safetensors"), load_file(expanded / "model.safetensors")
    for name in [name.removesuffix(".weight") for name in tensors if name.endswith("proj.weight")]:
        stored, numbers = store(*tensors.pop(f"{name}.weight").shape)
        tensors |= {f"{name}.{end}": tensor.contiguous() for end, tensor in stored.items()}
        plain[f"{name}.weight"] = numbers.float()
    save_file(tensors, quantized / "model.safetensors")
    save_file(plain, expanded / "model.safetensors")
    settings = json.loads((quantized / "config.json").read_text()) | {"quantization_config": config}
    (quantized / "config.json").write_text(json.dumps(settings))
    return quantized, expanded


FOUR = {"bits": 4, "group_size": 32}


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As MXFP4 with scales of 1/16: two numbers in a byte, the first in its lower half."""
    digits = torch.searchsorted(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]), (weight * 16).contiguous()).to(
        torch.uint8
    )
    groups = digits.unflatten(-1, (-1, 16, 2))
    scales = torch.full(groups.shape[:-2], 127 - 4, dtype=torch.uint8)
    return groups[..., 0] | (groups[..., 1] << 4), scales
