"""How long each part of a start took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timeline:
    """Seconds by part, in the order measured; `part` is the one begun last."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.part = ""

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `part`."""
        self.part = part
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
