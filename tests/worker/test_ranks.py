"""Two ranks of every family give the tokens of one, in every state a sequence can be in, and sample them alike."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from streamserve.checkpoint.names import resolve
from streamserve.errors import EngineDead
from streamserve.models.registry import REGISTRY
from streamserve.types import EngineInfo, SequenceSpec
from streamserve.worker.communication.gloo import GlooGroup
from streamserve.worker.runner import Runner
from tests.models.families import FAMILIES, SHAPE, reference_model
from tests.support.ranks import RankThreads
from tests.support.stepping import Stepper, spec
from tests.worker.two_ranks import config_of, stepper_of, two_ranks

VOCAB = 199
ONE_KEY_HEAD = "one-key-head"
DIVISIBLE = FAMILIES | {ONE_KEY_HEAD: ("Llama", SHAPE | {"num_key_value_heads": 1})}
ALWAYS = (
    *("llama", "llama-tied", "llama-biased", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "gemma3", "opt", "opt-350m"),
    *("olmo3", "glm4", "hunyuan", "ministral3", "qwen2-moe", "gpt-oss", ONE_KEY_HEAD),
)
"""Those that have something of their own between ranks or between heads; the others run with the slow tests."""


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


def mixed_specs() -> list[SequenceSpec]:
    """Prompts in chunks beside decodes; greedy, sampled, restricted, penalised, with log-probabilities."""
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 1 << 40, "logprobs": 3},
        {"temperature": 1.2, "seed": 7, "top_p": 0.8, "top_k": 20},
        {"frequency_penalty": 0.8, "logit_bias": {5: 2.0}},
    ]
    return [spec(f"s{place}", prompt_of(15 + 5 * place, place), 14, **each) for place, each in enumerate(settings)]


def life(stepper: Stepper) -> dict[str, list[int]]:
    """Tokens of a mixed batch with preemptions, of a prefix found in the cache, and of a batch in which one is aborted."""
    tokens = {name: delta.token_ids for name, delta in stepper.run(*mixed_specs()).items()}
    assert stepper.scheduler.stats().num_preemptions > 0
    again = stepper.run(spec("again", [*prompt_of(30, 3), 9], 8))["again"]
    tokens["again"] = again.token_ids
    left = prompt_of(6, 11)
    stepper.scheduler.add(spec("leaves", prompt_of(8, 12), 20), 0.0)
    steps = iter(range(100))
    stays = stepper.run(spec("stays", left, 12), on_step=lambda: next(steps) == 5 and stepper.scheduler.abort("leaves"))
    assert len(stays["stays"].token_ids) == 12
    return tokens | {"stays": stays["stays"].token_ids}


def test_an_exchange_that_another_rank_leaves_out_says_so() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as threads:
        group, _ = threads.map(lambda rank: GlooGroup(store, rank, 2, timeout_s=0.5), range(2))
    with pytest.raises(EngineDead, match="an exchange with another rank failed"):
        group.sum(torch.ones(3))


def test_every_family_is_among_those_that_are_tried() -> None:
    built = {f"{name}ForCausalLM" for name, _ in DIVISIBLE.values()}
    # Text parts of others are the same families.
    assert built == {name for name in REGISTRY if name.endswith("ForCausalLM")}


@pytest.mark.parametrize(
    ("family", "by_expert"),
    [
        *((name, False) if name in ALWAYS else pytest.param(name, False, marks=pytest.mark.slow) for name in DIVISIBLE),
        ("qwen2-moe", True),
    ],
)
def test_two_ranks_give_the_tokens_of_one(family: str, by_expert: bool, tmp_path: Path) -> None:
    reference_model(*DIVISIBLE[family]).save_pretrained(tmp_path)
    alone = Runner(config_of(tmp_path), resolve(str(tmp_path)))
    info = alone.load()
    num_blocks = 7 * len(info.windows)
    expected = life(stepper_of(alone, info, num_blocks))
    with two_ranks(tmp_path, enable_expert_parallel=by_expert) as (ranks, shared):
        assert shared.windows == info.windows
        assert life(stepper_of(ranks, shared, num_blocks)) == expected


def test_two_ranks_give_the_tokens_of_one_over_a_cache_of_8_bit_floats_with_scales_of_its_layers(tmp_path: Path) -> None:
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    for folder in (plain, scaled):
        reference_model(*FAMILIES["llama"]).save_pretrained(folder)
    weights = scaled / "model.safetensors"
    names = [f"model.layers.{layer}.self_attn.{kind}_scale" for layer in range(2) for kind in "kv"]
    # Small enough that numbers saturate, so that a rank which took others would show.
    scales = {name: torch.tensor(0.002 * 2**place) for place, name in enumerate(names)}
    save_file(load_file(weights) | scales, weights, {"format": "pt"})

    def tokens_of(folder: Path) -> dict[str, list[int]]:
        alone = Runner(config_of(folder, kv_cache_dtype="fp8"), resolve(str(folder)))
        return life(stepper_of(alone, alone.load(), 7))

    expected = tokens_of(scaled)
    assert expected != tokens_of(plain)
    with two_ranks(scaled, kv_cache_dtype="fp8") as (ranks, info):
        assert info.kv_cache_dtype == "fp8_e4m3"
        assert life(stepper_of(ranks, info, 7)) == expected


def test_ranks_that_do_not_share_their_logits_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim that ranks sample alike is tested: here they don't, since each knows its half of the logits."""
    reference_model(*FAMILIES["llama"]).save_pretrained(tmp_path)
    monkeypatch.setattr(GlooGroup, "gather", lambda self, x: x.repeat(1, 2))
    with two_ranks(tmp_path) as (ranks, info), pytest.raises(AssertionError, match="ranks sampled differently"):
        stepper_of(ranks, info, 7).run(*mixed_specs())


def test_every_rank_keeps_its_share_of_the_heads_or_one_that_others_have_too(tmp_path: Path) -> None:
    for name, settings in (("halves", SHAPE), ("alike", SHAPE | {"num_key_value_heads": 1})):
        folder = tmp_path / name
        reference_model("Llama", settings).save_pretrained(folder)
        alone, (_, info) = Runner(config_of(folder), resolve(str(folder))).load(), loaded(folder)
        assert info.num_blocks == alone.num_blocks * settings["num_key_value_heads"]


def loaded(folder: Path) -> tuple[RankThreads, EngineInfo]:
    with two_ranks(folder) as (ranks, info):
        return ranks, info
