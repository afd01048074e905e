"""What loading takes of a GPU's memory beside the weights that stay, with the linears, head and embedding of an 8B model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.config import Quantization
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model

ROOT = Path(__file__).parents[2]
LAYERS = 2
MOST_BESIDE = 2 << 30

Stored = Callable[[int, int], dict[str, Tensor]]


def plain(rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": torch.randn(rows, columns, dtype=torch.bfloat16)}


def fp8_blocks(rows: int, columns: int) -> dict[str, Tensor]:
    scale = torch.full((rows // 128, columns // 128), 0.01)
    return {"weight": torch.randn(rows, columns).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def gptq(rows: int, columns: int) -> dict[str, Tensor]:
    groups = columns // 128
    return {
        "qweight": torch.randint(-(1 << 31), 1 << 31, (columns // 8, rows)).int(),
        "qzeros": torch.full((groups, rows // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, rows), 0.01, dtype=torch.float16),
        "g_idx": (torch.arange(columns) // 128).int(),
    }


def write(folder: Path, store: Stored, quantization: dict[str, Any]) -> str:
    """A checkpoint of this many layers whose linears are stored so."""
    config = json.loads((ROOT / "benchmarks" / "configs" / "Qwen3-8B" / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS}
    if quantization:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    norms = {
        "input_layernorm": hidden, "post_attention_layernorm": hidden,
        "self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim,
    }  # fmt: skip
    table = torch.zeros(config["vocab_size"], hidden, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone(), "model.norm.weight": table[0].clone()}
    for layer in range(LAYERS):
        for name, shape in linears.items():
            tensors |= {f"model.layers.{layer}.{name}.{end}": tensor for end, tensor in store(*shape).items()}
        tensors |= {f"model.layers.{layer}.{name}.weight": table[0, :size].clone() for name, size in norms.items()}
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def peak_of(folder: str, quantization: Quantization = "auto") -> tuple[int, int]:
    """Bytes of the GPU that a model keeps, and those that loading takes at its most."""
    checkpoint = resolve(folder)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arch = read_arch(checkpoint.config)
    model = load_model(checkpoint, arch, dtype=torch.bfloat16, device="cuda", quantization=quantization)
    kept, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    del model
    return kept, peak


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("store", "config", "quantization", "bits"),
    [
        (plain, {}, "fp8", 8),
        (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}, "auto", 8),
        (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "auto", 4),
    ],
    ids=["rounded while loading", "8-bit floats in blocks", "gptq"],
)
def test_loading_takes_no_more_than_the_quantized_weights_and_two_gigabytes(
    store: Stored, config: dict[str, Any], quantization: Quantization, bits: int, tmp_path: Path
) -> None:
    kept, peak = peak_of(write(tmp_path, store, config), quantization)
    linears = LAYERS * 192_937_984
    outside = 2 * 151_936 * 4096 * 2
    assert kept < 1.06 * (linears * bits / 8 + outside)
    assert peak - kept < MOST_BESIDE
