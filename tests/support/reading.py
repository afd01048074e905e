"""Reading streams in tests."""

from __future__ import annotations

import anyio

from streamserve.engine.base import SequenceStream
from streamserve.types import TokenDelta


async def read_all(stream: SequenceStream) -> TokenDelta:
    """Everything until the end, as one delta."""
    whole = TokenDelta([])
    async for delta in stream:
        whole = whole.then(delta)
    return whole


async def next_push(stream: SequenceStream) -> None:
    """Return when the engine next pushes into a stream, taking nothing out."""
    pushed = anyio.Event()
    has_begun = False

    def ready() -> None:
        if has_begun:
            pushed.set()

    stream.listen(ready)
    has_begun = True
    await pushed.wait()
