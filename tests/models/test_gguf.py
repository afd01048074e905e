""".gguf files: the same model as transformers', whatever the architecture stores differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import dequantize
from transformers import PreTrainedModel

from streamserve.checkpoint.gguf_file import open_gguf
from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import read_arch
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.loader import load_model
from tests.models.families import FAMILIES, SHAPE, TOLERANCE, load, prompt_of, reference_model
from tests.models.gguf_files import write_gguf
from tests.models.paged import PagedRun

GEMMA = SHAPE | {"head_dim": 32, "sliding_window": 20, "num_hidden_layers": 6, "query_pre_attn_scalar": 32}
WIDE = SHAPE | {"vocab_size": 208, "hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}

MODELS = {
    **{name: FAMILIES[name] for name in ("llama", "llama-tied", "llama-wide-heads", "mistral", "qwen2", "qwen3", "phi3")},
    **{name: FAMILIES[name] for name in ("gemma", "gemma2", "granite", "glm4", "ernie", "hunyuan", "olmo2", "seed-oss")},
    "gemma3": ("Gemma3", GEMMA),
    "gpt-oss": ("GptOss", FAMILIES["gpt-oss"][1] | {"rope_parameters": YARN | {"truncate": False}}),
    "qwen3-moe": FAMILIES["qwen3-moe"],
    "olmo3": ("Olmo3", FAMILIES["olmo3"][1] | {"num_hidden_layers": 4, "layer_types": None}),
    "ministral3": FAMILIES["ministral3"],
    "phi3-long": FAMILIES["phi3-long"],
    "phi3-partial": FAMILIES["phi3-partial"],
    "smollm3": ("SmolLM3", SHAPE | {"num_hidden_layers": 4}),
    "llama3": ("Llama", SHAPE | {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}),
    "llama-linear": ("Llama", SHAPE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2-yarn": ("Qwen2", SHAPE | {"rope_parameters": YARN}),
}


def expected_logits(reference: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = reference(torch.tensor([prompt])).logits[0]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_is_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    reference = reference_model(*MODELS[name])
    file = tmp_path / "model.gguf"
    write_gguf(reference, file)
    prompt = prompt_of(50)
    logits = PagedRun(load(file, max_model_len=128)).step({"a": prompt})["a"]
    torch.testing.assert_close(logits, expected_logits(reference, prompt), atol=TOLERANCE, rtol=0)
    assert resolve(str(file)).eos_token_ids == (2, 5)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0])
def test_every_stored_form_is_read_as_the_gguf_package_reads_it(kind: Kind, tmp_path: Path) -> None:
    reference = reference_model("Llama", WIDE)
    file = tmp_path / "model.gguf"
    write_gguf(reference, file, kind, embedding_kind=kind)
    model = load(file)
    opened = open_gguf(file)
    expected = torch.from_numpy(dequantize(opened.raw("blk.1.ffn_down.weight"), kind).copy())
    assert torch.equal(model.get_parameter("layers.1.mlp.down.form.weight"), expected)
    table = torch.from_numpy(dequantize(opened.raw("token_embd.weight"), kind).copy())
    assert torch.equal(model.get_parameter("embedding.table.weight"), table)


def load_bf16(file: Path, quantization: str) -> CausalModel:
    checkpoint = resolve(str(file))
    arch = read_arch(checkpoint.config)
    return load_model(checkpoint, arch, dtype=torch.bfloat16, device="cpu", quantization=quantization)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_say_what_expanded_ones_say(kind: Kind, tied: bool, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(reference_model("Llama", WIDE | {"tie_word_embeddings": tied}), file, kind, embedding_kind=Kind.Q8_0)
    prompt = prompt_of(40)
    exact = PagedRun(load(file)).step({"a": prompt})["a"].log_softmax(-1)
    plain = PagedRun(load_bf16(file, "none")).step({"a": prompt})["a"].float().log_softmax(-1)
    packed = load_bf16(file, "auto")
    assert all(isinstance(linear.form, Int4Form) for linear in packed.linears())

    run = PagedRun(packed)
    one_by_one = torch.cat([run.step({"a": [token]})["a"] for token in prompt]).float().log_softmax(-1)
    together = PagedRun(packed).step({"a": prompt})["a"].float().log_softmax(-1)
    noise = (plain - exact).abs().mean()
    assert (together - exact).abs().mean() < 2.5 * noise
    assert (one_by_one - exact).abs().mean() < 2.5 * noise


def test_mixed_forms_pack_what_can_be_packed(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(reference_model("Llama", WIDE), file, Kind.Q5_0, embedding_kind=Kind.Q4_1)
    model = load_bf16(file, "auto")
    assert not any(isinstance(linear.form, Int4Form) for linear in model.linears())
    assert PagedRun(model).step({"a": prompt_of(5)})["a"].isfinite().all()


def test_int4_is_refused_where_it_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(reference_model("Llama", WIDE), file, Kind.Q4_0)
    checkpoint = resolve(str(file))
    arch = read_arch(checkpoint.config)
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        load_model(checkpoint, arch, dtype=torch.float32, device="cpu", quantization="int4")


def test_frequency_factors_that_are_not_llama_3s_are_refused(tmp_path: Path) -> None:
    other = LLAMA3 | {"original_max_position_embeddings": 4096}
    file = tmp_path / "model.gguf"
    write_gguf(reference_model("Llama", SHAPE | {"rope_parameters": other, "max_position_embeddings": 131072}), file)
    with pytest.raises(ModelNotSupported, match="frequency factors"):
        resolve(str(file))


def test_the_demo_model_knows_the_capital_of_france() -> None:
    checkpoint = resolve("demo")
    arch = read_arch(checkpoint.config)
    tokens = open_gguf(checkpoint.path).metadata["tokenizer.ggml.tokens"]
    prompt = [tokens.index(token) for token in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    model = load_model(checkpoint, arch, dtype=torch.bfloat16, device="cpu")
    assert [tokens[token] for token in PagedRun(model).greedy("a", prompt, 2)] == ["ĠParis", "."]
    assert all(isinstance(linear.form, Int4Form) for linear in model.linears())
