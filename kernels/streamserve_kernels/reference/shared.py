"""What every layer of one step computes alike: indices, masks, rotations; on a GPU, how decode contexts are shared out.

A layer takes a few hundred microseconds of a CPU for a single token, and such small tensors would be a quarter of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Shared:
    """Values of one step by key: make one for each step, and give it to each of its layers."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made by the first who asks."""
        if key not in self._values:
            self._values[key] = make()
        return cast(T, self._values[key])
