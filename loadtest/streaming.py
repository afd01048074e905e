"""One streamed request and its times, as a Locust user makes it between two waits. Knows nothing of Locust."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamserve_client import Client
from streamserve_client.types import Message, Usage


@dataclass
class TimedStream:
    """When the text of one answer arrived; times in seconds.

    gaps_s  between one piece of text and the next
    """

    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    characters: int = 0
    usage: Usage | None = None


def stream_timed(
    client: Client, messages: list[Message], max_tokens: int, *, clock: Callable[[], float] = time.perf_counter
) -> TimedStream:
    """Send a request and read its stream to the end. Raises the client's errors."""
    timed, start_s = TimedStream(), clock()
    last_s: float | None = None
    with client.stream_chat(messages, max_tokens=max_tokens) as stream:
        for text in stream.text():
            now_s = clock()
            if last_s is None:
                timed.ttft_s = now_s - start_s
            else:
                timed.gaps_s.append(now_s - last_s)
            last_s = now_s
            timed.characters += len(text)
    timed.total_s, timed.usage = clock() - start_s, stream.usage
    return timed
