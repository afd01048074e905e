"""One sequence's channel from the engine to its reader: merge, then pause, then fail.

Lives on the reader's event loop, in the API process. `push` never awaits, so no reader can slow the engine or another reader:
deltas queue up to a small bound, then merge into the last one (order kept, nothing lost); past the high-water mark the
sequence is paused in the scheduler; a paused stream whose reader takes nothing for the stall timeout is failed. Knows neither
scheduler nor socket: it steers its sequence through a `SequenceControl`. Keeps the state that another engine can resume from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from streamserve.aio.wakeup import Wakeup
from streamserve.engine.error_info import describe
from streamserve.engine.resume_state import ResumeState
from streamserve.errors import SlowConsumer
from streamserve.types import ErrorInfo, FinishReason, SequenceSpec, TokenDelta


class SequenceControl(Protocol):
    """Commands of a stream to the engine about its sequence; unknown and finished sequences are ignored. Never blocks."""

    def pause(self, sequence_id: str) -> None: ...

    def resume(self, sequence_id: str) -> None: ...

    def end_reasoning(self, sequence_id: str) -> None: ...

    def abort(self, sequence_id: str) -> None: ...


class StreamLimits(NamedTuple):
    """Bounds of one stream.

    queue_deltas       deltas kept apart for a reader that lags briefly; later ones merge into the last
    high_water_tokens  unread tokens above which the sequence is paused
    low_water_tokens   unread tokens at which a paused sequence resumes
    stall_timeout_s    a paused stream fails when its reader takes nothing for this long
    """

    queue_deltas: int = 16
    high_water_tokens: int = 256
    low_water_tokens: int = 64
    stall_timeout_s: float = 60.0


class ChannelStream:
    """The channel of one sequence: a `SequenceStream` for its reader, `push` and `end` for the engine's side.

    resume_state  what another engine can continue the sequence from
    """

    __slots__ = (
        "_control",
        "_deltas",
        "_ended",
        "_limits",
        "_loop",
        "_ready",
        "_stall",
        "_unread",
        "_wakeup",
        "resume_state",
        "sequence_id",
    )

    def __init__(self, spec: SequenceSpec, control: SequenceControl, limits: StreamLimits) -> None:
        self.sequence_id = spec.sequence_id
        self.resume_state = ResumeState(spec)
        self._control = control
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._deltas: deque[TokenDelta] = deque()
        self._unread = 0
        self._ended = False
        self._wakeup = Wakeup()
        self._ready: Callable[[], None] | None = None
        self._stall: asyncio.TimerHandle | None = None

    def push(self, delta: TokenDelta) -> None:
        """Queue a delta for the reader, or merge it into the last one; dropped once the stream has ended."""
        if self._ended:
            return
        if delta.queue_s is not None:
            delta = self.resume_state.without_repeats(delta)
        self.resume_state.token_ids.extend(delta.token_ids)
        deltas = self._deltas
        if len(deltas) < self._limits.queue_deltas:
            deltas.append(delta)
        else:
            deltas[-1] = deltas[-1].then(delta)
        self._unread += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._ended = True
            self._clear_stall()
        elif self._unread > self._limits.high_water_tokens and self._stall is None:
            self._control.pause(self.sequence_id)
            self._start_stall_timer()
        if self._ready is None:
            self._wakeup.set()
        else:
            self._ready()

    def end(self, reason: FinishReason, error: ErrorInfo | None = None) -> None:
        """Finish the stream from this side, keeping what is unread."""
        self.push(TokenDelta([], finish_reason=reason, error=error))

    def steer_by(self, control: SequenceControl) -> None:
        """Steer the sequence through another control: it continues in another engine."""
        self._control = control

    @property
    def is_paused(self) -> bool:
        """Whether its sequence is paused until the reader has caught up."""
        return self._stall is not None

    def abort(self) -> None:
        """End the sequence with reason "abort", keeping what is unread."""
        if not self._ended:
            self.end("abort")
            self._control.abort(self.sequence_id)

    def end_reasoning(self) -> None:
        """Have the sequence end its reasoning, in an engine that it is resumed in, too. Never blocks."""
        if not self._ended:
            self.resume_state.end_reasoning()
            self._control.end_reasoning(self.sequence_id)

    def close(self) -> None:
        """Abort the sequence unless it has finished, and discard what is unread. Idempotent, never blocks."""
        self._deltas.clear()
        self._unread = 0
        self._ready = None
        if not self._ended:
            self._ended = True
            self._clear_stall()
            self._control.abort(self.sequence_id)
            self._wakeup.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        while (delta := self.take_nowait()) is None:
            if self._ended:
                raise StopAsyncIteration
            await self._wakeup.wait()
        return delta

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever a delta can be taken, and now if one can; it runs on the loop and must not block.

        For a reader that takes instead of iterating.
        """
        self._ready = ready
        if self._deltas:
            ready()

    def take_nowait(self) -> TokenDelta | None:
        """The next delta, or None when none is waiting."""
        if not self._deltas:
            return None
        delta = self._deltas.popleft()
        self._unread -= len(delta.token_ids)
        if self._stall is not None:
            self._read_while_paused()
        return delta

    def _read_while_paused(self) -> None:
        self._clear_stall()
        if self._unread <= self._limits.low_water_tokens:
            self._control.resume(self.sequence_id)
        else:
            self._start_stall_timer()

    def _start_stall_timer(self) -> None:
        self._stall = self._loop.call_later(self._limits.stall_timeout_s, self._fail_as_stalled)

    def _clear_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _fail_as_stalled(self) -> None:
        message = f"the reader took nothing for {self._limits.stall_timeout_s:g} s with {self._unread} tokens waiting"
        self.end("error", describe(SlowConsumer(message)))
        self._control.abort(self.sequence_id)
