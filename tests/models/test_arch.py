"""Shapes out of configurations as they lie on the Hub, old words and new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from streamserve.errors import ModelNotSupported, StreamserveError
from streamserve.models.arch import PagedKv
from streamserve.models.registry import read_arch
from streamserve.models.rope import Rope
from tests.models.families import FAMILIES, SHAPE, config_class

LLAMA_31 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}

GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}


def rope_of(**config: Any) -> Rope:
    rope = read_arch(SHAPE | {"architectures": ["LlamaForCausalLM"]} | config).ropes[0]
    assert rope is not None
    return rope


def test_llama_31() -> None:
    arch = read_arch(LLAMA_31)
    assert (arch.head_dim, arch.max_model_len, arch.dtype, arch.tied_embeddings) == (128, 131072, "bfloat16", False)
    rope = arch.ropes[0]
    assert rope is not None
    assert (rope.kind, rope.theta, rope.factor, rope.original_max_position_embeddings) == ("llama3", 500000.0, 8.0, 8192)
    assert arch.layer_states == (PagedKv(8, 128, None),) * 32


def test_gemma_3_keeps_its_layer_pattern_and_two_rotations() -> None:
    arch = read_arch(GEMMA3_1B)
    assert [layer for layer, window in enumerate(arch.windows) if window is None] == [5, 11, 17, 23]
    assert set(arch.windows) == {512, None}
    assert [state.window for state in arch.layer_states] == list(arch.windows)
    local, everywhere = arch.ropes[0], arch.ropes[5]
    assert local is not None
    assert everywhere is not None
    assert (local.theta, everywhere.theta) == (10000.0, 1000000.0)
    assert (arch.tied_embeddings, arch.embedding_scale, arch.attention_scale) == (True, 1152**0.5, 256**-0.5)


def test_gemma_3_states_the_length_that_its_scaling_reaches() -> None:
    scaled = GEMMA3_1B | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "max_position_embeddings": 131072}
    arch = read_arch(scaled)
    everywhere, local = arch.ropes[5], arch.ropes[0]
    assert arch.max_model_len == 131072
    assert everywhere is not None
    assert local is not None
    assert (everywhere.kind, local.kind) == ("linear", "default")


@pytest.mark.parametrize("old_name", ["type", "rope_type"])
def test_old_and_new_words_for_a_rotation_mean_the_same(old_name: str) -> None:
    old = rope_of(rope_theta=5000.0, rope_scaling={old_name: "linear", "factor": 4.0})
    new = rope_of(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0})
    assert old == new
    assert (old.kind, old.theta, old.factor) == ("linear", 5000.0, 4.0)


def test_scaling_added_under_the_old_name_counts_beside_the_new_one() -> None:
    """YaRN added as `rope_scaling`, as model cards say, to a file that transformers 5 wrote was ignored unsaid."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    both = rope_of(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, rope_scaling=scaling)
    assert both == rope_of(rope_theta=5000.0, rope_scaling=scaling)
    assert (both.kind, both.theta, both.factor) == ("yarn", 5000.0, 4.0)
    ropes = {"full_attention": {"rope_theta": 9.0}, "sliding_attention": {"rope_theta": 8.0}}
    gemma = read_arch(GEMMA3_1B | {"rope_parameters": ropes, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    local, everywhere = gemma.ropes[0], gemma.ropes[5]
    assert local is not None
    assert everywhere is not None
    assert (local.kind, local.theta) == ("default", 8.0)
    assert (everywhere.kind, everywhere.theta, everywhere.factor) == ("linear", 9.0, 2.0)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "default"}, 128),
    ],
)
def test_a_scaled_rotation_reaches_further(scaling: dict[str, Any], length: int) -> None:
    assert read_arch(SHAPE | {"architectures": ["LlamaForCausalLM"], "rope_scaling": scaling}).max_model_len == length


def test_a_rotation_of_half_a_head() -> None:
    assert rope_of(partial_rotary_factor=0.5).rot_dim == 8


def test_qwen_uses_its_window_only_when_told_to() -> None:
    config = SHAPE | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "max_window_layers": 1}
    assert read_arch(config).windows == (None, None)
    assert read_arch(config | {"use_sliding_window": True}).windows == (None, 64)
    listed = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True}
    assert read_arch(config | listed).windows == (64, None)


