"""How many sequences fit the same memory where layers see windows: with blocks given back, and with everything kept.

    python benchmarks/kv_windows.py

Sequences of one length are admitted one after another, and their prompts computed in steps, until the next one does not fit. No
model is loaded: the shapes are those of published checkpoints, bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from streamserve.models.arch import PagedKv
from streamserve.scheduling.kv.allocator import KvAllocator
from streamserve.scheduling.sequence import Request, Sequence
from streamserve.types import ANYONE, Sampling, SequenceSpec
from streamserve.worker.kv_layout import KvLayout, lay_out

BLOCK_SIZE = 16
STEP_TOKENS = 2048
LENGTHS = (512, 8192, 32768)


@dataclass(frozen=True)
class Shape:
    """A model's layers; one in `full_every` sees everything, none when it is 0."""

    num_layers: int
    kv_heads: int
    head_dim: int
    window: int
    full_every: int

    @property
    def layers(self) -> list[PagedKv]:
        windows = [self.window if self._is_windowed(layer) else None for layer in range(self.num_layers)]
        return [PagedKv(self.kv_heads, self.head_dim, window) for window in windows]

    def _is_windowed(self, layer: int) -> bool:
        return not self.full_every or bool((layer + 1) % self.full_every)


SHAPES = {
    "Gemma 3 1B": Shape(26, 1, 256, window=512, full_every=6),
    "Gemma 3 4B": Shape(34, 4, 256, window=1024, full_every=6),
    "Gemma 3 27B": Shape(62, 16, 128, window=1024, full_every=6),
    "Mistral 7B v0.1": Shape(32, 8, 128, window=4096, full_every=0),
}


def layout_of(layers: Items[PagedKv]) -> KvLayout:
    return lay_out(layers, max_model_len=max(LENGTHS), block_size=BLOCK_SIZE, step_tokens=STEP_TOKENS, dtype=torch.bfloat16)


def keeping(shape: Shape) -> KvLayout:
    """The layout if every layer saw everything."""
    return layout_of([PagedKv(shape.kv_heads, shape.head_dim, None)] * shape.num_layers)


def giving_back(shape: Shape) -> KvLayout:
    return layout_of(shape.layers)


def fitting(layout: KvLayout, num_bytes: int, length: int) -> int:
    """How many sequences of `length` tokens hold blocks at a time."""
    kv = KvAllocator(num_bytes // layout.block_bytes, layout.groups, STEP_TOKENS, enable_prefix_caching=False)
    count = 0
    while _computes_prompt(kv, length):
        count += 1
    return count


def _computes_prompt(kv: KvAllocator, length: int) -> bool:
    """Admit one more sequence and compute all of it; False when it does not fit."""
    spec = SequenceSpec(sequence_id="s", prompt_token_ids=[0] * length, max_tokens=1, sampling=Sampling(seed=0))
    sequence = Sequence(spec, (0, 0), None, None, Request(ANYONE, 0.0))
    if not kv.admit(sequence, 0):
        return False
    for start in range(0, length, STEP_TOKENS):
        end = min(start + STEP_TOKENS, length)
        if kv.extend(sequence, end) is None:
            return False
        kv.commit(sequence, end)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=40, help="memory of the KV cache")
    num_bytes = parser.parse_args().gib << 30
    for name, shape in SHAPES.items():
        before, after = keeping(shape), giving_back(shape)
        print(f"{name}: {len(after.groups.windows)} layer groups of up to {after.num_tensors} layers")
        for length in LENGTHS:
            kept, given_back = fitting(before, num_bytes, length), fitting(after, num_bytes, length)
            print(f"  {length:6} tokens: {kept:5} sequences with everything kept, {given_back:5} with blocks given back")


if __name__ == "__main__":
    main()
