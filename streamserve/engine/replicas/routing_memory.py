"""What the API workers of a server know together of its replicas: how many sequences each has, and which prompts it was sent.

Memory that the workers share. Each worker writes numbers of its own, so there are no locks, and any of them reads the sums.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from streamserve.routing.prefix_index import WORD_BYTES, PrefixIndex, index_bytes


class RoutingMemory:
    """One worker's view.

    fd  from `create_shared`; without it the memory is this process's own

    num_replicas  that there is room for
    index         of the prefixes that all workers have sent to the replicas
    """

    def __init__(self, num_replicas: int, *, worker: int = 0, workers: int = 1, fd: int | None = None) -> None:
        self.num_replicas = num_replicas
        self._map = mmap.mmap(-1 if fd is None else fd, _size(num_replicas, workers))
        words = memoryview(self._map).cast("Q")
        num_loads = num_replicas * workers
        self._loads = words[:num_loads]
        self._own = self._loads[worker * num_replicas : (worker + 1) * num_replicas]
        # Those of an earlier process that was this worker have ended with it.
        self.report([0] * num_replicas)
        self.index = PrefixIndex(num_replicas, words=words[num_loads:])

    @staticmethod
    def create_shared(num_replicas: int, workers: int) -> int:
        """Create the memory; returns its descriptor, for every worker to inherit."""
        fd = os.memfd_create("streamserve-routing")
        os.truncate(fd, _size(num_replicas, workers))
        return fd

    def report(self, num_sequences: Sequence[int]) -> None:
        """Report the sequences that this worker has open at each replica."""
        for replica, number in enumerate(num_sequences):
            self._own[replica] = number

    def loads(self) -> list[int]:
        """The sequences that each replica has, as all workers have reported them."""
        return [sum(self._loads[replica :: self.num_replicas]) for replica in range(self.num_replicas)]


def _size(num_replicas: int, workers: int) -> int:
    return num_replicas * workers * WORD_BYTES + index_bytes(num_replicas)
