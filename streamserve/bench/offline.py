"""`bench latency`, `prefill` and `throughput`: the engine in this process, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from streamserve.bench.engine_run import SequenceTimes, run_requests, running_engine
from streamserve.bench.measures import median, milliseconds
from streamserve.bench.output import output_options, show
from streamserve.bench.report import Report, Row
from streamserve.bench.workloads import Span, SpanType, Workload
from streamserve.commands.engine_options import engine_config, engine_options
from streamserve.commands.vllm_command import VllmCommand
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.types import EngineInfo

LATENCY_COLUMNS = {
    "sequences": "sequences",
    "input_len": "input",
    "output_len": "output",
    "ttft_ms": "TTFT ms",
    "step_ms": "ms/step",
    "decode_tokens_per_s": "tokens/s",
    "total_s": "total s",
}
PREFILL_COLUMNS = {"sequences": "prompts", "input_len": "input", "total_s": "total s", "prompt_tokens_per_s": "tokens/s"}
THROUGHPUT_COLUMNS = {
    "sequences": "requests",
    "input_len": "input",
    "output_len": "output",
    "total_s": "total s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "all tokens/s",
    "requests_per_s": "requests/s",
}
Run = list[SequenceTimes]
Figures = Callable[[Workload, Run], dict[str, float | None]]

_repeats = click.option(
    "--repeats",
    "-r",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs after a warm-up; medians are reported.",
)


@click.command(cls=VllmCommand)
@click.option("--batch-size", "-b", multiple=True, type=click.IntRange(min=1), default=[1, 8], help="Sequences; several sweep.")
@click.option("--input-len", "-i", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", "-o", type=click.IntRange(min=2), default=128, show_default=True, help="Tokens to generate.")
@_repeats
@output_options
@engine_options
def latency(
    batch_size: tuple[int, ...], input_len: int, output_len: int, repeats: int, as_json: bool, plot: Path | None, **values: Any
) -> None:
    """Time to the first token, and of a step, of sequences that start together."""
    workloads = [Workload(batch, Span(input_len, input_len), Span(output_len, output_len)) for batch in batch_size]
    config = engine_config(None, values)
    if max(batch_size) > config.max_num_seqs:
        raise ConfigError(
            f"--batch-size {max(batch_size)} would not run as one batch: raise --max-num-seqs {config.max_num_seqs}"
        )
    info, rows = measure(config, workloads, latency_figures, repeats)
    plotted = {"ttft_ms": "TTFT, ms", "step_ms": "ms per step", "decode_tokens_per_s": "tokens per second"}
    show(Report(_title("latency", info), LATENCY_COLUMNS, "sequences", plotted, rows), as_json=as_json, plot=plot)


@click.command(cls=VllmCommand)
@click.option("--num-prompts", "-n", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--input-len", "-i", multiple=True, type=click.IntRange(min=1), default=[512], help="Tokens of a prompt; several sweep."
)
@_repeats
@output_options
@engine_options
def prefill(
    num_prompts: int, input_len: tuple[int, ...], repeats: int, as_json: bool, plot: Path | None, **values: Any
) -> None:
    """Prompt tokens per second, of prompts that start together and generate one token each."""
    workloads = [Workload(num_prompts, Span(length, length), Span(1, 1)) for length in input_len]
    info, rows = measure(engine_config(None, values), workloads, prefill_figures, repeats)
    plotted = {"prompt_tokens_per_s": "prompt tokens per second"}
    show(Report(_title("prefill", info), PREFILL_COLUMNS, "input_len", plotted, rows), as_json=as_json, plot=plot)


@click.command(cls=VllmCommand)
@click.option("--num-requests", "-n", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--input-len", "-i", type=SpanType(), default=Span(100, 1024), show_default=True, help="Tokens of a prompt.")
@click.option("--output-len", "-o", type=SpanType(), default=Span(100, 1024), show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.6, show_default=True)
@_repeats
@output_options
@engine_options
def throughput(
    num_requests: int,
    input_len: Span,
    output_len: Span,
    temperature: float,
    repeats: int,
    as_json: bool,
    plot: Path | None,
    **values: Any,
) -> None:
    """Tokens per second of requests that all start together; by default a mix of short and long ones."""
    workloads = [Workload(num_requests, input_len, output_len)]
    info, rows = measure(engine_config(None, values), workloads, throughput_figures, repeats, temperature=temperature)
    plotted = {"output_tokens_per_s": "output tokens per second", "total_tokens_per_s": "all tokens per second"}
    show(Report(_title("throughput", info), THROUGHPUT_COLUMNS, "sequences", plotted, rows), as_json=as_json, plot=plot)


def latency_figures(workload: Workload, run: Run) -> dict[str, float | None]:
    """A step's time is taken between the last first token and the first last one: while all sequences decode."""
    start_s, end_s = max(times.first_s for times in run), min(times.last_s for times in run)
    tokens = sum(times.tokens_between(start_s, end_s) for times in run)
    is_measurable = tokens > 0 and end_s > start_s
    return {
        "ttft_ms": milliseconds(median(times.first_s - times.started_s for times in run)),
        "step_ms": milliseconds((end_s - start_s) * len(run) / tokens) if is_measurable else None,
        "decode_tokens_per_s": tokens / (end_s - start_s) if is_measurable else None,
        "total_s": _seconds(run),
    }


