"""Times a model's step on a CPU without an engine around it: decode at several batch sizes, and one long prefill.

    GOMP_SPINCOUNT=60000 python benchmarks/cpu_step.py --model demo --context 150

Compiled layers are used where there are some (`streamserve compile`), unless --enforce-eager is given. The count is what an
engine process sets for itself (`executor/tuning.py`).
Each figure is the median of several runs, taken in turn over the cases so that a machine's drift falls on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from streamserve.checkpoint.names import resolve
from streamserve.executor.tuning import keep_freed_memory
from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from streamserve.worker.startup.compiled_layers import with_compiled_layers
from streamserve_kernels import Shared

BLOCK_SIZE = 16


def step_inputs(num_layers: int, rows: int, new_tokens: int, context: int) -> StepInputs:
    """`rows` sequences that each compute `new_tokens` after `context - new_tokens` earlier ones, blocks interleaved."""
    blocks = -(-context // BLOCK_SIZE)
    tables = torch.arange(rows * blocks, dtype=torch.int32).view(blocks, rows).t().contiguous()
    positions = torch.arange(context - new_tokens, context).repeat(rows)
    slots = tables.long().repeat_interleave(new_tokens, dim=0).gather(1, (positions // BLOCK_SIZE).unsqueeze(1)).squeeze(1)
    return StepInputs(
        token_ids=torch.randint(0, 1000, (rows * new_tokens,)),
        positions=positions,
        slot_mapping=[slots * BLOCK_SIZE + positions % BLOCK_SIZE] * num_layers,
        block_tables=[tables] * num_layers,
        seq_lens=torch.full((rows,), context, dtype=torch.int32),
        query_start=torch.arange(rows + 1, dtype=torch.int32) * new_tokens,
        num_decodes=rows if new_tokens == 1 else 0,
        max_seq_len=context,
    )


def one_step(model: CausalModel, kv_caches: list[torch.Tensor], inputs: StepInputs) -> Callable[[], torch.Tensor]:
    last = inputs.query_start[1:].long() - 1

    @torch.inference_mode()
    def run() -> torch.Tensor:
        hidden = model(replace(inputs, shared=Shared()), kv_caches)
        return model.logits(hidden[last]).argmax(-1)

    return run


def timed(run: Callable[[], torch.Tensor], repeats: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--quantization", default="auto", choices=["auto", "none", "int4"])
    parser.add_argument("--enforce-eager", action="store_true", help="leave compiled layers unused")
    parser.add_argument("--context", type=int, default=150, help="tokens in the cache of each decoding sequence")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prefill; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    keep_freed_memory()
    checkpoint = resolve(args.model)
    arch = read_arch(checkpoint.config)
    start = time.perf_counter()
    dtype = getattr(torch, args.dtype)
    model = load_model(checkpoint, arch, dtype=dtype, device="cpu", quantization=args.quantization)
    if not args.enforce_eager:
        model = with_compiled_layers(model, BLOCK_SIZE)
    print(f"{type(model).__name__} loaded in {time.perf_counter() - start:.2f} s")

    longest = max(max(args.rows) * args.context, args.prefill)
    blocks = longest // BLOCK_SIZE + max(args.rows) + 1
    shape = (blocks, 2, arch.kv_heads, BLOCK_SIZE, arch.head_dim)
    kv_caches = [torch.randn(shape, dtype=dtype) for _ in range(arch.num_layers)]
    cases = {
        f"decode, {rows} x {args.context}": (rows, step_inputs(arch.num_layers, rows, 1, args.context)) for rows in args.rows
    }
    if args.prefill:
        cases[f"prefill, {args.prefill}"] = (args.prefill, step_inputs(arch.num_layers, 1, args.prefill, args.prefill))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, (_, inputs) in cases.items():
            run = one_step(model, kv_caches, inputs)
            run()
            times[name].append(timed(run, 2 if name.startswith("prefill") else 10))
    for name, (tokens, _) in cases.items():
        median = statistics.median(times[name])
        print(f"{name:24s} {median * 1e3:8.2f} ms  {tokens / median:8.0f} tok/s")


if __name__ == "__main__":
    main()
