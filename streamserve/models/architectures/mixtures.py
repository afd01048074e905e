"""Decoders whose MLPs are mixtures of experts, by their config.json.

What config.json leaves out has its class's default in transformers, which writes only what differs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.checkpoint.config_values import need, number, positive
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.arch import ModelArch, QkNorm
from streamserve.models.architectures.llama import read_granite, read_llama, read_mistral
from streamserve.models.architectures.qwen import read_qwen2, read_qwen3
from streamserve.models.config_reading import layer_windows, optional_windows, read_common
from streamserve.models.mixture import ExpertTensors, Mixture, SharedExpert
from streamserve_kernels import CLAMPED_SILU_ALPHA, CLAMPED_SILU_LIMIT, RoutingRule

PER_EXPERT = ExpertTensors("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight")
STACKED = ExpertTensors("experts.gate_up_proj", "experts.gate_up_proj", "experts.down_proj")
TRANSPOSED = replace(STACKED, transposed=True)
APART = ExpertTensors("experts.gate_proj.weight", "experts.up_proj.weight", "experts.down_proj.weight")
NUMBERED = ExpertTensors("experts.{}.w1.weight", "experts.{}.w3.weight", "experts.{}.w2.weight")
LINEARS = ExpertTensors("input_linear.weight", "input_linear.weight", "output_linear.weight")
IN_TURNS = replace(TRANSPOSED, alternates=True)
BLOCKS = ExpertTensors(
    "experts.gate_up_proj_blocks", "experts.gate_up_proj_blocks", "experts.down_proj_blocks", alternates=True, mxfp4=True
)


def read_qwen3_moe(config: dict[str, Any]) -> ModelArch:
    config = {"num_experts_per_tok": 8, "moe_intermediate_size": 768, "head_dim": None} | config
    # Unlike Qwen3 it has windows in all layers or in none.
    return replace(read_qwen3(config | {"max_window_layers": 0}), mixture=_qwen_mixture(config, 128))


def read_qwen3_vl_moe(config: dict[str, Any]) -> ModelArch:
    arch = read_qwen3_moe(config)
    defaults = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408, "norm_topk_prob": True}
    mixture = _qwen_mixture(defaults | config, 60)
    return replace(arch, mixture=replace(mixture, tensors=(TRANSPOSED, PER_EXPERT)))


def read_qwen2_moe(config: dict[str, Any]) -> ModelArch:
    config = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408} | config
    shared = SharedExpert(config.get("shared_expert_intermediate_size", 5632), "shared_expert", "shared_expert_gate")
    last = number(config, "max_window_layers", 28)
    types = [
        "full_attention" if layer % 2 or layer >= last else "sliding_attention"
        for layer in range(need(config, "num_hidden_layers"))
    ]
    return replace(
        read_qwen2(config),
        windows=optional_windows(config, types),
        mixture=replace(_qwen_mixture(config, 60), shared=shared),
        qkv_bias=bool(config.get("qkv_bias", True)),
    )


def read_mixtral(config: dict[str, Any]) -> ModelArch:
    """Mixtral (Jiang et al., 2024, https://arxiv.org/abs/2401.04088)."""
    defaults = {"num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "sliding_window": None}
    config = defaults | config
    mixture = _mixture(config, 8, need(config, "intermediate_size"), (NUMBERED, STACKED, APART))
    return replace(read_mistral(config), mixture=replace(mixture, name="block_sparse_moe."))


def read_olmoe(config: dict[str, Any]) -> ModelArch:
    """OLMoE (Muennighoff et al., 2024, https://arxiv.org/abs/2409.02060): a norm of all queries, and of all keys."""
    if config.get("clip_qkv") is not None:
        raise ModelNotSupported("OLMoE with clipped queries, keys and values (clip_qkv) is not supported")
    config = {"num_experts_per_tok": 8, "rms_norm_eps": 1e-5} | config
    mixture = _mixture(config, 64, need(config, "intermediate_size"), (PER_EXPERT, STACKED, APART))
    rule = mixture.rule._replace(renormalizes=bool(config.get("norm_topk_prob", False)))
    return replace(read_llama(config), qk_norm=QkNorm(span="all"), mixture=replace(mixture, rule=rule))


def read_granite_moe(config: dict[str, Any]) -> ModelArch:
    config = {"num_experts_per_tok": 2} | config
    mixture = _mixture(config, 8, need(config, "intermediate_size"), (LINEARS,))
    return replace(read_granite(config), mixture=replace(mixture, name="block_sparse_moe.", router="router.layer"))


def read_glm4_moe(config: dict[str, Any]) -> ModelArch:
    """GLM-4.5 (GLM-4.5 team, 2025, https://arxiv.org/abs/2508.06471): the first layers are dense, a bias balances the choice.

    The layer past the last, which predicts a second token, is not read.
    """
    if config.get("n_group", 1) != config.get("topk_group", 1):
        raise ModelNotSupported(
            "GLM-4 MoE whose experts are chosen from some groups only (n_group, topk_group) is not supported"
        )
    defaults = {"num_experts_per_tok": 8, "moe_intermediate_size": 1408, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5}
    config = defaults | config
    inner, first = need(config, "moe_intermediate_size"), number(config, "first_k_dense_replace", 1)
    mixture = _mixture(config, 128, inner, (PER_EXPERT, STACKED, APART))
    rule = RoutingRule(
        mixture.rule.top_k,
        "sigmoid",
        renormalizes=bool(config.get("norm_topk_prob", True)),
        scale=number(config, "routed_scaling_factor", 1.0),
    )
    arch = read_llama(config)
    return replace(
        arch,
        output_bias=False,
        qk_norm=QkNorm() if config.get("use_qk_norm") else None,
        mixture=replace(
            mixture,
            rule=rule,
            layers=tuple(layer >= first for layer in range(arch.num_layers)),
            choice_bias="gate.e_score_correction_bias",
            shared=SharedExpert(inner * number(config, "n_shared_experts", 1), "shared_experts"),
        ),
        unread_layers=number(config, "num_nextn_predict_layers", number(config, "num_mtp_layers", 1)),
    )


def read_gpt_oss(config: dict[str, Any]) -> ModelArch:
    """gpt-oss (OpenAI, 2025, https://arxiv.org/abs/2508.10925): sinks, every other layer windowed, biased experts."""
    for name, built in (("swiglu_limit", CLAMPED_SILU_LIMIT), ("swiglu_alpha", CLAMPED_SILU_ALPHA)):
        if number(config, name, built) != built:
            raise ModelNotSupported(f"gpt-oss with {name} {config[name]} is not supported; only {built} is")
    yarn = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
    config = {
        "num_experts_per_tok": 4,
        "head_dim": 64,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "max_position_embeddings": 131_072,
        "rope_scaling": None if config.get("rope_parameters") else yarn,
    } | config
    types = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(need(config, "num_hidden_layers"))]
    bias = bool(config.get("attention_bias", True))
    mixture = _mixture(config, 128, need(config, "intermediate_size"), (BLOCKS, IN_TURNS, APART))
    return ModelArch(
        **read_common(config)
        | {"windows": layer_windows(config, types), "max_model_len": need(config, "max_position_embeddings")},
        qkv_bias=bias,
        output_bias=bias,
        has_sinks=True,
        mixture=replace(mixture, router="router", router_bias=True, biased=True, activation="clamped_silu"),
    )


def _mixture(config: dict[str, Any], num_experts: int, inner_size: int, tensors: tuple[ExpertTensors, ...]) -> Mixture:
    """Experts in every layer, of whose scores those of the chosen make up one; `num_experts` unless the config has another."""
    # Each of these names has been written for any of the families.
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    stated = next((name for name in names if config.get(name) is not None), None)
    return Mixture(
        num_experts=num_experts if stated is None else need(config, stated),
        inner_size=inner_size,
        rule=RoutingRule(need(config, "num_experts_per_tok")),
        layers=(True,) * need(config, "num_hidden_layers"),
        tensors=tensors,
    )


def _qwen_mixture(config: dict[str, Any], num_experts: int) -> Mixture:
    """Some layers may have an MLP after all: those listed, and those between every so many."""
    mixture = _mixture(config, num_experts, need(config, "moe_intermediate_size"), (PER_EXPERT, STACKED, APART))
    step, dense = positive(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError("config.json: mlp_only_layers must be a list of layers")
    return replace(
        mixture,
        rule=mixture.rule._replace(renormalizes=bool(config.get("norm_topk_prob", False))),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(len(mixture.layers))),
    )
