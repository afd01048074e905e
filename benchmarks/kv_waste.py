"""How much of the KV cache that sequences hold is empty: the mixed workload, scheduled without a model.

    python benchmarks/kv_waste.py

256 prompts of 100 to 1024 tokens, each with an output of 100 to 1024 tokens that only its length ends, two steps in flight. A
slot is wasted when a sequence holds its block and no token is in it. The cache is once as large as on an 80 GB card with a 0.6B
model and once so small that sequences are preempted.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from streamserve.scheduling.plan import StepResult
from streamserve.scheduling.scheduler import Scheduler, SchedulerLimits
from streamserve.scheduling.sequence import Sequence
from streamserve.scheduling.step import Step
from streamserve.types import Sampling, SequenceSpec

NUM_SEQUENCES = 256
LENGTHS = (100, 1024)
BLOCK_SIZE = 16
CACHE_SIZES = {"large": 32_768, "small": 4_096}


@dataclass(frozen=True)
class Snapshot:
    """The cache just after a step was planned, in slots.

    held     in blocks that sequences hold
    filled   with a token in them, those written by steps in flight included
    pending  claimed for prompt tokens whose chunk has not come yet
    """

    held: int
    filled: int
    pending: int
    num_sequences: int

    @property
    def waste(self) -> float:
        return 1 - self.filled / self.held


@dataclass(frozen=True)
class Waste:
    """Shares of the slots held: over all steps, and in the worst one."""

    average: float
    worst: float
    num_steps: int
    num_preemptions: int


def mixed_workload(seed: int) -> list[SequenceSpec]:
    rng = random.Random(seed)
    return [
        SequenceSpec(
            sequence_id=f"s{index}",
            prompt_token_ids=[rng.randrange(50_000) for _ in range(rng.randint(*LENGTHS))],
            max_tokens=rng.randint(*LENGTHS),
            sampling=Sampling(seed=index),
        )
        for index in range(NUM_SEQUENCES)
    ]


def new_scheduler(num_blocks: int) -> Scheduler:
    return Scheduler(
        SchedulerLimits(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=NUM_SEQUENCES,
            max_num_batched_tokens=2048,
            max_model_len=4096,
        )
    )


def snapshots(scheduler: Scheduler, seed: int) -> Iterator[Snapshot]:
    """Run the workload to its end, with two steps in flight and random tokens."""
    for spec in mixed_workload(seed):
        scheduler.add(spec, 0.0)
    rng = random.Random(seed + 1)
    in_flight: deque[Step] = deque()
    while scheduler.has_runnable:
        step = scheduler.schedule(0.0)
        if step is not None:
            in_flight.append(step)
            yield snapshot(list(scheduler.registry.running))
        if len(in_flight) == 2 or step is None:
            due = in_flight.popleft()
            scheduler.commit(due, StepResult(due.plan.step, [[rng.randrange(50_000)] for _ in due.sampled]), 0.0)


def snapshot(running: list[Sequence]) -> Snapshot:
    return Snapshot(
        held=sum(len(table.block_ids) for sequence in running for table in sequence.tables) * BLOCK_SIZE,
        filled=sum(sequence.num_computed for sequence in running),
        pending=sum(max(0, len(sequence.token_ids) - sequence.num_computed) for sequence in running),
        num_sequences=len(running),
    )


def measure(num_blocks: int, seed: int) -> Waste:
    scheduler = new_scheduler(num_blocks)
    taken = list(snapshots(scheduler, seed))
    held, filled = sum(each.held for each in taken), sum(each.filled for each in taken)
    return Waste(1 - filled / held, max(each.waste for each in taken), len(taken), scheduler.stats().num_preemptions)


def report(name: str, num_blocks: int, waste: Waste) -> str:
    return (
        f"{name} cache, {num_blocks} blocks of {BLOCK_SIZE} tokens: {waste.average:.2%} of the slots held are empty on "
        f"average, {waste.worst:.2%} in the worst step ({waste.num_steps} steps, {waste.num_preemptions} preemptions)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    for name, num_blocks in CACHE_SIZES.items():
        print(report(name, num_blocks, measure(num_blocks, seed)))


if __name__ == "__main__":
    main()
