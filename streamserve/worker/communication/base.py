"""The interface of a group of ranks, beyond what a model's layers need of it.

Used by the rank's launch thread; every rank makes the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from streamserve.models.communicator import Apart, Communicator
from streamserve.worker.device.base import Device

COLLECTIVE_TIMEOUT_S = 300.0
"""Seconds that a rank waits for the others in one exchange, a slow disk's loading among them; then it fails."""


class RankGroup(Communicator, Protocol):
    """One rank's end of a group of ranks."""

    def smallest(self, number: int) -> int:
        """The smallest number that a rank calls this with; returns once all have."""
        ...

    def silenced(self) -> AbstractContextManager[object]:
        """Inside, sums and gathers exchange nothing, and return what has the right shape: to run layers in any order."""
        ...


Join = Callable[[Device], RankGroup]
"""Joins the other ranks, which do so too, with the device that this one computes on."""


class Alone(Apart):
    """The group of one rank."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def smallest(self, number: int) -> int:
        return number

    def silenced(self) -> AbstractContextManager[object]:
        return nullcontext()


def alone(device: Device) -> RankGroup:
    """Join nobody."""
    return Alone()
