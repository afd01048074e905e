"""A random model of each family, and of others in transformers' layers: what transformers says, with all that a server does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from transformers import PreTrainedModel

from tests.models.families import FAMILIES, SHAPE, reference_model
from tests.models.text_parts import TEXT_PARTS, multimodal_model, store
from tests.models.transformers_families import random_model
from tests.support.byte_tokenizer import VOCAB_SIZE
from tests.support.tiny_server import checkpoint_server

pytestmark = pytest.mark.anyio

FOREIGN = {
    "Cohere2ForCausalLM": 1 << 18,
    "DeepseekV3ForCausalLM": 1 << 20,
    "GPT2LMHeadModel": 1 << 18,
    "Gemma2ForCausalLM": 1 << 18,
    "MixtralForCausalLM": 1 << 18,
    "PhiForCausalLM": 1 << 18,
}
"""Run by transformers' layers, and the bytes of their KV caches."""

SERVED = [*FAMILIES, *(f"{name}, its text part" for name in TEXT_PARTS), *FOREIGN]
ALWAYS = ("gpt-oss", "olmo3", "qwen3-vl, its text part", "Cohere2ForCausalLM")
KV_CACHE_BYTES = 1 << 18
"""Not enough for all of a crowd: some wait, and some are preempted."""

PROMPT = "a prompt of two blocks, that is 32 bytes and a few"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def saved(name: str, folder: Path) -> PreTrainedModel:
    if name in FOREIGN:
        model = random_model(name, vocab_size=VOCAB_SIZE)
        model.save_pretrained(folder)
        return model
    family = name.removesuffix(", its text part")
    if family != name:
        model = multimodal_model(family, vocab_size=VOCAB_SIZE)
        store(model, folder)
        return model
    prefix, settings = FAMILIES[family]
    model = reference_model(prefix, settings | {"vocab_size": VOCAB_SIZE})
    model.save_pretrained(folder)
    return model


def greedy(model: PreTrainedModel, prompt: str, count: int) -> list[int]:
    """What transformers continues with, each token computed from nothing."""
    tokens = list(prompt.encode())
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@asynccontextmanager
async def client_of(folder: Path, name: str) -> AsyncIterator[Callable[..., Any]]:
    limits: dict[str, Any] = {
        "kv_cache_bytes": FOREIGN.get(name, KV_CACHE_BYTES),
        "max_model_len": SHAPE["max_position_embeddings"],
    }
    async with (
        checkpoint_server(folder, **limits, model_impl="transformers" if name in FOREIGN else "streamserve") as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", timeout=60, trust_env=False) as client,
    ):

        async def post(path: str, **body: Any) -> httpx.Response:
            return await client.post(path, json={"model": "tiny", "temperature": 0, "ignore_eos": True, **body})

        yield post


@pytest.mark.parametrize("name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in SERVED])
async def test_it_is_served_as_transformers_would_answer(name: str, tmp_path: Path) -> None:
    reference = saved(name, tmp_path)
    expected = greedy(reference, PROMPT, 12)
    async with client_of(tmp_path, name) as post:
        asked = {"prompt": PROMPT, "max_tokens": 12, "return_token_ids": True}
        first = (await post("completions", **asked, logprobs=2)).json()
        assert first["choices"][0]["token_ids"] == expected
        assert all(value <= 0 for value in first["choices"][0]["logprobs"]["token_logprobs"])

        again = (await post("completions", **asked)).json()
        assert again["choices"][0]["token_ids"] == expected
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32

        answers: dict[int, list[int]] = {}

        async def ask(number: int) -> None:
            prompt = f"{number} of a crowd, " * 3
            answered = (await post("completions", prompt=prompt, max_tokens=40, return_token_ids=True)).json()
            answers[number] = answered["choices"][0]["token_ids"]

        async with anyio.create_task_group() as crowd:
            for number in range(8):
                crowd.start_soon(ask, number)
        assert answers[5] == greedy(reference, "5 of a crowd, " * 3, 40)
        assert all(len(tokens) == 40 for tokens in answers.values())

        constrained = await post("completions", prompt=PROMPT, max_tokens=20, structured_outputs={"regex": "[a-z]{3}-[0-9]{2}"})
        assert re.fullmatch("[a-z]{3}-[0-9]{2}", constrained.json()["choices"][0]["text"])


async def test_what_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    name = "qwen3-vl, its text part"
    saved(name, tmp_path)
    async with client_of(tmp_path, name) as post:
        for kind in ("image_url", "video_url", "input_audio"):
            parts = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "data:,"}}]
            refused = await post("chat/completions", messages=[{"role": "user", "content": parts}])
            assert refused.status_code == 400
            assert f"content of type '{kind}': this server takes text only" in refused.json()["error"]["message"]
