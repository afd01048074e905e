"""Models that transformers' own layers run say in our step what transformers says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ModelNotSupported
from streamserve.models.implementation import describe
from streamserve.models.transformers_model.arch import TransformersArch
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.worker.runner import Runner
from tests.models.transformers_families import REFUSED, RUNS, config_of, random_model
from tests.support.stepping import Stepper, spec
from tests.support.transformers_page import PAGE, row_of_a_model_that_is_refused, row_of_a_model_that_runs

pytestmark = pytest.mark.usefixtures("one_thread")

STALE = "docs/TRANSFORMERS_MODELS.md says something else: run python -m tests.support.transformers_page"

IN_EVERY_RUN = [
    "Cohere2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "GPT2LMHeadModel",
    "Gemma2ForCausalLM",
    "Glm4ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3ForCausalLM",
    "StableLmForCausalLM",
]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name not in IN_EVERY_RUN]


def stepper(folder: Path, **settings: Any) -> Stepper:
    """A scheduler and a rank that runs the checkpoint by transformers' layers, sixteen tokens a step."""
    config = EngineConfig(
        model=str(folder),
        model_impl="transformers",
        device="cpu",
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=16,
        max_model_len=128,
        kv_cache_memory=1 << 23,
        **settings,
    )
    runner = Runner(config, resolve(str(folder)))
    info = runner.load()
    assert info.model_impl == "transformers"
    limits = SchedulerLimits(
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        windows=info.windows,
        max_num_seqs=8,
        max_num_batched_tokens=16,
        max_model_len=128,
    )
    return Stepper(runner, limits)


def prompt_of(length: int) -> list[int]:
    return random.Random(length).choices(range(3, 199), k=length)


def assert_greedy(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> None:
    """Each token is the likeliest one after those before it, computed from nothing."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    assert tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("name", [*IN_EVERY_RUN, *OTHERS])
def test_tokens_are_those_of_transformers_alone_in_a_crowd_in_chunks_and_on_a_prefix_hit(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    model.save_pretrained(tmp_path)
    arch = describe(resolve(str(tmp_path)).config, "transformers")
    assert isinstance(arch, TransformersArch)
    assert row_of_a_model_that_runs(arch, name) in PAGE.read_text(encoding="utf-8").splitlines(), STALE
    playing = stepper(tmp_path)
    alone, again = prompt_of(60), [*prompt_of(60), 7, 8, 9]

    tokens = playing.run(spec("alone", alone))["alone"].token_ids
    assert len(set(tokens)) > 2, "a model that says nothing proves nothing"
    assert_greedy(model, alone, tokens)
    hits = playing.scheduler.counters.prefix_cache_hits
    crowd = {"again": again, "short": prompt_of(1), "long": prompt_of(45), "other": prompt_of(11)}
    for key, delta in playing.run(*(spec(key, prompt) for key, prompt in crowd.items())).items():
        assert_greedy(model, crowd[key], delta.token_ids)
    assert playing.scheduler.counters.prefix_cache_hits >= hits + 32


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_other_state_or_attends_in_its_own_way_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelNotSupported, match=name) as refused:
        describe(config_of(name), "transformers")
    assert row_of_a_model_that_is_refused(refused.value, name) in PAGE.read_text(encoding="utf-8").splitlines(), STALE
