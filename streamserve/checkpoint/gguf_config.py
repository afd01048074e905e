"""The configuration in a .gguf header, as transformers' config.json.

Pure data: no torch, no files but the one already open. llama.cpp keeps some facts of an architecture in its source and not in
the file (Gemma's layer pattern, Llama 3's frequency scaling); those are written down here.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from streamserve.checkpoint.gguf_file import GgufFile
from streamserve.errors import ModelNotSupported

ARCHITECTURES = {
    "ernie4_5": ("Ernie4_5ForCausalLM", "ernie4_5"),
    "gemma": ("GemmaForCausalLM", "gemma"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "glm4": ("Glm4ForCausalLM", "glm4"),
    "gpt-oss": ("GptOssForCausalLM", "gpt_oss"),
    "granite": ("GraniteForCausalLM", "granite"),
    "hunyuan-dense": ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral3": ("Ministral3ForCausalLM", "ministral3"),
    "olmo2": ("Olmo2ForCausalLM", "olmo2"),
    "phi3": ("Phi3ForCausalLM", "phi3"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "seed_oss": ("SeedOssForCausalLM", "seed_oss"),
    "smollm3": ("SmolLM3ForCausalLM", "smollm3"),
}
"""general.architecture -> (transformers' architecture, its model_type)."""

LLAMA3_SCALING: dict[str, float] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3.1 to 3.3 uses; a file stores only the resulting factors."""

GEMMA3_PATTERN, OLMO3_PATTERN = 6, 4
"""Every so many layers one sees everything, the others a window."""

GEMMA_27B = (46, 62)
"""Layers of the 27B models of Gemma 2 and 3."""

MAY_HAVE_BIASES = ("glm4", "llama", "qwen2", "seed_oss")

MIXTURES = ("gpt-oss", "qwen3moe")
"""Of which experts are read; those of others have the name of a model without."""

EMBEDDING = "token_embd.weight"

END_MARKS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>"),
        *("<EOT>", "_<EOT>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
    }
)
"""Tokens that end a text or a turn wherever a vocabulary has them; llama.cpp knows them by these texts too."""

_FLOATS = {"F32": "float32", "F16": "float16"}


def config_from_gguf(file: GgufFile) -> dict[str, Any]:
    """The config.json that transformers would have for this file.

    Raises `ModelNotSupported` for an architecture or a RoPE scaling that is not built here.
    """
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelNotSupported(
            f"{file.path}: GGUF architecture {name!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    if EMBEDDING not in file.tensors:
        raise ModelNotSupported(f"{file.path}: holds no {EMBEDDING}, so it is a vocabulary or an adapter and no model")
    keys = _Keys(file, name)
    if keys.get("expert_count", 0) and name not in MIXTURES:
        raise ModelNotSupported(f"{file.path}: mixtures of experts of {name!r} are not supported; {', '.join(MIXTURES)} are")
    architecture, model_type = ARCHITECTURES[name]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": _dtype(file),
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_shape(keys),
        **_special_tokens(file),
    }
    config["rope_parameters"] = _rope(keys, config)
    if window := keys.get("attention.sliding_window"):
        config["sliding_window"] = window
        if name == "llama":
            config.update(architectures=["MistralForCausalLM"], model_type="mistral")
    config.update(DIFFERENCES[name](keys, config) if name in DIFFERENCES else {})
    if name in MAY_HAVE_BIASES:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    return config


class _Keys:
    """Metadata of one architecture, by the part of the key after its name."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self._prefix = f"{architecture}."

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(self._prefix + key, default)

    def need(self, key: str) -> Any:
        """A number that the architecture can't do without, the same for all layers."""
        value = self.get(key)
        if value is None:
            raise ModelNotSupported(f"{self.file.path}: the header lacks {self._prefix}{key}")
        if not isinstance(value, int | float):
            raise ModelNotSupported(
                f"{self.file.path}: {self._prefix}{key} differs from layer to layer, which is not supported"
            )
        return value


def _shape(keys: _Keys) -> dict[str, Any]:
    heads = keys.need("attention.head_count")
    hidden = keys.need("embedding_length")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": keys.need("block_count"),
        "intermediate_size": keys.need("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if keys.get("attention.head_count_kv") is None else keys.need("attention.head_count_kv"),
        "head_dim": keys.get("attention.key_length", hidden // heads),
        "rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.need("context_length"),
        "hidden_act": "silu",
    }


def _special_tokens(file: GgufFile) -> dict[str, Any]:
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    marks = (index for index, token in enumerate(file.metadata.get("tokenizer.ggml.tokens", ())) if token in END_MARKS)
    ends = [token for token in dict.fromkeys((ids["eos"], ids["eot"], ids["eom"], *marks)) if token is not None]
    return {"bos_token_id": ids["bos"], "eos_token_id": ends, "pad_token_id": ids["padding"]}


def _dtype(file: GgufFile) -> str:
    kinds = Counter(tensor.kind.name for tensor in file.tensors.values() if len(tensor.shape) > 1)
    return _FLOATS.get(kinds.most_common(1)[0][0], "bfloat16")


def _rope(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base", 10000.0)}
    rotated = keys.get("rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        rope["partial_rotary_factor"] = rotated / config["head_dim"]
    if "rope_factors_long.weight" in keys.file.tensors:
        return rope | _longrope(keys)
    if "rope_freqs.weight" in keys.file.tensors:
        return rope | _llama3_scaling(keys.file, rope["rope_theta"], rotated)
    kind = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return rope
    if kind not in ("linear", "yarn"):
        raise ModelNotSupported(f"{keys.file.path}: RoPE scaling {kind!r} is not supported; supported: linear, yarn")
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        original = keys.get("rope.scaling.original_context_length", config["max_position_embeddings"])
        rope["original_max_position_embeddings"] = original
    return rope


def _longrope(keys: _Keys) -> dict[str, Any]:
    """Divisors of the frequencies, which are tensors there."""
    divisors = {
        f"{name}_factor": keys.file.raw(f"rope_factors_{name}.weight").view(np.float32).ravel().tolist()
        for name in ("short", "long")
    }
    return {"rope_type": "longrope", "attention_factor": keys.get("rope.scaling.attn_factor"), **divisors}


def _phi3(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    if config["rope_parameters"]["rope_type"] != "longrope":
        return {}
    return {"original_max_position_embeddings": keys.need("rope.scaling.original_context_length")}


def _mistral3(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    rope = dict(config["rope_parameters"])
    if multiplier := keys.get("rope.scaling.yarn_log_multiplier"):
        rope |= {"mscale": multiplier, "mscale_all_dim": multiplier}
    return {"rope_parameters": rope | {"llama_4_scaling_beta": keys.get("attention.temperature_scale", 0.0)}}


def _llama3_scaling(file: GgufFile, theta: float, rotated: int) -> dict[str, Any]:
    """Recover the scaling of Llama 3.1 from the frequency divisors in the file, which must then follow from it exactly."""
    stored = file.raw("rope_freqs.weight").view(np.float32).ravel()
    factor, original = float(stored.max()), LLAMA3_SCALING["original_max_position_embeddings"]
    low, high = original / LLAMA3_SCALING["low_freq_factor"], original / LLAMA3_SCALING["high_freq_factor"]
    for index, divisor in enumerate(stored):
        wavelength = 2 * math.pi * theta ** (2 * index / rotated)
        if wavelength < high:
            expected = 1.0
        elif wavelength > low:
            expected = factor
        else:
            smooth = (low / wavelength - 1.0) / (low / high - 1.0)
            expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(expected, float(divisor), rel_tol=1e-4):
            raise ModelNotSupported(f"{file.path}: its RoPE frequency factors are not Llama 3's, and no others are supported")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_SCALING}


def _gemma(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    # The 27B models scale their scores by hidden / heads instead of head_dim; llama.cpp recognises them by their layers too.
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers in GEMMA_27B else config["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": keys.get("attn_logit_softcapping"),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }


def _gemma3(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base_swa", 10000.0)}
    return _gemma(keys, config) | _two_rotations(config, GEMMA3_PATTERN, local)


def _olmo2(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    """OLMo 3 has the same name there, and windows."""
    if "sliding_window" not in config:
        return {}
    local = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    named = {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}
    return named | _two_rotations(config, OLMO3_PATTERN, local)


def _two_rotations(config: dict[str, Any], pattern: int, local: dict[str, Any]) -> dict[str, Any]:
    """Every so many layers see everything, with the file's rotation; the others a window, with `local`."""
    layers = range(1, config["num_hidden_layers"] + 1)
    return {
        "layer_types": ["sliding_attention" if layer % pattern else "full_attention" for layer in layers],
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }


def _granite(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": keys.get("embedding_scale", 1.0),
        "residual_multiplier": keys.get("residual_scale", 1.0),
        "attention_multiplier": keys.get("attention.scale", 1.0),
        "logits_scaling": keys.get("logit_scale", 1.0),
    }


def _experts(keys: _Keys) -> dict[str, Any]:
    return {"num_experts": keys.need("expert_count"), "num_experts_per_tok": keys.need("expert_used_count")}


def _qwen3moe(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    inner = keys.need("expert_feed_forward_length")
    return _experts(keys) | {"moe_intermediate_size": inner, "norm_topk_prob": True}


def _gpt_oss(keys: _Keys, config: dict[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"] | {"truncate": False}
    return _experts(keys) | {"intermediate_size": keys.need("expert_feed_forward_length"), "rope_parameters": rope}


DIFFERENCES = {
    "gemma2": _gemma,
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
    "granite": _granite,
    "mistral3": _mistral3,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "qwen3moe": _qwen3moe,
}
"""By general.architecture: what a config.json says beyond the keys that all have."""
