"""Whether the device has the memory for a step: one rank finds out by launching it, several agree before they do.

Runs on the launch thread. Ranks wait for each other in every layer, so none can try a step again that it ran out of memory in
the middle of. Therefore each reserves what the step needs before the first exchange and tells the others whether it could;
unless all could, all divide the step, and alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from streamserve.errors import RankOutOfMemory
from streamserve.fail_points import fail_point
from streamserve.scheduling.plan import Plan
from streamserve.worker.communication.base import RankGroup
from streamserve.worker.device.base import Device

OUT_OF_MEMORY = "out_of_memory"
"""The fail point of a step that the device lacks the memory for; its size is the tokens computed."""

OUT_OF_MEMORY_AMONG_RANKS = "out_of_memory_among_ranks"
"""The fail point of a rank that runs out of memory where the others wait for it; of that size, too."""


class StepMemory(Protocol):
    """Makes sure of the memory of steps."""

    def prepare(self) -> None:
        """Get ready for the largest step, once all that stays has been allocated."""
        ...

    def of_step(self, plan: Plan, num_lines: int) -> AbstractContextManager[None]:
        """Inside, a step may be launched that samples, or scores, so many positions.

        Raises `torch.OutOfMemoryError` when the memory does not suffice, on every rank, and then no row has a token more;
        `RankOutOfMemory` when that shows where ranks can't agree any more.
        """
        ...


class TriedMemory:
    """Memory of the only rank: a launch fails where it does not suffice."""

    def prepare(self) -> None:
        """Wait for steps to show what they need."""

    @contextmanager
    def of_step(self, plan: Plan, num_lines: int) -> Iterator[None]:
        fail_point(OUT_OF_MEMORY, torch.OutOfMemoryError, size=plan.num_tokens)
        with _typed_out_of_memory():
            yield


@dataclass(frozen=True, slots=True)
class LargestStep:
    """What was measured of the largest step: its tokens, its sampled lines, and the bytes that it holds at its peak."""

    num_tokens: int
    num_lines: int
    num_bytes: int

    def bytes_of(self, num_tokens: int, num_lines: int) -> int:
        """The most that a smaller step holds, and an eighth more for what is lost between allocations."""
        share = max(num_tokens / self.num_tokens, num_lines / self.num_lines)
        return int(self.num_bytes * share * 9 / 8)


class AgreedMemory:
    """Memory of one of several ranks, which is reserved before a step, and agreed on."""

    def __init__(self, device: Device, ranks: RankGroup, largest: LargestStep) -> None:
        self._device = device
        self._ranks = ranks
        self._largest = largest

    def prepare(self) -> None:
        # At once, since what grew step by step would lie beside what was reserved before. Without it steps are divided.
        with suppress(torch.OutOfMemoryError):
            self._device.reserve(self._largest.bytes_of(self._largest.num_tokens, self._largest.num_lines))

    @contextmanager
    def of_step(self, plan: Plan, num_lines: int) -> Iterator[None]:
        if not self._ranks.smallest(self._reserves(plan.num_tokens, num_lines)):
            raise torch.OutOfMemoryError("a rank lacks the memory for a step")
        try:
            fail_point(OUT_OF_MEMORY_AMONG_RANKS, torch.OutOfMemoryError, "as a test asked for", size=plan.num_tokens)
            with _typed_out_of_memory():
                yield
        except torch.OutOfMemoryError as error:
            reason = f"a step of {plan.num_tokens} tokens needed more than was reserved for it ({error})"
            raise RankOutOfMemory(reason, num_tokens=plan.num_tokens) from error

    def _reserves(self, num_tokens: int, num_lines: int) -> bool:
        try:
            fail_point(OUT_OF_MEMORY, torch.OutOfMemoryError, size=num_tokens)
            self._device.reserve(self._largest.bytes_of(num_tokens, num_lines))
        except torch.OutOfMemoryError:
            return False
        return True


@contextmanager
def _typed_out_of_memory() -> Iterator[None]:
    """Have the allocator of CPUs raise the error of GPUs' instead of a `RuntimeError` that only its text tells apart."""
    try:
        yield
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
