"""Every architecture computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.families import FAMILIES, ROPES, SHAPE, TOLERANCE, load, prompt_of, reference_model
from tests.models.paged import PagedRun


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_states_and_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    reference = reference_model(*FAMILIES[family])
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    prompt = prompt_of(50)

    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    logits = PagedRun(model).step({"a": prompt})["a"]
    assert expected.std() > 0.05, "a model that says nothing proves nothing"
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)

    with torch.inference_mode():
        states = reference.base_model(torch.tensor([prompt])).last_hidden_state[0]
    assert states.shape[1] == model.state_size
    torch.testing.assert_close(PagedRun(model).states({"a": prompt})["a"], states, atol=4 * TOLERANCE, rtol=0)

    generated = reference.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert PagedRun(model).greedy("a", prompt, 16) == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "opt"])
def test_chunks_and_neighbours_do_not_change_the_logits(family: str, tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    model = load(tmp_path)
    prompt, other, third = prompt_of(45), prompt_of(37, seed=1), prompt_of(9, seed=2)
    alone = PagedRun(model).step({"a": prompt})["a"]

    crowd = PagedRun(model)
    parts = [
        crowd.step({"a": prompt[:7], "b": other[:30]})["a"],
        crowd.step({"c": third, "b": other[30:31], "a": prompt[7:40]})["a"],
        *[crowd.step({"a": [token], "b": [5], "c": [9]})["a"] for token in prompt[40:]],
    ]
    torch.testing.assert_close(torch.cat(parts), alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rope", ROPES)
def test_rope_scalings_are_those_of_transformers(rope: str, tmp_path: Path) -> None:
    scaling = ROPES[rope] | {"rope_theta": 10000.0}
    reference = reference_model("Llama", SHAPE | {"rope_parameters": scaling})
    reference.save_pretrained(tmp_path)
    prompt = prompt_of(100)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    logits = PagedRun(load(tmp_path, max_model_len=128)).step({"a": prompt})["a"]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_dynamic_rope_past_the_models_limit_is_transformers_for_a_context_of_max_model_len(tmp_path: Path) -> None:
    scaling = ROPES["dynamic"] | {"rope_theta": 10000.0}
    reference = reference_model("Llama", SHAPE | {"max_position_embeddings": 64, "rope_parameters": scaling})
    reference.save_pretrained(tmp_path)
    prompt = prompt_of(100)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    logits = PagedRun(load(tmp_path, max_model_len=100)).step({"a": prompt})["a"]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
