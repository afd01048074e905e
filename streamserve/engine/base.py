"""The interface of an engine to its API side, wherever it runs: in this process (`inline`) or in one of its own (`remote`).

Everything here is called on the caller's event loop. `abort` and `SequenceStream.close` are synchronous on purpose: anyio's
cancellation is level-triggered, so an `await` on the way out would raise again and leave the sequence running.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from streamserve.errors import QueueFull
from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Quotas, SequenceSpec, Tenant, TokenDelta


class SequenceStream(Protocol):
    """The tokens of one sequence, for one reader.

    Iterate it to the end or leave its `with` block: leaving early aborts the sequence within one step. A reader that keeps up
    gets one delta per decoded token; one that lags gets longer deltas and loses nothing.
    """

    sequence_id: str

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> TokenDelta:
        """The next delta; after one with `finish_reason`, StopAsyncIteration.

        A failed sequence ends with a delta whose `finish_reason` is "error" and whose `error` says why, not with an exception.
        """
        ...

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever a delta can be taken, and now if one can; `ready` runs on the loop and must not block.

        For a reader of many streams, which takes with `take_nowait` instead of iterating.
        """
        ...

    def take_nowait(self) -> TokenDelta | None:
        """The next delta, or None when none is waiting."""
        ...

    def end_reasoning(self) -> None:
        """Have the sequence end its reasoning, within one step, and go on with the answer; nothing where it has none.

        Idempotent, never blocks.
        """
        ...

    def close(self) -> None:
        """Abort the sequence unless it has finished. Idempotent, never blocks."""
        ...


class Engine(Protocol):
    """Admits sequences and streams their tokens."""

    @property
    def info(self) -> EngineInfo:
        """Known once started; raises `Unavailable` before."""
        ...

    async def start(self) -> EngineInfo: ...

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences, all or none.

        Returns once they are in the engine's queue. Raises `QueueFull`, `PromptTooLarge`,
        `ContextLengthExceeded`, `InvalidParameter` or `Unavailable`, in which case none of them runs.
        """
        ...

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        """The error with which `open` refuses every request of a tenant now, as far as that is known without asking."""
        ...

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use, as far as is known without asking; None where it has no limits."""
        ...

    def abort(self, sequence_id: str) -> bool:
        """End a sequence with reason "abort" within one step, keeping what its reader has not read yet. False when unknown."""
        ...

    async def stats(self) -> EngineStats:
        """A snapshot no older than one step; `heartbeat_s` is the age of the loop's last iteration."""
        ...

    async def snapshots(self) -> list[EngineSnapshot]:
        """Facts and statistics of each engine that serves the model, by number; raises `Unavailable` before the start."""
        ...

    async def stop(self) -> None:
        """End every stream (with `EngineDead`), free everything. Idempotent."""
        ...
