"""One streamed request, timed by its reader: what a Locust user does between two waits. Knows no Locust."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamserve_client import Client
from streamserve_client.types import Message, Usage


@dataclass
class Reading:
    """When the text of one answer came; times in seconds.

    gaps_s  between one piece of text and the next
    """

    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    characters: int = 0
    usage: Usage | None = None


def read_answer(
    client: Client, messages: list[Message], max_tokens: int, *, clock: Callable[[], float] = time.perf_counter
) -> Reading:
    """Ask, and read the answer to its end. Raises the client's errors."""
    reading, start_s = Reading(), clock()
    last_s: float | None = None
    with client.stream_chat(messages, max_tokens=max_tokens) as stream:
        for text in stream.text():
            now_s = clock()
            if last_s is None:
                reading.ttft_s = now_s - start_s
            else:
                reading.gaps_s.append(now_s - last_s)
            last_s = now_s
            reading.characters += len(text)
    reading.total_s, reading.usage = clock() - start_s, stream.usage
    return reading
