"""Which architectures there are: how each reads its config.json and builds its layers. A new family is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamserve.errors import ModelNotSupported
from streamserve.models.arch import Arch, ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.architectures.decoder import Decoder
from streamserve.models.architectures.gemma import Gemma, read_gemma, read_gemma2, read_gemma3
from streamserve.models.architectures.glm import read_glm, read_glm4
from streamserve.models.architectures.llama import (
    read_ernie,
    read_granite,
    read_hunyuan,
    read_llama,
    read_ministral3,
    read_mistral,
    read_mistral3,
    read_phi3,
    read_seed_oss,
    read_smollm3,
)
from streamserve.models.architectures.mixtures import (
    read_glm4_moe,
    read_gpt_oss,
    read_granite_moe,
    read_mixtral,
    read_olmoe,
    read_qwen2_moe,
    read_qwen3_moe,
    read_qwen3_vl_moe,
)
from streamserve.models.architectures.olmo import read_olmo2, read_olmo3
from streamserve.models.architectures.opt import Opt, read_opt
from streamserve.models.architectures.qwen import read_qwen2, read_qwen2_5_vl, read_qwen3, read_qwen3_vl
from streamserve.models.config_reading import architecture_of
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import read_schemes


@dataclass(frozen=True)
class Family:
    """read   config.json to a `ModelArch`
    build  (arch, placement, positions of the rotation tables) to a model with uninitialised weights
    """

    read: Callable[[dict[str, Any]], Any]
    build: Callable[[Any, Placement, int], CausalModel]


REGISTRY: dict[str, Family] = {
    "Ernie4_5ForCausalLM": Family(read_ernie, Decoder),
    "Gemma2ForCausalLM": Family(read_gemma2, Gemma),
    "Gemma3ForCausalLM": Family(read_gemma3, Gemma),
    "Gemma3ForConditionalGeneration": Family(read_gemma3, Gemma),
    "GemmaForCausalLM": Family(read_gemma, Gemma),
    "Glm4ForCausalLM": Family(read_glm4, Decoder),
    "Glm4MoeForCausalLM": Family(read_glm4_moe, Decoder),
    "GlmForCausalLM": Family(read_glm, Decoder),
    "GptOssForCausalLM": Family(read_gpt_oss, Decoder),
    "GraniteForCausalLM": Family(read_granite, Decoder),
    "GraniteMoeForCausalLM": Family(read_granite_moe, Decoder),
    "HunYuanDenseV1ForCausalLM": Family(read_hunyuan, Decoder),
    "LlamaForCausalLM": Family(read_llama, Decoder),
    "Ministral3ForCausalLM": Family(read_ministral3, Decoder),
    "Mistral3ForConditionalGeneration": Family(read_mistral3, Decoder),
    "MistralForCausalLM": Family(read_mistral, Decoder),
    "MixtralForCausalLM": Family(read_mixtral, Decoder),
    "OPTForCausalLM": Family(read_opt, Opt),
    "Olmo2ForCausalLM": Family(read_olmo2, Decoder),
    "Olmo3ForCausalLM": Family(read_olmo3, Decoder),
    "OlmoeForCausalLM": Family(read_olmoe, Decoder),
    "Phi3ForCausalLM": Family(read_phi3, Decoder),
    "Qwen2ForCausalLM": Family(read_qwen2, Decoder),
    "Qwen2MoeForCausalLM": Family(read_qwen2_moe, Decoder),
    "Qwen2_5_VLForConditionalGeneration": Family(read_qwen2_5_vl, Decoder),
    "Qwen3ForCausalLM": Family(read_qwen3, Decoder),
    "Qwen3MoeForCausalLM": Family(read_qwen3_moe, Decoder),
    "Qwen3VLForConditionalGeneration": Family(read_qwen3_vl, Decoder),
    "Qwen3VLMoeForConditionalGeneration": Family(read_qwen3_vl_moe, Decoder),
    "SeedOssForCausalLM": Family(read_seed_oss, Decoder),
    "SmolLM3ForCausalLM": Family(read_smollm3, Decoder),
}


def read_arch(config: dict[str, Any]) -> ModelArch:
    """The shape of the model that a config.json describes.

    Raises `ModelNotSupported` for an architecture that is not in the registry, naming those that are, and for a quantization
    method or setting of it that there is no scheme for.
    """
    name = architecture_of(config)
    if name not in REGISTRY:
        raise ModelNotSupported(f"architecture {name!r} is not supported; supported: {', '.join(sorted(REGISTRY))}")
    if config.get("quantization_config"):
        read_schemes(config["quantization_config"])
    arch: ModelArch = REGISTRY[name].read(config)
    return arch


def build_model(arch: Arch, place: Placement, max_positions: int) -> CausalModel:
    """A model with uninitialised weights, rotation tables for `max_positions` tokens."""
    return REGISTRY[arch.architecture].build(arch, place, max_positions)
