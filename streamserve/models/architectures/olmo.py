"""OLMo 2 and 3, by their config.json: norms after the blocks, and of all queries and all keys together; 3 has windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.models.arch import BlockNorms, ModelArch, QkNorm
from streamserve.models.config_reading import layer_windows, read_common
from streamserve.models.rope import read_rope

AFTER = BlockNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")

PATTERN = 4
"""Every fourth layer of OLMo 3 sees everything, the others a window."""


def read_olmo2(config: dict[str, Any]) -> ModelArch:
    config = {"rms_norm_eps": 1e-5} | config
    bias = bool(config.get("attention_bias", False))
    return ModelArch(**read_common(config), norms=AFTER, qk_norm=QkNorm(span="all"), qkv_bias=bias, output_bias=bias)


def read_olmo3(config: dict[str, Any]) -> ModelArch:
    config = {"rope_theta": 500_000.0, "sliding_window": 4096} | config
    # What is scaled is what the full layers see.
    arch, local = read_olmo2(config), {**config, "rope_scaling": None}
    types = ["full_attention" if layer % PATTERN == 0 else "sliding_attention" for layer in range(1, arch.num_layers + 1)]
    kinds = config.get("layer_types") or types
    ropes = {
        "full_attention": read_rope(config, arch.head_dim, "full_attention"),
        "sliding_attention": read_rope(local, arch.head_dim, "sliding_attention"),
    }
    return replace(arch, windows=layer_windows(config, types), ropes=tuple(ropes[kind] for kind in kinds))
