"""What transformers' layers may run in our step, and which of their modules are ours by another name: told by numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Ministral3Config, Ministral3ForCausalLM, OlmoConfig, OlmoForCausalLM

from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.implementation import describe
from streamserve.models.transformers_model.arch import TransformersArch, observe
from streamserve.models.transformers_model.check import checked
from streamserve.models.weights.loader import load_model
from tests.models.edit import edit_weights
from tests.models.families import ROPES, SHAPE, prompt_of
from tests.models.launches import FUSED, launches
from tests.models.paged import PagedRun

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = {"architectures": ["LlamaForCausalLM"]} | SHAPE
ARCEE = {"architectures": ["ArceeForCausalLM"]} | SHAPE


def checked_arch(model_class: Any, config: Any) -> TransformersArch:
    return checked(observe(model_class, config, "float32"), config.num_hidden_layers)


def known(model_class: Any, config: Any) -> set[str]:
    """Names of the classes that ours take the place of."""
    found = checked_arch(model_class, config).known
    return {kind.__name__ for kind in (*found.norms, *found.mlps, *found.attentions)}


def test_auto_takes_our_layers_where_there_are_some_and_transformers_for_the_rest() -> None:
    assert describe(LLAMA).model_impl == "streamserve"
    assert describe(LLAMA, "vllm").model_impl == "streamserve"
    assert describe(LLAMA, "transformers").model_impl == "transformers"
    assert describe(ARCEE).model_impl == "transformers"
    with pytest.raises(ModelNotSupported, match="ArceeForCausalLM"):
        describe(ARCEE, "streamserve")


def test_what_ours_refuse_transformers_layers_may_run() -> None:
    config = LLAMA | {"hidden_act": "gelu"}
    assert describe(config).model_impl == "transformers"
    with pytest.raises(ModelNotSupported, match="gelu"):
        describe(config, "streamserve")


def test_an_architecture_that_nobody_has_is_refused_by_name() -> None:
    with pytest.raises(ModelNotSupported, match="NobodyForCausalLM"):
        describe(LLAMA | {"architectures": ["NobodyForCausalLM"]})


class ShiftedMlp(nn.Module):
    """Mixes every token with the one before it in the batch: state that no cache holds."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(x + 0.1 * nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])
        return mixed


class ShiftedLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.layers[1].mlp = ShiftedMlp(self.model.layers[1].mlp)


def test_state_that_a_class_does_not_declare_is_found_by_its_logits() -> None:
    with pytest.raises(ModelNotSupported, match="ShiftedLlamaForCausalLM computes something else"):
        checked_arch(ShiftedLlamaForCausalLM, LlamaConfig(**SHAPE))


def test_a_norm_an_mlp_and_an_attention_are_known_by_what_they_compute() -> None:
    assert known(LlamaForCausalLM, LlamaConfig(**SHAPE)) == {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"}


def test_a_layer_of_known_parts_takes_the_launches_of_a_layer_of_ours(tmp_path: Path) -> None:
    saved(tmp_path)
    run = PagedRun(load(tmp_path))
    assert launches(lambda: run.step({"a": [7]})) == [*FUSED, *FUSED, "rms_norm", "linear"]


def test_what_begins_at_late_positions_is_seen() -> None:
    config = Ministral3Config(**SHAPE | {"head_dim": 16, "max_position_embeddings": 4096})
    config.rope_parameters |= {"original_max_position_embeddings": 1024, "llama_4_scaling_beta": 0.1}
    assert known(Ministral3ForCausalLM, config) == {"Ministral3RMSNorm", "Ministral3MLP"}


def test_what_is_cut_off_above_some_size_is_seen() -> None:
    assert "OlmoAttention" in known(OlmoForCausalLM, OlmoConfig(**SHAPE))
    assert "OlmoAttention" not in known(OlmoForCausalLM, OlmoConfig(**SHAPE, clip_qkv=100.0))


def saved(folder: Path, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | settings)).eval()
    model.save_pretrained(folder)
    return model


def load(folder: Path, **options: Any) -> Any:
    checkpoint = resolve(str(folder))
    return load_model(
        checkpoint, describe(checkpoint.config, "transformers"), device="cpu", **{"dtype": torch.float32} | options
    )


@pytest.mark.parametrize("name", ["dynamic", "yarn", "llama3"])
def test_rotations_are_those_of_a_context_of_max_model_len(name: str, tmp_path: Path) -> None:
    scaling = ROPES[name] | {"rope_theta": 10000.0}
    reference = saved(tmp_path, max_position_embeddings=64, rope_parameters=scaling)
    prompt = prompt_of(100)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    logits = PagedRun(load(tmp_path, max_model_len=100)).step({"a": prompt})["a"]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_bfloat16_on_a_cpu_is_close_to_float32(tmp_path: Path) -> None:
    reference = saved(tmp_path)
    prompt = prompt_of(40)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    logits = PagedRun(load(tmp_path, dtype=torch.bfloat16)).step({"a": prompt})["a"].float()
    assert (logits - expected).norm() < 0.02 * expected.norm()


def test_a_head_of_its_own_counts_whatever_config_json_says(tmp_path: Path) -> None:
    saved(tmp_path, tie_word_embeddings=True)
    model = load(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": -tensors["model.embed_tokens.weight"]}))
    prompt = prompt_of(9)
    tied, own = (PagedRun(each).step({"a": prompt})["a"] for each in (model, load(tmp_path)))
    torch.testing.assert_close(own, -tied)


def test_a_checkpoint_that_lacks_a_tensor_or_has_one_too_many_is_refused_by_its_name(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.zeros(1)}))
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.extra\.weight"):
        load(tmp_path)
    edit_weights(tmp_path, lambda tensors: [tensors.pop("model.layers.0.extra.weight"), tensors.pop("model.norm.weight")])
    with pytest.raises(ConfigError, match=r"model\.norm\.weight"):
        load(tmp_path)
