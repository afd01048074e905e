"""The figures of the in-process benchmarks, from traces whose answers are known, and one run of the real engine."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from streamserve.bench.commands import bench
from streamserve.bench.engine_run import SequenceTimes
from streamserve.bench.offline import latency_figures, prefill_figures, throughput_figures
from streamserve.bench.workloads import Span, Workload

WORKLOAD = Workload(2, Span(4, 4), Span(4, 4))


def times(*arrivals: tuple[float, int]) -> SequenceTimes:
    return SequenceTimes(started_s=0.0, prompt_len=4, arrivals=list(arrivals))


def test_a_step_is_timed_while_every_sequence_decodes() -> None:
    run = [times((1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4)), times((2.0, 1), (3.0, 2), (4.0, 3), (5.0, 4))]
    figures = latency_figures(WORKLOAD, run)
    assert figures["step_ms"] == 1000.0
    assert figures["decode_tokens_per_s"] == 2.0
    assert figures["ttft_ms"] == 1000.0
    assert figures["total_s"] == 5.0


def test_merged_deltas_count_as_the_tokens_they_carry() -> None:
    run = [times((1.0, 1), (3.0, 5)), times((1.0, 1), (2.0, 3), (3.0, 5))]
    assert latency_figures(WORKLOAD, run)["step_ms"] == 500.0


def test_one_delta_with_everything_leaves_a_step_unmeasured() -> None:
    assert latency_figures(WORKLOAD, [times((1.0, 4)), times((1.0, 4))])["step_ms"] is None


def test_rates_are_over_the_whole_run() -> None:
    run = [times((1.0, 1), (2.0, 6)), times((4.0, 2))]
    assert prefill_figures(WORKLOAD, run)["prompt_tokens_per_s"] == 2.0
    figures = throughput_figures(WORKLOAD, run)
    assert (figures["output_tokens_per_s"], figures["total_tokens_per_s"], figures["requests_per_s"]) == (2.0, 4.0, 0.5)


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (["latency", "-b", "1", "-b", "2", "-i", "8", "-o", "4"], "step_ms"),
        (["prefill", "-n", "2", "-i", "32"], "prompt_tokens_per_s"),
        (["throughput", "-n", "3", "-i", "4:16", "-o", "2:6"], "output_tokens_per_s"),
    ],
)
def test_each_benchmark_runs_the_real_engine(arguments: list[str], figure: str, tiny_model: str) -> None:
    options = [
        "--model",
        tiny_model,
        "--load-format",
        "dummy",
        "--dtype",
        "float32",
        "-r",
        "1",
        "--json",
        "--max-model-len",
        "128",
    ]
    done = CliRunner().invoke(bench, [*arguments, *options, "--kv-cache-memory", "4000000"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert all(row[figure] > 0 for row in rows)
    assert len(rows) == (2 if arguments[0] == "latency" else 1)