def prefill_figures(workload: Workload, run: Run) -> dict[str, float | None]:
    return {"total_s": _seconds(run), "prompt_tokens_per_s": workload.count * workload.input_len.low / _seconds(run)}


def throughput_figures(workload: Workload, run: Run) -> dict[str, float | None]:
    prompt, output = sum(times.prompt_len for times in run), sum(times.output_len for times in run)
    seconds = _seconds(run)
    return {
        "prompt_tokens": prompt,
        "output_tokens": output,
        "total_s": seconds,
        "output_tokens_per_s": output / seconds,
        "total_tokens_per_s": (prompt + output) / seconds,
        "requests_per_s": workload.count / seconds,
    }


def _seconds(run: Run) -> float:
    return max(times.last_s for times in run) - min(times.started_s for times in run)


def measure(
    config: EngineConfig, workloads: Sequence[Workload], figures: Figures, repeats: int, *, temperature: float = 0.0
) -> tuple[EngineInfo, list[Row]]:
    """A row for each workload: the median of each figure over `repeats` runs, after one that warms caches, kernels and graphs.

    Raises `ConfigError` when the engine can't start.
    """
    return asyncio.run(_measure(config, workloads, figures, repeats, temperature))


async def _measure(
    config: EngineConfig, workloads: Sequence[Workload], figures: Figures, repeats: int, temperature: float
) -> tuple[EngineInfo, list[Row]]:
    async with running_engine(config) as engine:
        rows: list[Row] = []
        for workload in workloads:
            runs = []
            for variation in range(repeats + 1):
                requests = workload.requests(vocab_size=engine.info.vocab_size, seed=config.seed, variation=variation)
                runs.append(figures(workload, await run_requests(engine, requests, temperature=temperature)))
            rows.append(_row(workload, runs[1:]))
        return engine.info, rows


def _row(workload: Workload, runs: list[dict[str, float | None]]) -> Row:
    row: Row = {
        "sequences": workload.count,
        "input_len": workload.input_len.as_json(),
        "output_len": workload.output_len.as_json(),
        "repeats": len(runs),
    }
    for name in runs[0]:
        middle = median(value for run in runs if (value := run[name]) is not None)
        row[name] = None if middle is None else round(middle, 4)
    return row


def _title(benchmark: str, info: EngineInfo) -> str:
    return f"{benchmark}: {info.architecture}, {info.dtype} on {info.device}"
