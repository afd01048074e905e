"""The engine in this process: decode, prefill and mixed load on random weights, and greedy tokens under every kind of batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.report import SuiteReport
from streamserve.bench.engine_run import run_requests, running_engine
from streamserve.bench.offline import Figures, latency_figures, prefill_figures, throughput_figures
from streamserve.bench.workloads import BenchRequest, Span, Workload
from streamserve.config import EngineConfig
from streamserve.engine.base import Engine, SequenceStream
from streamserve.types import Sampling, SequenceSpec

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class Measurement:
    """One row of the table: a workload, what is read off it, and which figure counts.

    warm_ups  runs before those that count; none for the longest, which finds all warm that the others left
    """

    name: str
    workload: Workload
    figures: Figures
    figure: str
    temperature: float = 0.0
    warm_ups: int = 1


def _fixed(count: int, prompt: int, output: int) -> Workload:
    return Workload(count, Span(prompt, prompt), Span(output, output))


def measurements(outputs: int) -> list[Measurement]:
    """outputs  tokens that a lone sequence generates after its 128 of prompt; those of a batch generate half as many"""
    decodes = [
        Measurement(f"decode {rows}", _fixed(rows, 128, outputs if rows == 1 else outputs // 2), latency_figures, "step_ms")
        for rows in (1, 8, 64, 256)
    ]
    mixed = Workload(256, Span(100, 1024), Span(100, 1024))
    return [
        *decodes,
        Measurement("prefill 64 x 2048", _fixed(64, 2048, 1), prefill_figures, "prompt_tokens_per_s"),
        Measurement("mixed 256", mixed, throughput_figures, "output_tokens_per_s", temperature=0.6, warm_ups=0),
    ]


def settings(model: str, **changes: Any) -> EngineConfig:
    """The engine of all measurements: random weights of a model's shape in bf16, no prefix cache to read prompts from."""
    defaults: dict[str, Any] = {
        "model": str(CONFIGS / model),
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 16384,
        "enable_prefix_caching": False,
    }
    return EngineConfig(**defaults | changes)


async def measure_engine(
    report: SuiteReport, model: str, *, repeats: int, outputs: int, only: str | None, **changes: Any
) -> None:
    """Start the engine, warm every row up, then report the median of `repeats` and their spread."""
    async with running_engine(settings(model, **changes)) as engine:
        report.add("start", model=model, **engine.info.startup_s, num_blocks=engine.info.num_blocks)
        for item in measurements(outputs):
            if only is None or item.name.startswith(only):
                await _measure(report, engine, model, item, repeats)


async def _measure(report: SuiteReport, engine: Engine, model: str, item: Measurement, repeats: int) -> None:
    values = []
    for variation in range(1 - item.warm_ups, repeats + 1):
        requests = item.workload.requests(vocab_size=engine.info.vocab_size, seed=0, variation=variation)
        run = await run_requests(engine, requests, temperature=item.temperature)
        values.append(item.figures(item.workload, run)[item.figure] or 0.0)
    counted = values[item.warm_ups :]
    report.add(
        "engine", model=model, row=item.name, figure=item.figure, median=median(counted), low=min(counted), high=max(counted)
    )


async def check_greedy(report: SuiteReport, model: str, **changes: Any) -> None:
    """In fp32, the tokens of a prompt alone, among 64, in chunks, with and without overlap and graphs, are the same."""
    rng = random.Random(0)
    requests = [BenchRequest([rng.randrange(1000, 100000) for _ in range(rng.randint(20, 300))], 24) for _ in range(64)]
    base = {"dtype": "float32", "max_model_len": 1024, "kv_cache_memory": 8 << 30} | changes
    variants: dict[str, dict[str, Any]] = {
        "together": {},
        "in chunks of 64": {"max_num_batched_tokens": 64, "max_num_seqs": 16},
        "no overlap": {"overlap": False},
        "no graphs": {"enforce_eager": True},
        "prefix cache": {"enable_prefix_caching": True},
    }
    async with running_engine(settings(model, **base)) as engine:
        alone = [(await tokens_of(engine, [request]))[0] for request in requests[:16]]
    for name, variant in variants.items():
        async with running_engine(settings(model, **base | variant)) as engine:
            batches = [requests, requests] if name == "prefix cache" else [requests]
            for batch in batches:
                together = await tokens_of(engine, batch)
        differing = sum(mine != theirs for mine, theirs in zip(alone, together, strict=False))
        report.check("greedy", float(differing), 0.5, model=model, variant=name, compared=len(alone))


async def tokens_of(engine: Engine, requests: list[BenchRequest]) -> list[list[int]]:
    """Greedy tokens of each request, admitted together."""
    specs = [
        SequenceSpec(
            sequence_id=f"greedy-{id(requests)}-{index}-{random.random()}",
            prompt_token_ids=request.prompt_token_ids,
            max_tokens=request.output_len,
            sampling=Sampling(seed=0, temperature=0.0),
        )
        for index, request in enumerate(requests)
    ]
    return [await _read(stream) for stream in await engine.open(specs)]


async def _read(stream: SequenceStream) -> list[int]:
    tokens: list[int] = []
    with stream:
        async for delta in stream:
            tokens += delta.token_ids
    return tokens
