"""What the scheduler itself costs a step: planning and committing, without a model.

    python benchmarks/scheduler_step.py

All rows decode, with two steps in flight and prompts of different lengths, so that block boundaries do not coincide.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

from streamserve.scheduling.plan import StepResult
from streamserve.scheduling.scheduler import Scheduler, SchedulerLimits
from streamserve.types import Sampling, SequenceSpec

MAX_TOKENS = 512


def decoding(num_rows: int) -> Scheduler:
    """A scheduler with `num_rows` sequences waiting."""
    scheduler = Scheduler(
        SchedulerLimits(
            num_blocks=num_rows * 64,
            block_size=16,
            max_num_seqs=num_rows,
            max_num_batched_tokens=max(8192, num_rows),
            max_model_len=4096,
        )
    )
    for index in range(num_rows):
        prompt = [(index * 31 + position) % 50_000 for position in range(64 + index % 64)]
        scheduler.add(
            SequenceSpec(
                sequence_id=f"s{index}",
                prompt_token_ids=prompt,
                max_tokens=MAX_TOKENS,
                sampling=Sampling(seed=index, stop_token_ids=[50_001]),
            ),
            0.0,
        )
    return scheduler


def step_times(num_rows: int) -> Iterator[float]:
    """Seconds that each full decode step took to plan and commit."""
    scheduler = decoding(num_rows)
    previous = scheduler.schedule(0.0)
    while previous is not None:
        result = StepResult(previous.plan.step, [[7] for _ in previous.sampled])
        is_full = len(result.token_ids) == num_rows
        start = time.perf_counter()
        step = scheduler.schedule(0.0)
        scheduler.commit(previous, result, 0.0)
        elapsed = time.perf_counter() - start
        if is_full and step is not None and not step.plan.starts:
            yield elapsed
        previous = step or scheduler.schedule(0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256, 1024])
    for num_rows in parser.parse_args().rows:
        times = sorted(step_times(num_rows))
        median, p99 = statistics.median(times) * 1e6, times[len(times) * 99 // 100] * 1e6
        print(f"{num_rows:5} rows: schedule + commit {median:6.0f} µs a step (median of {len(times)}), p99 {p99:.0f} µs")


if __name__ == "__main__":
    main()
