"""One streamed request over a raw socket, timed as cheaply as Python can.

A load generator that parses JSON is slower than the server it measures. This one records the time of every read that carries
events, counts events by the line that starts them, and looks into the last few kilobytes for the server's own token counts.
Reads may cut an event anywhere; the chunks of the HTTP response may not, and no server known to us cuts one there.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

EVENT = b"\ndata: {"
DONE = b"\ndata: [DONE]"
TAIL_BYTES = 8192
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens":\s*(\d+)')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_FINISH = re.compile(rb'"finish_reason":\s*"')


@dataclass(slots=True)
class StreamTimes:
    """The times of one streamed answer, in seconds of `time.perf_counter`.

    failure   why the request failed; "" when it succeeded
    reads_s   when each read that carried events arrived
    """

    started_s: float
    ended_s: float = 0.0
    failure: str = ""
    events: int = 0
    reads_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.reads_s[0] - self.started_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.reads_s, self.reads_s[1:], strict=False)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for less than two tokens."""
        if self.completion_tokens < 2:
            return None
        return (self.reads_s[-1] - self.reads_s[0]) / (self.completion_tokens - 1)


class StreamTimer(asyncio.Protocol):
    """Times one answer until the server closes the connection; then sets `finished`.

    requires_done  an answer without `[DONE]` is a failure; else any finish reason will do
    """

    def __init__(self, finished: asyncio.Future[StreamTimes], *, requires_done: bool) -> None:
        self._finished = finished
        self._requires_done = requires_done
        self._times = StreamTimes(started_s=time.perf_counter())
        self._seam = b""
        self._head = b""
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        # A pattern cut by the edge of a read is found with the end of the read before; that end is too short to hold it whole.
        count = (self._seam + data).count(EVENT)
        if count:
            self._times.events += count
            self._times.reads_s.append(time.perf_counter())
        self._seam = (self._seam + data)[-(len(EVENT) - 1) :]
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if len(self._head) < 16:
            self._head += data[:16]

    def connection_lost(self, exc: Exception | None) -> None:
        self._times.ended_s = time.perf_counter()
        self._times.prompt_tokens = _last_number(_PROMPT_TOKENS, self._tail)
        self._times.completion_tokens = _last_number(_COMPLETION_TOKENS, self._tail) or self._times.events
        self._times.failure = self._failure(exc)
        if not self._finished.done():
            self._finished.set_result(self._times)

    def _failure(self, error: Exception | None) -> str:
        status = self._head[9:12].decode("ascii", "replace")
        if error is not None:
            return type(error).__name__
        if status != "200":
            return f"HTTP {status}" if status else "no answer"
        if not self._times.events:
            return "no events"
        is_done = DONE in self._tail or (not self._requires_done and _FINISH.search(self._tail))
        return "" if is_done else "ended without its ending"


def _last_number(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0


async def stream_once(host: str, port: int, request: bytes, *, requires_done: bool, timeout_s: float) -> StreamTimes:
    """Send a request and time its answer to the end. A failure is in the result, never raised."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[StreamTimes] = loop.create_future()
    started_s = time.perf_counter()
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(timeout_s):
            stream = StreamTimer(finished, requires_done=requires_done)
            transport, _ = await loop.create_connection(lambda: stream, host, port)
            transport.write(request)
            return await finished
    except (OSError, TimeoutError) as error:
        return StreamTimes(started_s, time.perf_counter(), failure=type(error).__name__)
    finally:
        if transport is not None:
            transport.abort()
