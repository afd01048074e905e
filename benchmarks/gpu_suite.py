"""Checks the kernels and takes the GPU figures of docs/PERFORMANCE.md in one run: `python benchmarks/gpu_suite.py --help`.

Needs an NVIDIA GPU, no network, no weights and no tokenizer: models are shapes with random weights (benchmarks/configs).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("Qwen3-0.6B", "Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B")
STAGES = ("checks", "timings", "caches", "engine", "greedy", "ranks")


def main() -> int:
    """Run the chosen stages; the exit status is 1 when a check failed."""
    started_s = time.perf_counter()
    arguments = _arguments()
    # The checkout need not be installed on the machine that measures it.
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

    import torch

    from benchmarks.gpu import checks, engine, ranks, timings
    from benchmarks.gpu.report import SuiteReport

    report = SuiteReport(arguments.json)
    properties = torch.cuda.get_device_properties(0)
    report.add("machine", gpu=properties.name, torch=torch.__version__, imports_s=time.perf_counter() - started_s)
    for stage in arguments.stage or STAGES:
        for model in arguments.model:
            if stage == "checks" and model == arguments.model[0]:
                checks.check_kernels(report, thorough=arguments.thorough)
            elif stage == "timings" and model in timings.SHAPES:
                timings.time_steps(report, model, [(1, 384), (8, 384), (64, 256), (256, 256)])
            elif stage == "caches" and model in timings.SHAPES:
                timings.time_caches(report, model)
            elif stage == "engine":
                options = {"repeats": arguments.repeats, "outputs": arguments.outputs, "only": arguments.only}
                settings = ("block_size", "max_num_batched_tokens", "quantization", "kv_cache_dtype", "model_impl")
                settings += ("tensor_parallel_size",)
                changes = {name: getattr(arguments, name) for name in settings}
                asyncio.run(engine.measure_engine(report, model, **options, **changes))
            elif stage == "greedy" and model == arguments.model[0]:
                asyncio.run(engine.check_greedy(report, model, model_impl=arguments.model_impl))
            elif stage == "ranks" and model == arguments.model[0] and arguments.tensor_parallel_size > 1:
                asyncio.run(ranks.check_ranks(report, arguments.tensor_parallel_size))
            torch.cuda.empty_cache()
    return 1 if report.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", action="append", choices=STAGES, help="one or more; all by default")
    parser.add_argument("--model", nargs="+", default=["Qwen3-0.6B"], choices=MODELS)
    parser.add_argument("--thorough", action="store_true", help="check fp16 and fp32 as well")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of each engine row, after one to warm up")
    parser.add_argument("--outputs", type=int, default=512, help="tokens that a lone sequence generates")
    parser.add_argument("--only", help="engine rows whose name starts like this")
    parser.add_argument(
        "--model-impl", choices=("auto", "streamserve", "transformers"), default="auto", help="whose layers run"
    )
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-batched-tokens", type=int, default=16384)
    parser.add_argument("--quantization", default="auto", help="of engine rows, such as fp8")
    parser.add_argument("--kv-cache-dtype", default="auto", help="of engine rows, such as fp8")
    parser.add_argument("-tp", "--tensor-parallel-size", type=int, default=1, help="GPUs of the engine rows")
    parser.add_argument("--json", type=Path, help="where to write all rows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
