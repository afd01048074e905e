"""A model small enough to benchmark in a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """A folder with a two-layer Llama's configuration and no weights, for `--load-format dummy`."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)
