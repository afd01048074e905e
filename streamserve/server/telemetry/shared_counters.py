"""Counters and histograms that each API worker updates and any of them can read: doubles in memory shared by the workers.

Each worker writes a region of its own, so there are no locks; the worker that answers /metrics sums over the regions. An update
costs a list index, which is what lets every streamed token be counted.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Sequence

_DOUBLE_BYTES = 8


class CounterMemory:
    """`size` doubles for each of `workers` processes.

    fd  shared memory made by `create_shared`; without it the memory is private to this process
    """

    def __init__(self, size: int, *, workers: int = 1, fd: int | None = None) -> None:
        self.size = size
        self.workers = workers
        self._map = mmap.mmap(-1 if fd is None else fd, size * workers * _DOUBLE_BYTES)
        self._values = memoryview(self._map).cast("d")

    @staticmethod
    def create_shared(size: int, workers: int) -> int:
        """Create zeroed memory; returns its file descriptor, for every worker to inherit."""
        fd = os.memfd_create("streamserve-metrics")
        os.truncate(fd, size * workers * _DOUBLE_BYTES)
        return fd

    def region(self, worker: int) -> memoryview[float]:
        """The doubles that `worker` updates."""
        return self._values[worker * self.size : (worker + 1) * self.size]

    def total(self, index: int) -> float:
        """One value, summed over all workers."""
        return sum(self._values[index :: self.size])


class CounterLayout:
    """Assigns indices while the metrics are declared; every worker declares the same ones in the same order."""

    def __init__(self) -> None:
        self.size = 0

    def reserve(self, count: int) -> int:
        """Reserve `count` consecutive values; returns the index of the first."""
        first = self.size
        self.size += count
        return first


class Counter:
    """A total, or one total per label value."""

    def __init__(self, layout: CounterLayout, labels: Sequence[str] = ("",)) -> None:
        self._first = layout.reserve(len(labels))
        self._offsets = {label: offset for offset, label in enumerate(labels)}
        self._values: memoryview[float] | None = None

    def bind(self, values: memoryview[float]) -> None:
        """Count in `values`, a worker's region, from now on."""
        self._values = values

    def add(self, amount: float = 1.0, label: str = "") -> None:
        """Add to this worker's share of a total."""
        assert self._values is not None
        self._values[self._first + self._offsets[label]] += amount

    def set(self, value: float) -> None:
        """Set this worker's share to `value`; for a gauge."""
        assert self._values is not None
        self._values[self._first] = value

    def totals(self, memory: CounterMemory) -> dict[str, float]:
        """Totals over all workers, by label value."""
        return {label: memory.total(self._first + offset) for label, offset in self._offsets.items()}


class Histogram:
    """Observations by upper bound, with their sum."""

    def __init__(self, layout: CounterLayout, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._first = layout.reserve(len(self.bounds) + 2)
        self._sum = self._first + len(self.bounds) + 1
        self._values: memoryview[float] | None = None

    def bind(self, values: memoryview[float]) -> None:
        """Count in `values`, a worker's region, from now on."""
        self._values = values

    def observe(self, value: float) -> None:
        """Count one observation."""
        values = self._values
        assert values is not None
        values[self._first + bisect_left(self.bounds, value)] += 1.0
        values[self._sum] += value

    def cumulative(self, memory: CounterMemory) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, observations up to it) in order, ending with "+Inf"; and the sum of all observations."""
        buckets: list[tuple[str, float]] = []
        count = 0.0
        for offset, bound in enumerate([*map(str, self.bounds), "+Inf"]):
            count += memory.total(self._first + offset)
            buckets.append((bound, count))
        return buckets, memory.total(self._sum)
