"""The transformers side of `cpu_peers`: runs under its own interpreter and knows nothing of streamserve.

expand GGUF FOLDER    write the weights as a bf16 folder that `transformers serve` can load, without an end-of-sequence token
generate FOLDER       tokens per second of one greedy stream, and the time to the first token of a long prompt, as JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

SHORT_PROMPT, LONG_PROMPT, NEW_TOKENS = 16, 500, 128


def expand(gguf: Path, folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    del loaded.config.quantization_config
    # A model that came from GGUF refuses to be saved, though its weights are plain by now.
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    # Streams of an exact length are compared: nothing may end one early.
    model.config.eos_token_id = None
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def generate(folder: Path) -> dict[str, float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    _seconds(model, SHORT_PROMPT, 8)
    return {
        "tokens_per_s": NEW_TOKENS / _seconds(model, SHORT_PROMPT, NEW_TOKENS),
        "ttft_ms": _seconds(model, LONG_PROMPT, 1) * 1e3,
    }


@torch.inference_mode()
def _seconds(model: torch.nn.Module, prompt_len: int, new_tokens: int) -> float:
    ids = torch.randint(1000, 10000, (1, prompt_len))
    started = time.perf_counter()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    seconds = time.perf_counter() - started
    assert out.shape[1] == prompt_len + new_tokens
    return seconds


if __name__ == "__main__":
    command, *paths = sys.argv[1], *map(Path, sys.argv[2:])
    if command == "expand":
        expand(*paths)
    else:
        print(json.dumps(generate(*paths)))
