"""Values that all layers of one step have in common: indices, masks, rotation angles; on a GPU, the schedules of attention.

A layer takes a few hundred microseconds of a CPU for a single token, and computing these anew would be a quarter of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Shared:
    """Values of one step by key. Create one per step and pass it to each of its layers.

    A key with a tensor's `id` in it needs a tensor that lives as long, as the step's inputs do.
    """

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`; the first call makes it."""
        if key not in self._values:
            self._values[key] = make()
        return cast(T, self._values[key])
