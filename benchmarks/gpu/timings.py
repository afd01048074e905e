"""Kernels timed in CUDA graphs: whole decode steps without an engine, and each kernel alone, with the bandwidth it reaches.

Weights and caches of all layers are distinct, so that nothing is read from the L2 cache that a real step would not find there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import streamserve_kernels as kernels
from benchmarks.gpu.report import SuiteReport
from streamserve_kernels import Shared
from streamserve_kernels.rows.tables import make_row_tables
from streamserve_kernels.sampling.tensors import SamplingTensors
from tests.support.kernel_cases import random

EPS = 1e-6
BF16 = torch.bfloat16
BLOCK_SIZE = 16
SHAPES = {
    "Qwen3-0.6B": {"hidden": 1024, "q_heads": 16, "inner": 3072, "layers": 28},
    "Qwen3-8B": {"hidden": 4096, "q_heads": 32, "inner": 12288, "layers": 36},
}
KV_HEADS, HEAD_DIM, VOCAB = 8, 128, 151936


def microseconds(work: Callable[[int], object], calls: int, repeats: int = 20) -> float:
    """Median time of one call of `work(index)`, `calls` of them in one graph."""
    stream = torch.cuda.Stream()
    # What the work reads was made on another stream.
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(calls):
            work(index)
    times = []
    for _ in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times = sorted(times[3:])
    return times[len(times) // 2] * 1000 / calls


def decode_batch(rows: int, context: int, *, max_blocks: int) -> tuple[kernels.StepTokens, kernels.StepSequences]:
    """A decode step of sequences with the same context, whose blocks lie anywhere."""
    blocks = -(-context // BLOCK_SIZE)
    tables = torch.randperm(rows * blocks, dtype=torch.int32, device="cuda").view(rows, blocks)
    seq_lens = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    slots = tables[:, -1].long() * BLOCK_SIZE + (context - 1) % BLOCK_SIZE
    longest = max_blocks * BLOCK_SIZE
    return (
        kernels.StepTokens(seq_lens.long() - 1, random(longest, HEAD_DIM), slots),
        kernels.StepSequences(
            torch.nn.functional.pad(tables, (0, max_blocks - blocks)), seq_lens,
            torch.arange(rows + 1, dtype=torch.int32, device="cuda"), num_decodes=rows, max_seq_len=longest,
        ),
    )  # fmt: skip


class TimedLayers:
    """The layers of a model at one batch size, every sequence with the same context."""

    def __init__(self, name: str, rows: int, context: int) -> None:
        shape = SHAPES[name]
        hidden, inner, self.q_heads = shape["hidden"], shape["inner"], shape["q_heads"]
        width = self.q_heads * HEAD_DIM
        self.rows, self.context, self.layers = rows, context, shape["layers"]
        sizes = ((width + 2 * KV_HEADS * HEAD_DIM, hidden), (hidden, width), (2 * inner, hidden), (hidden, inner))
        self.weights = [[random(*size, dtype=BF16) / size[1] ** 0.5 for size in sizes] for _ in range(self.layers)]
        self.head = random(VOCAB, hidden, dtype=BF16) / hidden**0.5
        self.norm, self.head_norms = random(hidden, dtype=BF16), [random(HEAD_DIM, dtype=BF16)] * 2
        self.x, self.attended = random(rows, hidden, dtype=BF16), random(rows, width, dtype=BF16)
        blocks = -(-context // BLOCK_SIZE)
        self.tokens, self.sequences = decode_batch(rows, context, max_blocks=256)
        cache = (rows * blocks + 1, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
        self.caches = [random(*cache, dtype=BF16) for _ in range(self.layers)]
        self.shared = Shared()

    @property
    def kv_bytes(self) -> int:
        return self.rows * self.context * 2 * KV_HEADS * HEAD_DIM * 2

    def attend(self, qkv: Tensor, layer: int) -> Tensor:
        heads, scoring = kernels.Heads(self.q_heads, KV_HEADS, HEAD_DIM, *self.head_norms), kernels.Scoring(HEAD_DIM**-0.5)
        out = kernels.rotary_attention(qkv, self.tokens, self.caches[layer], self.sequences, heads, scoring, shared=self.shared)
        return out.flatten(1)

    def run(self, _: int = 0, *, attention: bool = True) -> Tensor:
        """A decode step from embedded tokens to logits."""
        x, self.shared = self.x.clone(), Shared()
        for layer, (qkv, output, gate_up, down) in enumerate(self.weights):
            projected = kernels.norm_linear(x, self.norm, EPS, qkv)
            x = kernels.linear_residual(self.attend(projected, layer) if attention else self.attended, output, x)
            x = kernels.linear_residual(kernels.norm_gated_linear(x, self.norm, EPS, gate_up, "silu"), down, x)
        return kernels.norm_linear(x, self.norm, EPS, self.head)


class TimedAttention:
    """Decode attention of one layer after another, with caches of one dtype, every sequence with the same context."""

    def __init__(self, name: str, rows: int, context: int, kept_as: torch.dtype) -> None:
        self.rows, self.context, self.q_heads = rows, context, SHAPES[name]["q_heads"]
        blocks = -(-context // BLOCK_SIZE)
        size = (rows * blocks + 1, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
        self.kv_bytes = rows * context * 2 * KV_HEADS * HEAD_DIM * kept_as.itemsize
        # Together larger than what the L2 cache holds, and than what is in flight.
        self.caches = [random(*size, dtype=BF16).to(kept_as) for _ in range(max(1, min(28, 400_000_000 // self.kv_bytes + 1)))]
        self.tokens, self.sequences = decode_batch(rows, context, max_blocks=2048)
        self.qkv = random(rows, (self.q_heads + 2 * KV_HEADS) * HEAD_DIM, dtype=BF16)
        self.norms = [random(HEAD_DIM, dtype=BF16)] * 2
        self.shared = Shared()

    def attend(self, layer: int) -> None:
        if layer == 0:
            self.shared = Shared()
        heads, scoring = kernels.Heads(self.q_heads, KV_HEADS, HEAD_DIM, *self.norms), kernels.Scoring(HEAD_DIM**-0.5)
        kernels.rotary_attention(self.qkv, self.tokens, self.caches[layer], self.sequences, heads, scoring, shared=self.shared)


def time_caches(report: SuiteReport, name: str) -> None:
    """Decode attention over caches of every dtype, for few and many rows of short and long contexts."""
    for rows in (1, 8, 64, 256):
        for context in (500, 4000, 16000):
            for kept_as in (BF16, torch.float8_e4m3fn, torch.float8_e5m2):
                timed = TimedAttention(name, rows, context, kept_as)
                us = microseconds(timed.attend, len(timed.caches), 10)
                row = {"model": name, "rows": rows, "context": context, "kv": str(kept_as)[6:]}
                report.add("cache", **row, us=us, gb_per_s=timed.kv_bytes / us / 1e3)
                del timed
                torch.cuda.empty_cache()


def time_steps(report: SuiteReport, name: str, batches: list[tuple[int, int]]) -> None:
    """Decode steps, their linears alone, and each kernel of them, at (rows, context)."""
    for rows, context in batches:
        step = TimedLayers(name, rows, context)
        whole, linears = microseconds(step.run, 1), microseconds(lambda _, s=step: s.run(attention=False), 1)
        report.add("step", model=name, rows=rows, context=context, us=whole, linears_us=linears)
        _time_kernels(report, name, step)
        del step
        torch.cuda.empty_cache()


def _time_kernels(report: SuiteReport, name: str, step: TimedLayers) -> None:
    qkv_width = step.weights[0][0].shape[0]
    qkv, inner = random(step.rows, qkv_width, dtype=BF16), random(step.rows, step.weights[0][3].shape[1], dtype=BF16)
    x = step.x.clone()

    def attend(layer: int) -> Tensor:
        if layer == 0:
            step.shared = Shared()
        return step.attend(qkv, layer)

    works: dict[str, tuple[Callable[[int], object], int]] = {
        "norm+qkv": (lambda i: kernels.norm_linear(x, step.norm, EPS, step.weights[i][0]), step.weights[0][0].nbytes),
        "attention": (attend, step.kv_bytes),
        "output+residual": (lambda i: kernels.linear_residual(step.attended, step.weights[i][1], x), step.weights[0][1].nbytes),
        "norm+gate_up": (
            lambda i: kernels.norm_gated_linear(x, step.norm, EPS, step.weights[i][2], "silu"),
            step.weights[0][2].nbytes,
        ),
        "down+residual": (lambda i: kernels.linear_residual(inner, step.weights[i][3], x), step.weights[0][3].nbytes),
    }
    for kernel, (work, num_bytes) in works.items():
        us = microseconds(work, step.layers, 10)
        report.add("kernel", model=name, rows=step.rows, kernel=kernel, us=us, gb_per_s=num_bytes / us / 1e3)
    us = microseconds(lambda _: kernels.norm_linear(x, step.norm, EPS, step.head), 3, 10)
    report.add("kernel", model=name, rows=step.rows, kernel="norm+head", us=us, gb_per_s=step.head.nbytes / us / 1e3)
    _time_sampling(report, name, step.rows)


def _time_sampling(report: SuiteReport, name: str, rows: int) -> None:
    tables = make_row_tables(rows, 100, 8, torch.device("cuda"))
    lines = torch.arange(rows, dtype=torch.int32, device="cuda")
    logits = random(rows, VOCAB, dtype=BF16)
    for temperature in (0.0, 0.6):
        tables.temperature.fill_(temperature)
        parameters = SamplingTensors(tables, lines, lines + 5, random=lines)
        us = microseconds(lambda _, p=parameters: kernels.sample(logits, p), 3, 10)
        report.add("kernel", model=name, rows=rows, kernel=f"sample T={temperature}", us=us, gb_per_s=logits.nbytes / us / 1e3)
