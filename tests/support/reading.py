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


async def read_together(streams: list[SequenceStream]) -> list[TokenDelta]:
    """Everything of several streams, each read by a task of its own."""
    wholes: dict[str, TokenDelta] = {}

    async def read(stream: SequenceStream) -> None:
        wholes[stream.sequence_id] = await read_all(stream)

    async with anyio.create_task_group() as tasks:
        for stream in streams:
            tasks.start_soon(read, stream)
    return [wholes[stream.sequence_id] for stream in streams]


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