def test_smollm3_rotates_nothing_in_every_fourth_layer_and_windows_only_there() -> None:
    config = SHAPE | {"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 8, "sliding_window": 64}
    arch = read_arch(config)
    assert [layer for layer, rope in enumerate(arch.ropes) if rope is None] == [3, 7]
    assert (arch.windows, arch.tied_embeddings) == ((None,) * 8, True)
    listed = read_arch(config | {"no_rope_layers": [1, 1, 0, 1, 1, 1, 1, 1], "use_sliding_window": True})
    assert [layer for layer, rope in enumerate(listed.ropes) if rope is None] == [2]
    assert listed.windows == (None, None, 64, None, None, None, None, None)


def test_layer_types_that_are_not_built_are_refused() -> None:
    config = SHAPE | {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True}
    with pytest.raises(ModelNotSupported, match="linear_attention"):
        read_arch(config | {"layer_types": ["linear_attention", "full_attention"]})


def test_embedding_gemma_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="bidirectional"):
        read_arch(GEMMA3_1B | {"use_bidirectional_attention": True})


@pytest.mark.parametrize("prefix", sorted({prefix for prefix, _ in FAMILIES.values()} - {"OPT"}))
def test_what_a_configuration_leaves_out_is_what_transformers_fills_in(prefix: str) -> None:
    needed = {name: value for name, value in SHAPE.items() if not name.endswith("token_id")} | {"num_hidden_layers": 8}
    full = config_class(prefix)(**needed).to_dict()
    assert full["num_hidden_layers"] == 8
    named = {"architectures": [f"{prefix}ForCausalLM"], "dtype": "bfloat16"}
    assert read_arch(needed | named) == read_arch(full | named)


def test_granite_keeps_its_hidden_state_divided_by_the_residual_multiplier() -> None:
    multipliers = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.25,
        "logits_scaling": 8.0,
        "attention_multiplier": 0.5,
    }
    arch = read_arch(SHAPE | {"architectures": ["GraniteForCausalLM"], "rms_norm_eps": 1e-5} | multipliers)
    assert (arch.embedding_scale, arch.norm_eps, arch.logit_scale, arch.attention_scale) == (48.0, 1.6e-4, 0.125, 0.5)


def test_hunyuans_alpha_stretches_the_base_for_good() -> None:
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    arch = read_arch(SHAPE | {"architectures": ["HunYuanDenseV1ForCausalLM"], "rope_theta": 10000.0, "rope_scaling": scaling})
    rope = arch.ropes[0]
    assert rope is not None
    assert (rope.kind, rope.theta, arch.max_model_len) == ("default", 10000.0 * 1000.0 ** (16 / 14), 128)


@pytest.mark.parametrize("kind", ["su", "longrope"])
def test_longrope_serves_the_context_trained_on_unless_more_is_asked_for(kind: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = SHAPE | {"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": kind, **factors}}
    arch = read_arch(config | {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096})
    rope = arch.ropes[0]
    assert rope is not None
    assert (rope.kind, rope.factor, arch.max_model_len, arch.default_model_len) == ("longrope", 32.0, 131072, 4096)
    assert torch.equal(rope.table(4096)[1], rope.table(100)[1])
    assert not torch.equal(rope.table(4097)[1], rope.table(4096)[1])


def changed(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key, or one within it, missing or with a value that it can't have."""
    for key, value in config.items():
        yield f"without {key}", {name: other for name, other in config.items() if name != key}
        for wrong in (None, "x", [], {}, 0):
            yield f"{key} {wrong!r}", config | {key: wrong}
        if isinstance(value, dict):
            yield from ((f"{key}: {what}", config | {key: inner}) for what, inner in changed(value))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_that_is_missing_or_wrong_ends_in_a_traceback(family: str) -> None:
    prefix, settings = FAMILIES[family]
    full = config_class(prefix)(**settings).to_dict()
    for what, config in changed(full | {"dtype": "bfloat16", "architectures": [f"{prefix}ForCausalLM"]}):
        try:
            read_arch(config)
        except StreamserveError:
            """It was refused by name."""
        except Exception as error:
            raise AssertionError(what) from error
