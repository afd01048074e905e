"""Which families of models run, by which implementation, with what limits: what `streamserve models` and docs/MODELS.md show.

Plain data that loads in no time; the registry has an entry of its own for each architecture whose layers are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Implementation = Literal["streamserve", "transformers"]


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One family.

    family          as people call it
    architectures   transformers' class names, as in a config.json
    implementation  whose layers run
    layers          what they have that a Llama's have not
    examples        checkpoints on the Hub
    gguf            llama.cpp's names of it, of which .gguf files are read
    limits          what is not served of it
    """

    family: str
    architectures: tuple[str, ...]
    implementation: Implementation = "streamserve"
    layers: str = ""
    examples: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    limits: str = ""


TEXT_ONLY = "text only: a request with an image is a 400"

_OURS: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        family="ERNIE 4.5",
        architectures=("Ernie4_5ForCausalLM",),
        layers="neighbouring dimensions rotate together",
        examples=("baidu/ERNIE-4.5-0.3B-PT",),
        gguf=("ernie4_5",),
    ),
    CatalogueEntry(
        family="Gemma 1",
        architectures=("GemmaForCausalLM",),
        layers="scaled embeddings, norm weights stored less one",
        examples=("google/gemma-2b-it",),
        gguf=("gemma",),
    ),
    CatalogueEntry(
        family="Gemma 2",
        architectures=("Gemma2ForCausalLM",),
        layers="soft caps of scores and logits, norms around blocks, every other layer windowed",
        examples=("google/gemma-2-2b-it", "google/gemma-2-9b-it"),
        gguf=("gemma2",),
    ),
    CatalogueEntry(
        family="Gemma 3",
        architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        layers="norms around blocks and of heads, five of six layers windowed with a rotation of their own",
        examples=("google/gemma-3-1b-it", "google/gemma-3-27b-it"),
        gguf=("gemma3",),
        limits=f"{TEXT_ONLY}; no bidirectional attention (EmbeddingGemma)",
    ),
    CatalogueEntry(
        family="GLM-4",
        architectures=("GlmForCausalLM", "Glm4ForCausalLM"),
        layers="neighbouring dimensions of half of each head rotate together; norms around blocks since 0414",
        examples=("zai-org/glm-4-9b-chat-hf", "zai-org/GLM-4-9B-0414", "zai-org/GLM-4-32B-0414"),
        gguf=("glm4",),
    ),
    CatalogueEntry(
        family="GLM-4 MoE",
        architectures=("Glm4MoeForCausalLM",),
        layers="experts by sigmoid scores with a bias, and one that every token has; the first layers have none",
        examples=("zai-org/GLM-4.5-Air", "zai-org/GLM-4.6"),
        limits="experts are chosen from all groups; the layer that predicts a second token is not read",
    ),
    CatalogueEntry(
        family="gpt-oss",
        architectures=("GptOssForCausalLM",),
        layers="experts with biases, attention sinks, every other layer windowed",
        examples=("openai/gpt-oss-20b", "openai/gpt-oss-120b"),
        gguf=("gpt-oss",),
        limits="on a CPU MXFP4 experts are expanded while they are loaded, to four times their size",
    ),
    CatalogueEntry(
        family="Granite 3",
        architectures=("GraniteForCausalLM",),
        layers="multipliers of embeddings, residuals, scores and logits",
        examples=("ibm-granite/granite-3.3-2b-instruct", "ibm-granite/granite-3.3-8b-instruct"),
        gguf=("granite",),
    ),
    CatalogueEntry(
        family="Granite 3 MoE",
        architectures=("GraniteMoeForCausalLM",),
        layers="experts; multipliers of embeddings, residuals, scores and logits",
        examples=("ibm-granite/granite-3.1-1b-a400m-instruct", "ibm-granite/granite-3.1-3b-a800m-instruct"),
    ),
    CatalogueEntry(
        family="HunYuan, dense",
        architectures=("HunYuanDenseV1ForCausalLM",),
        layers="heads are normed after they are rotated",
        examples=("tencent/Hunyuan-1.8B-Instruct", "tencent/Hunyuan-7B-Instruct"),
        gguf=("hunyuan-dense",),
    ),
    CatalogueEntry(
        family="Llama (also SmolLM2)",
        architectures=("LlamaForCausalLM",),
        examples=("meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        gguf=("llama",),
    ),
    CatalogueEntry(
        family="Ministral 3",
        architectures=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
        layers="queries grow with their position",
        examples=("mistralai/Ministral-3-8B-Instruct-2512-BF16",),
        gguf=("mistral3",),
        limits=TEXT_ONLY,
    ),
    CatalogueEntry(
        family="Mistral",
        architectures=("MistralForCausalLM", "Mistral3ForConditionalGeneration"),
        layers="a sliding window in the first releases",
        examples=("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-Small-3.2-24B-Instruct-2506"),
        gguf=("llama",),
        limits=TEXT_ONLY,
    ),
    CatalogueEntry(
        family="Mixtral",
        architectures=("MixtralForCausalLM",),
        layers="experts",
        examples=("mistralai/Mixtral-8x7B-Instruct-v0.1",),
    ),
    CatalogueEntry(
        family="OLMo 2 and 3",
        architectures=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
        layers="norms after blocks, and over all heads together; 3 has windows",
        examples=("allenai/OLMo-2-0425-1B-Instruct", "allenai/Olmo-3-7B-Instruct"),
        gguf=("olmo2",),
    ),
    CatalogueEntry(
        family="OLMoE",
        architectures=("OlmoeForCausalLM",),
        layers="experts; norms over all heads together",
        examples=("allenai/OLMoE-1B-7B-0924-Instruct",),
        limits="no clipped queries, keys and values (clip_qkv)",
    ),
    CatalogueEntry(
        family="OPT",
        architectures=("OPTForCausalLM",),
        layers="learned positions, layer norms, biases, an MLP without a gate",
        examples=("facebook/opt-350m",),
    ),
    CatalogueEntry(
        family="Phi-3 and 4",
        architectures=("Phi3ForCausalLM",),
        layers="part of each head rotates, LongRoPE",
        examples=("microsoft/Phi-4-mini-instruct", "microsoft/phi-4", "microsoft/Phi-3.5-mini-instruct"),
        gguf=("phi3",),
        limits="with LongRoPE the context trained on, unless --max-model-len is longer; short texts then rotate otherwise",
    ),
    CatalogueEntry(
        family="Qwen 2 and 2.5",
        architectures=("Qwen2ForCausalLM", "Qwen2_5_VLForConditionalGeneration"),
        layers="biases of q, k and v",
        examples=("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        gguf=("qwen2",),
        limits=TEXT_ONLY,
    ),
    CatalogueEntry(
        family="Qwen 2 MoE",
        architectures=("Qwen2MoeForCausalLM",),
        layers="experts, and one that every token has",
        examples=("Qwen/Qwen1.5-MoE-A2.7B-Chat",),
    ),
    CatalogueEntry(
        family="Qwen 3",
        architectures=("Qwen3ForCausalLM", "Qwen3VLForConditionalGeneration"),
        layers="norms of heads",
        examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-32B", "Qwen/Qwen3-VL-8B-Instruct"),
        gguf=("qwen3",),
        limits=TEXT_ONLY,
    ),
    CatalogueEntry(
        family="Qwen 3 MoE",
        architectures=("Qwen3MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration"),
        layers="experts",
        examples=("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
        gguf=("qwen3moe",),
        limits=TEXT_ONLY,
    ),
    CatalogueEntry(
        family="Seed-OSS",
        architectures=("SeedOssForCausalLM",),
        layers="biases of q, k and v",
        examples=("ByteDance-Seed/Seed-OSS-36B-Instruct",),
        gguf=("seed_oss",),
    ),
    CatalogueEntry(
        family="SmolLM3",
        architectures=("SmolLM3ForCausalLM",),
        layers="every fourth layer rotates nothing",
        examples=("HuggingFaceTB/SmolLM3-3B",),
        gguf=("smollm3",),
    ),
)

_BY_TRANSFORMERS = {
    "AFMoE": ("AfmoeForCausalLM", "arcee-ai/Trinity-Mini"),
    "Apertus": ("ApertusForCausalLM", "swiss-ai/Apertus-8B-Instruct-2509"),
    "Arcee": ("ArceeForCausalLM", "arcee-ai/AFM-4.5B"),
    "BitNet": ("BitNetForCausalLM", "microsoft/bitnet-b1.58-2B-4T-bf16"),
    "Cohere": ("CohereForCausalLM", "CohereLabs/c4ai-command-r-v01"),
    "Cohere 2": ("Cohere2ForCausalLM", "CohereLabs/c4ai-command-r7b-12-2024"),
    "DeepSeek V2": ("DeepseekV2ForCausalLM", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
    "DeepSeek V3": ("DeepseekV3ForCausalLM", "deepseek-ai/DeepSeek-V3"),
    "ERNIE 4.5 MoE": ("Ernie4_5_MoeForCausalLM", "baidu/ERNIE-4.5-21B-A3B-PT"),
    "EXAONE 4": ("Exaone4ForCausalLM", "LGAI-EXAONE/EXAONE-4.0-1.2B"),
    "FlexOlmo": ("FlexOlmoForCausalLM", "allenai/FlexOlmo-7x7B-1T"),
    "GPT-2": ("GPT2LMHeadModel", "openai-community/gpt2"),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "EleutherAI/pythia-1.4b"),
    "Helium": ("HeliumForCausalLM", "kyutai/helium-1-2b"),
    "MiniCPM 3": ("MiniCPM3ForCausalLM", "openbmb/MiniCPM3-4B"),
    "Nemotron": ("NemotronForCausalLM", "nvidia/Minitron-4B-Base"),
    "OLMo": ("OlmoForCausalLM", "allenai/OLMo-7B-hf"),
    "Persimmon": ("PersimmonForCausalLM", "adept/persimmon-8b-chat"),
    "Phi": ("PhiForCausalLM", "microsoft/phi-2"),
    "Phi-3.5 MoE": ("PhimoeForCausalLM", "microsoft/Phi-3.5-MoE-instruct"),
    "StableLM": ("StableLmForCausalLM", "stabilityai/stablelm-2-1_6b-chat"),
    "StarCoder 2": ("Starcoder2ForCausalLM", "bigcode/starcoder2-3b"),
    "VaultGemma": ("VaultGemmaForCausalLM", "google/vaultgemma-1b"),
}
"""Tried, as each other decoder that attends through transformers' attention interface is when it is loaded."""

CATALOGUE: tuple[CatalogueEntry, ...] = (
    *_OURS,
    *(
        CatalogueEntry(family=family, architectures=(architecture,), implementation="transformers", examples=(example,))
        for family, (architecture, example) in _BY_TRANSFORMERS.items()
    ),
)
"""Those with layers of ours by name, then those that were tried with transformers'."""
