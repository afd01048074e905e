"""Things that are kept for a while after their end, by id: bounded in time, in number and in bytes.

Lives on one API worker's event loop. Nothing runs in the background: what has expired goes when something else is looked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Generic, Protocol, TypeVar


class Keepable(Protocol):
    """ended_at: since when it may expire, by `time.monotonic`, None while it runs; num_bytes: about what it holds in memory."""

    @property
    def ended_at(self) -> float | None: ...

    @property
    def num_bytes(self) -> int: ...


T = TypeVar("T", bound=Keepable)


class TtlStore(Generic[T]):
    """Whatever still runs is kept; the oldest of what has ended goes first."""

    def __init__(self, *, ttl_s: float, max_items: int, max_bytes: int, clock: Callable[[], float] = monotonic) -> None:
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[str, T] = {}
        self._ended: OrderedDict[str, tuple[float, int, T]] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def put(self, id: str, item: T) -> None:
        """Keep `item`, for as long as it runs and a while longer."""
        self._sweep()
        self._running[id] = item

    def running(self) -> list[T]:
        """What has not ended."""
        return [item for item in self._running.values() if item.ended_at is None]

    def get(self, id: str) -> T | None:
        self._sweep()
        if id in self._running:
            return self._running[id]
        found = self._ended.get(id)
        return None if found is None else found[2]

    def remove(self, id: str) -> T | None:
        """Forget an item; None when there was none."""
        self._sweep()
        if id in self._running:
            return self._running.pop(id)
        found = self._ended.pop(id, None)
        if found is None:
            return None
        self._num_bytes -= found[1]
        return found[2]

    def _sweep(self) -> None:
        now = self._clock()
        ended = [(item.ended_at, id) for id, item in self._running.items() if item.ended_at is not None]
        for ended_at, id in sorted(ended):
            item = self._running.pop(id)
            _, replaced_bytes, _ = self._ended.pop(id, (0.0, 0, None))
            self._ended[id] = (ended_at + self._ttl_s, item.num_bytes, item)
            self._num_bytes += item.num_bytes - replaced_bytes
        while self._ended and self._must_go(now):
            _, (_, num_bytes, _) = self._ended.popitem(last=False)
            self._num_bytes -= num_bytes

    def _must_go(self, now: float) -> bool:
        expires_at, _, _ = next(iter(self._ended.values()))
        return expires_at <= now or len(self._ended) > self._max_items or self._num_bytes > self._max_bytes
