"""TTL store for items that have ended, by id: bounded in time, in number and in bytes.

Lives on one API worker's event loop. Nothing runs in the background: expired items are dropped on the next access.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from operator import itemgetter
from time import monotonic
from typing import Generic, Protocol, TypeVar


class Expiring(Protocol):
    """What a store keeps.

    ended_at   the start of its time to live, by `time.monotonic`; None while it runs
    num_bytes  roughly the memory it takes
    """

    @property
    def ended_at(self) -> float | None: ...

    @property
    def num_bytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Expiring)


class TtlStore(Generic[K, T]):
    """Keeps every item that runs; drops the oldest of those that have ended when they expire or exceed the bounds.

    ttl_s      how long an item is kept after its end
    max_items  ended items
    max_bytes  of ended items
    """

    def __init__(self, *, ttl_s: float, max_items: int, max_bytes: int, clock: Callable[[], float] = monotonic) -> None:
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[K, T] = {}
        self._ended: OrderedDict[K, tuple[float, int, T]] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def put(self, id: K, item: T) -> None:
        """Keep `item` while it runs and `ttl_s` longer."""
        self._sweep()
        self._running[id] = item

    def num_kept(self) -> int:
        """The items that run or have not expired."""
        self._sweep()
        return len(self)

    def num_recent(self, seconds: float) -> int:
        """The items that run, or ended within the last `seconds`."""
        self._sweep()
        since = self._clock() - seconds + self._ttl_s
        return len(self._running) + sum(expires_at > since for expires_at, _, _ in self._ended.values())

    def running(self) -> list[T]:
        """The items that have not ended."""
        return [item for item in self._running.values() if item.ended_at is None]

    def get(self, id: K) -> T | None:
        """An item; None when it is not kept, or no longer."""
        self._sweep()
        if id in self._running:
            return self._running[id]
        found = self._ended.get(id)
        return None if found is None else found[2]

    def remove(self, id: K) -> T | None:
        """Drop an item and return it; None when there was none."""
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
        for ended_at, id in sorted(ended, key=itemgetter(0)):
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
