"""Decoders whose MLPs are mixtures of experts, by their config.json: Qwen2-MoE, Qwen3-MoE, Mixtral."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.checkpoint.config_values import need
from streamserve.models.arch import ModelArch
from streamserve.models.architectures.llama import read_mistral
from streamserve.models.architectures.qwen import read_qwen2, read_qwen3
from streamserve.models.mixture import ExpertTensors, Mixture, SharedExpert
from streamserve_kernels import RoutingRule

PER_EXPERT = ExpertTensors("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight")
STACKED = ExpertTensors("experts.gate_up_proj", "experts.gate_up_proj", "experts.down_proj")
APART = ExpertTensors("experts.gate_proj.weight", "experts.up_proj.weight", "experts.down_proj.weight")
NUMBERED = ExpertTensors("experts.{}.w1.weight", "experts.{}.w3.weight", "experts.{}.w2.weight")


def read_qwen3_moe(config: dict[str, Any]) -> ModelArch:
    # Which of the class's defaults a checkpoint relies on: transformers writes all that differ.
    config = {"num_experts_per_tok": 8, "moe_intermediate_size": 768} | config
    return replace(read_qwen3({"max_window_layers": 0} | config), mixture=_qwen_mixture(config))


def read_qwen2_moe(config: dict[str, Any]) -> ModelArch:
    config = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408} | config
    shared = SharedExpert(config.get("shared_expert_intermediate_size", 5632), "shared_expert", "shared_expert_gate")
    arch = replace(read_qwen2(config), mixture=replace(_qwen_mixture(config), shared=shared))
    return replace(arch, qkv_bias=bool(config.get("qkv_bias", True)))


def read_mixtral(config: dict[str, Any]) -> ModelArch:
    config = {"num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0} | config
    layers = need(config, "num_hidden_layers")
    mixture = Mixture(
        num_experts=_num_experts(config),
        inner_size=need(config, "intermediate_size"),
        rule=RoutingRule(need(config, "num_experts_per_tok")),
        layers=(True,) * layers,
        tensors=(NUMBERED, STACKED, APART),
        name="block_sparse_moe.",
    )
    return replace(read_mistral(config), mixture=mixture)


def _num_experts(config: dict[str, Any]) -> int:
    """Under any of the names that it has had in transformers. Raises `ConfigError` when it is missing."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return int(need(config, next((name for name in names if config.get(name) is not None), names[0])))


def _qwen_mixture(config: dict[str, Any]) -> Mixture:
    """Some layers may have an MLP after all: those listed, and those between every so many."""
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    layers = range(need(config, "num_hidden_layers"))
    return Mixture(
        num_experts=_num_experts(config),
        inner_size=need(config, "moe_intermediate_size"),
        rule=RoutingRule(need(config, "num_experts_per_tok"), renormalizes=bool(config.get("norm_topk_prob", False))),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers),
        tensors=(PER_EXPERT, STACKED, APART),
    )
