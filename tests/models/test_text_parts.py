"""The text part of a model that reads images too computes what transformers computes of a text; nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.checkpoint.text_part import text_config, text_name
from streamserve.errors import ConfigError
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model, open_source
from tests.models.families import TOLERANCE, load, prompt_of
from tests.models.paged import PagedRun
from tests.models.text_parts import OLD_NAMES, TEXT_PARTS, multimodal_model, store

OLD = [name for name, (prefix, *_) in TEXT_PARTS.items() if prefix in OLD_NAMES]


@pytest.mark.parametrize(
    ("name", "old_names"),
    [*((name, False) for name in TEXT_PARTS), *(pytest.param(name, True, marks=pytest.mark.slow) for name in OLD)],
)
def test_it_computes_what_transformers_computes_of_a_text(name: str, old_names: bool, tmp_path: Path) -> None:
    reference = multimodal_model(name)
    store(reference, tmp_path, old_names=old_names)
    # Not even there: what reads images is not opened.
    (tmp_path / "vision.safetensors").unlink()
    prompt = prompt_of(50)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    assert expected.std() > 0.05
    model = load(tmp_path)
    torch.testing.assert_close(PagedRun(model).step({"a": prompt})["a"], expected, atol=TOLERANCE, rtol=0)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(8):
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert PagedRun(model).greedy("a", prompt, 8) == tokens[len(prompt) :]


def test_a_configuration_that_names_no_parts_is_the_text_parts_with_another_beside_it(tmp_path: Path) -> None:
    for old in (False, True):
        store(multimodal_model("qwen2.5-vl"), tmp_path / str(old), old_config=old)
    new, old_way = (resolve(str(tmp_path / str(old))) for old in (False, True))
    assert "vision_config" not in old_way.config
    assert old_way.has_other_parts
    assert read_arch(old_way.config) == read_arch(new.config)


def test_what_lies_in_the_same_file_is_passed_over_and_not_counted(tmp_path: Path) -> None:
    reference = multimodal_model("gemma3")
    reference.save_pretrained(tmp_path)
    checkpoint, seen = resolve(str(tmp_path)), list[tuple[int, int]]()
    arch = read_arch(checkpoint.config)
    source = open_source(checkpoint, arch)
    assert source is not None
    assert all(name.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")) for name in source.names)
    load_model(checkpoint, arch, dtype=torch.float32, device="cpu", on_progress=lambda done, total: seen.append((done, total)))
    done, total = seen[-1]
    assert done == total < (tmp_path / "model.safetensors").stat().st_size


def test_a_missing_file_of_texts_is_named_and_one_of_images_is_not_missed(tmp_path: Path) -> None:
    store(multimodal_model("mistral3"), tmp_path)
    (tmp_path / "vision.safetensors").unlink()
    resolve(str(tmp_path))
    (tmp_path / "text.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1 of its files are missing, among them text\.safetensors"):
        resolve(str(tmp_path))


def test_end_ids_are_those_of_the_whole_and_of_the_part(tmp_path: Path) -> None:
    store(multimodal_model("qwen3-vl"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [8, 9]}))
    assert resolve(str(tmp_path)).eos_token_ids[-3:] == (8, 9, 7)


def test_gemma_3_is_published_with_little_more_than_its_differences_from_the_defaults() -> None:
    published = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    arch = read_arch(text_config(published))
    assert (arch.vocab_size, arch.q_heads, arch.kv_heads, arch.head_dim) == (262_208, 8, 4, 256)
    assert (arch.hidden_size, arch.max_model_len, arch.dtype, arch.tied_embeddings) == (2560, 131_072, "bfloat16", True)
    assert arch.windows[:6] == (1024,) * 5 + (None,)


def test_modules_that_stay_unquantized_are_named_as_they_are_alone() -> None:
    named = ["lm_head", "re:.*gate$", "model.language_model.layers.3.mlp", "model.visual.blocks.0"]
    config = text_config({"text_config": {}, "quantization_config": {"quant_method": "fp8", "modules_to_not_convert": named}})
    kept = config["quantization_config"]
    assert kept["modules_to_not_convert"] == ["lm_head", "re:.*gate$", "model.layers.3.mlp", "model.visual.blocks.0"]
    assert kept["quant_method"] == "fp8"


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("visual.blocks.0.attn.qkv.weight", None),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
    ],
)
def test_tensors_of_texts_have_the_names_that_they_have_alone(stored: str, name: str | None) -> None:
    assert text_name(stored) == name
