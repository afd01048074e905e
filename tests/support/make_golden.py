"""Writes tests/data/demo_greedy.json: what transformers decodes greedily from the demo model in fp32, as token ids.

    pip install accelerate && python tests/support/make_golden.py

transformers takes 15 s to load the file, so the tests read its answers instead. Every choice must be clear of the runner-up:
where two tokens are as good as equal, summation order decides, and the answer would be no golden.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from streamserve.checkpoint.names import demo_path

TARGET = Path(__file__).parents[1] / "data" / "demo_greedy.json"
NUM_TOKENS = 16
CLEAR_MARGIN = 2e-3

TEXTS = {
    "one word": "Once",
    "sentence": "The capital of France is",
    "code": "def fibonacci(n):\n    if n <",
    "chinese": "描述一下北京的秋天",
    "chat": "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "long": "The river rose in the night and the village moved up the hill. " * 6 + "In the morning",
}


def main() -> None:
    path = demo_path()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    answers = {}
    for name, text in TEXTS.items():
        prompt = tokenizer(text)["input_ids"]
        output, margin = greedy(model, prompt)
        print(f"{name}: {len(prompt)} tokens, margin {margin:.4f}: {tokenizer.decode(output)!r}")
        if margin < CLEAR_MARGIN:
            raise SystemExit(f"{name}: choose another text, this one's answer hangs on {margin:.1e}")
        answers[name] = {"prompt": prompt, "output": output}
    TARGET.write_text(json.dumps(answers) + "\n")


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], float]:
    """The tokens, and by how much the closest choice was made; no cache, every token from nothing."""
    tokens, margin = list(prompt), float("inf")
    for _ in range(NUM_TOKENS):
        best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], margin


if __name__ == "__main__":
    main()
