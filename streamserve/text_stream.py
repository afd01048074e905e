"""The text deltas of all choices of one request, in the order in which they arrive.

Runs on the reader's event loop. Tokens become text only when the reader takes them, so a reader that lags makes the engine's
streams merge and pause, and delays no other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from streamserve.aio.wakeup import Wakeup
from streamserve.engine.base import Engine, SequenceStream
from streamserve.text.sequence_text import SequenceText
from streamserve.types import TextDelta


class TextStream:
    """The choices of one request as one stream of `TextDelta`.

    Iterate it to the end or leave its `with` block: leaving early aborts every sequence that still runs, within one step.
    So does dropping the last reference, as a `break` out of `async for` does.
    """

    def __init__(self, engine: Engine, streams: Sequence[SequenceStream], texts: Sequence[SequenceText]) -> None:
        self._engine = engine
        self._streams = dict(enumerate(streams))
        self._texts = texts
        self._only = streams[0] if len(streams) == 1 else None
        # The callbacks hold the inbox and not this object, which would otherwise live on in a cycle and never abort.
        self._inbox = _Inbox(len(streams))
        for index, stream in enumerate(streams):
            stream.listen(partial(self._inbox.add, index))

    @property
    def sequence_ids(self) -> list[str]:
        """The sequences of choices that have not ended."""
        return [stream.sequence_id for stream in self._streams.values()]

    def abort(self) -> None:
        """End every choice with reason "abort"; what was generated until then can still be read. Never blocks."""
        for sequence_id in self.sequence_ids:
            self._engine.abort(sequence_id)

    def end_reasoning(self) -> None:
        """Have every choice end its reasoning, within one step, and go on with the answer. Never blocks."""
        for stream in self._streams.values():
            stream.end_reasoning()

    def close(self) -> None:
        """Abort what still runs and end the iteration. Idempotent, never blocks."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.close()
        self._inbox.listen(None)
        self._inbox.wake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._streams:
            self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta; after the last choice's end, StopAsyncIteration.

        A failed choice ends with a delta whose `finish_reason` is "error".
        """
        while self._streams:
            delta = self.take_nowait()
            if delta is not None:
                return delta
            await self._inbox.wait()
        raise StopAsyncIteration

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `take_nowait` may have a delta, and now if it may; it runs on the loop and must not block.

        For a reader that takes from a callback instead of iterating.
        """
        if self._only is not None:
            self._only.listen(ready)
        else:
            self._inbox.listen(ready)

    def take_nowait(self) -> TextDelta | None:
        """The next delta, or None when none is ready."""
        if self._only is not None:
            return self._take_only(self._only)
        order = self._inbox.order
        while order:
            index = order[0]
            stream = self._streams.get(index)
            delta = stream.take_nowait() if stream is not None else None
            if stream is None or delta is None:
                self._inbox.drop_first()
                continue
            if len(order) > 1:
                # Behind the other choices, in case more of this one is waiting.
                order.rotate(-1)
            text = self._texts[index].push(delta)
            if text is not None:
                if text.finish_reason is not None:
                    del self._streams[index]
                    stream.close()
                return text
        return None

    def _take_only(self, stream: SequenceStream) -> TextDelta | None:
        """The same for a single choice, as nearly all requests have: there is no order to keep."""
        while self._streams and (delta := stream.take_nowait()) is not None:
            text = self._texts[0].push(delta)
            if text is not None:
                if text.finish_reason is not None:
                    self._streams.clear()
                    stream.close()
                return text
        return None


class _Inbox:
    """The choices that may have a delta, in turn, and the reader that waits for one or is called back."""

    __slots__ = ("_is_listed", "_ready", "_wakeup", "order")

    def __init__(self, num_choices: int) -> None:
        self.order: deque[int] = deque()
        self._is_listed = [False] * num_choices
        self._ready: Callable[[], None] | None = None
        self._wakeup = Wakeup()

    def add(self, index: int) -> None:
        if not self._is_listed[index]:
            self._is_listed[index] = True
            self.order.append(index)
        self.wake()

    def drop_first(self) -> None:
        self._is_listed[self.order.popleft()] = False

    def listen(self, ready: Callable[[], None] | None) -> None:
        self._ready = ready
        if ready is not None and self.order:
            ready()

    def wake(self) -> None:
        if self._ready is not None:
            self._ready()
        self._wakeup.set()

    async def wait(self) -> None:
        await self._wakeup.wait()
