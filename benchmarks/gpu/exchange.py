"""What GPUs of one machine exchange, checked and timed: sums of products over NCCL and over memory that they map."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.timings import microseconds
from streamserve.models.communicator import Product
from streamserve.worker.communication.nccl import NcclGroup
from streamserve_kernels import linear, linear_residual

HIDDEN, HEADS, INNER, VOCAB = 4096, 4096, 12288, 151936
"""Of the 8B shape; ranks have equal shares of all but the first."""

BF16 = torch.bfloat16
FEW_ROWS = (1, 8, 32, 64, 128, 256, 512, 1024)
MANY_ROWS = (3072, 4096, 8192, 16384)


def main() -> int:
    """Start a process for each GPU, or be one of them; the exit status is 1 when a check failed. `--check` times nothing."""
    if len(sys.argv) > 2:
        rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        torch.cuda.set_device(rank)
        with torch.inference_mode():
            group = NcclGroup(dist.FileStore(store, world_size), rank, world_size, torch.device("cuda", rank))
            passed = run_rank(group, checks_only="--check" in sys.argv)
        sys.stdout.flush()
        os._exit(0 if passed else 1)
    world_size = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, sys.argv[0]]
        ranks = [
            subprocess.Popen([*command, str(rank), str(world_size), str(Path(folder) / "store"), *sys.argv[1:]])
            for rank in range(world_size)
        ]
        return max(rank.wait() for rank in ranks)


def run_rank(group: NcclGroup, *, checks_only: bool) -> bool:
    """Every check and figure, printed by the first rank; False when a check failed."""
    say: Callable[..., None] = print if group.rank == 0 else lambda *_, **__: None
    group.sum(torch.ones(1, device="cuda"))
    memory = group._memory
    say(f"{torch.cuda.get_device_name()} x {group.world_size}, mapped: {memory is not None}", flush=True)
    passed = check(say, group)
    for name, used in () if checks_only else (("peer memory", memory), ("NCCL", None)):
        group._memory = used
        time_few(say, group, name)
        time_many(say, group, name)
    return passed


def check(say: Callable[..., None], group: NcclGroup) -> bool:
    """Sums in and out of graphs, of sizes in turn, equal those in fp64 but for rounding, with the same bits on each rank."""
    torch.manual_seed(100 + group.rank)
    worst, same = 0.0, True

    def alike(x: Tensor) -> Tensor:
        parts = x.new_empty(group.world_size, *x.shape)
        dist.all_gather_into_tensor(parts, x.contiguous())
        return parts

    statics = [torch.randn(rows, HIDDEN, device="cuda", dtype=BF16) for rows in (3, 64, 1, 200, 300)]

    def identity(x: Tensor, onto: Tensor | None) -> Tensor:
        return x.clone() if onto is None else onto.add_(x)

    def summed(x: Tensor) -> Tensor:
        return group.sum_products(identity, x, torch.ones_like(x), HIDDEN)

    def work() -> list[Tensor]:
        return [summed(x) for x in statics]

    work()
    group.gather(statics[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = work()
        gathered = group.gather(statics[0])
    for turn in range(100):
        for x in statics:
            x.normal_()
        statics[0][0, :8] = -0.0
        graph.replay()
        for x, out in zip(statics, work() if turn % 3 == 1 else outs, strict=True):
            worst = max(worst, float((alike(x).double().sum(0) + 1 - out.double()).abs().max()))
            same &= bool((alike(out) == alike(out)[0]).all())
        same &= torch.equal(gathered, alike(statics[0]).transpose(0, 1).flatten(1))
    for rows in (4000, 16384, 3072, 20000, 4000):
        x = torch.randn(rows, HIDDEN, device="cuda", dtype=BF16)
        out = summed(x)
        worst = max(worst, float((alike(x).double().sum(0) + 1 - out.double()).abs().max()))
        same &= bool((alike(out) == alike(out)[0]).all())
    say(f"check: worst error {worst:.3g} (rounding: up to 0.13), same on all ranks: {same}", flush=True)
    return same and worst < 0.13


def product_with(weight: Tensor) -> Product:
    """What a linear with this weight makes of rows, added to a residual if there is one."""
    return lambda x, onto: linear(x, weight) if onto is None else linear_residual(x, weight, onto)


def time_few(say: Callable[..., None], group: NcclGroup, name: str) -> None:
    """Microseconds that summing adds to a product with a residual, in a graph; and those of gathering logits."""
    inner = HEADS // group.world_size
    weights = [torch.randn(HIDDEN, inner, device="cuda", dtype=BF16) / 45 for _ in range(12)]
    line = []
    for rows in FEW_ROWS:
        x, residual = torch.randn(rows, inner, device="cuda", dtype=BF16), torch.randn(rows, HIDDEN, device="cuda", dtype=BF16)

        def summed(index: int, x: Tensor = x, residual: Tensor = residual) -> Tensor:
            return group.sum_products(product_with(weights[index % 12]), x, residual, HIDDEN)

        dist.barrier()
        alone = microseconds(lambda index, x=x, residual=residual: product_with(weights[index % 12])(x, residual), 72)
        dist.barrier()
        line.append(f"{rows}: {microseconds(summed, 72) - alone:.1f}")
    gathers = []
    for rows in (1, 8, 64, 256):
        logits = torch.randn(rows, VOCAB // group.world_size, device="cuda", dtype=BF16)
        dist.barrier()
        gathers.append(f"{rows}: {microseconds(lambda _, logits=logits: group.gather(logits), 20):.1f}")
    say(f"{name:<12} sum adds  {'  '.join(line)}   gather {'  '.join(gathers)}", flush=True)


def time_many(say: Callable[..., None], group: NcclGroup, name: str) -> None:
    """Microseconds of a product of many rows with a residual, and of the same summed over ranks."""
    stream = torch.cuda.Stream()
    line = []
    for rows in MANY_ROWS:
        for inner in (HEADS // group.world_size, INNER // group.world_size):
            weight = torch.randn(HIDDEN, inner, device="cuda", dtype=BF16) / 45
            x, residual = (
                torch.randn(rows, inner, device="cuda", dtype=BF16),
                torch.randn(rows, HIDDEN, device="cuda", dtype=BF16),
            )

            product = product_with(weight)

            def elapsed(work: Callable[[], object]) -> float:
                times = []
                with torch.cuda.stream(stream):
                    for _ in range(9):
                        dist.barrier()
                        torch.cuda.synchronize()
                        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                        begin.record()
                        for _ in range(4):
                            work()
                        end.record()
                        end.synchronize()
                        times.append(begin.elapsed_time(end) / 4)
                return sorted(times[2:])[3] * 1000

            alone = elapsed(lambda x=x, residual=residual, product=product: product(x, residual))
            summed = elapsed(lambda x=x, residual=residual, product=product: group.sum_products(product, x, residual, HIDDEN))
            line.append(f"{rows} x {inner}: {alone:.0f} -> {summed:.0f}")
    say(f"{name:<12} {'  '.join(line)}", flush=True)
