"""Weights from every form of folder, and what is said when a checkpoint does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import REGISTRY, read_arch
from streamserve.models.weights.loader import load_model
from tests.models.edit import edit_weights
from tests.models.families import FAMILIES, SHAPE, load, prompt_of, reference_model
from tests.models.paged import PagedRun

PROMPT = prompt_of(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama in one safetensors file."""
    reference_model(*FAMILIES["llama"]).save_pretrained(tmp_path)
    return tmp_path


def logits(model: CausalModel) -> Tensor:
    return PagedRun(model).step({"a": PROMPT})["a"]


def strip_prefix(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_shards_are_one_model(folder: Path, tmp_path: Path) -> None:
    expected = logits(load(folder))
    sharded = tmp_path / "sharded"
    reference_model(*FAMILIES["llama"]).save_pretrained(sharded, max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(sharded)), expected)


def test_names_of_a_bare_model_are_understood(folder: Path) -> None:
    expected = logits(load(folder))

    edit_weights(folder, strip_prefix)
    assert torch.equal(logits(load(folder)), expected)


def test_tensors_that_follow_from_the_rest_are_passed_over(folder: Path) -> None:
    expected = logits(load(folder))
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    assert torch.equal(logits(load(folder)), expected)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("is_bare", [False, True], ids=["full names", "bare names"])
def test_a_head_that_differs_from_the_embedding_is_kept_though_the_config_ties_them(
    family: str, is_bare: bool, tmp_path: Path
) -> None:
    """A fine-tune with a head of its own and tie_word_embeddings true answered nonsense: its head was dropped unsaid."""
    name, shape = FAMILIES[family]
    reference = reference_model(name, shape | {"tie_word_embeddings": False})
    reference.save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    if is_bare:
        edit_weights(tmp_path, strip_prefix)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits(load(tmp_path)), expected, atol=2e-5, rtol=0)


def test_a_stored_head_that_equals_the_embedding_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    reference_model(*FAMILIES["llama-tied"]).save_pretrained(tmp_path)
    expected = logits(load(tmp_path))
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    model = load(tmp_path)
    assert model.arch.tied_embeddings
    assert torch.equal(logits(model), expected)


def other_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"layers.0.attention.wq.weight": torch.zeros(2)} | {name: torch.zeros(3) for name in list(tensors)[:2]}


@pytest.mark.parametrize("stray", ["consolidated.safetensors", "adapter_model.safetensors", "model.safetensors"])
def test_only_the_files_of_the_index_are_the_model(stray: str, tmp_path: Path) -> None:
    """Folders that also hold consolidated weights, an adapter or the single file of an older upload were refused."""
    reference = reference_model(*FAMILIES["llama"])
    reference.save_pretrained(tmp_path, max_shard_size="200KB")
    expected = logits(load(tmp_path))
    save_file(other_weights(reference.state_dict()), tmp_path / stray)
    assert torch.equal(logits(load(tmp_path)), expected)


def test_beside_a_single_file_of_weights_others_are_no_part_of_the_model(folder: Path) -> None:
    expected = logits(load(folder))
    for stray in ("adapter_model.safetensors", "optimizer.safetensors"):
        save_file(other_weights(load_file(folder / "model.safetensors")), folder / stray)
    assert torch.equal(logits(load(folder)), expected)


def test_progress_is_counted_in_stored_bytes_up_to_all_of_them(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    seen: list[tuple[int, int]] = []
    load_model(
        checkpoint,
        read_arch(checkpoint.config),
        dtype=torch.bfloat16,
        device="cpu",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    done = [so_far for so_far, _ in seen]
    stored = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert done == sorted(done)
    assert done[-1] == stored
    assert {total for _, total in seen} == {seen[0][1]}
    assert 0 <= seen[0][1] - stored < 4096, "only the file's header is not a tensor"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tensors: tensors.pop("model.norm.weight"),
            "lacks 1 tensors of LlamaForCausalLM, .* 'model.norm.weight'",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.zeros(1)}),
            "'model.layers.0.extra.weight' has no",
        ),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}), r"has shape \[5\], config.json says \[96\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_tensors_name(
    folder: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(ConfigError, match=said):
        load(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="damaged"):
        load(folder)


def test_a_model_without_experts_is_not_divided_by_experts(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    with pytest.raises(ConfigError, match="--enable-expert-parallel: LlamaForCausalLM has no experts"):
        load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.float32, device="cpu", divides_experts=True)


def test_int4_needs_a_gguf_file(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    with pytest.raises(ConfigError, match=r"4-bit \.gguf"):
        load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.bfloat16, device="cpu", quantization="int4")


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_dummy_weights_need_only_a_config_and_are_the_same_every_time(family: str, tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).config.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=[f"{FAMILIES[family][0]}ForCausalLM"])
    checkpoint = resolve(str(tmp_path), load_format="dummy")
    arch = read_arch(checkpoint.config)
    models = [load_model(checkpoint, arch, dtype=torch.float32, device="cpu") for _ in range(2)]
    first = logits(models[0])
    assert torch.equal(first, logits(models[1]))
    assert first.std() > 0.001
    weights = torch.cat([parameter.flatten() for parameter in models[0].parameters()])
    matrices = weights[(weights != 0) & (weights != 1) & (weights != 2)]
    assert 0.015 < matrices.std() < 0.025


def test_rows_of_a_large_dummy_weight_differ(tmp_path: Path) -> None:
    config = SHAPE | {"architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "num_attention_heads": 8, "vocab_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = resolve(str(tmp_path), load_format="dummy")
    model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.bfloat16, device="cpu")
    table = model.get_parameter("embedding.table.weight").float()
    assert len(table.unique(dim=0)) == 4096


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "'MambaForCausalLM' is not supported; supported: .*Gemma3ForCausalLM",
        ),
        ({"architectures": ..., "model_type": "mamba"}, "architecture 'mamba' is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"hidden_act": "relu"}, "gated MLP with ReLU"),
        (
            {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "'proportional' is not supported; supported: default",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet"}},
            "method 'bitnet' is not supported; supported: .*fp8",
        ),
        ({"rope_parameters": {"rope_type": "yarn"}}, "needs a 'factor'"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0]}}, "'longrope' needs a short_factor of 8 numbers"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "96"}, 'hidden_size is "96", it must be a number'),
        ({"max_position_embeddings": ...}, "max_position_embeddings is missing"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"rope_parameters": ..., "rope_theta": None}, "rope_theta is null, it must be a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "factor is null, it must be a number"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null"),
    ],
)
def test_what_is_not_built_is_refused_by_name(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=said):
        load(folder)


def test_the_refusal_lists_every_architecture() -> None:
    with pytest.raises(ModelNotSupported) as refusal:
        read_arch({"architectures": ["Unheard"]})
    assert all(name in str(refusal.value) for name in REGISTRY)


def test_opt_refuses_more_positions_than_it_learned(tmp_path: Path) -> None:
    reference_model(*FAMILIES["opt"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="learned 128 positions"):
        load(tmp_path, max_model_len=129)
