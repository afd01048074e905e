"""A WebSocket client for tests: sends objects, sorts what comes by stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

TERMINAL = ("chat.completion.done", "completion.done", "error", "response.completed", "response.incomplete", "response.failed")
Event = dict[str, Any]


class Session:
    """One socket; `events` holds everything received, in order."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[Event] = []

    async def send(self, message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def chat(self, stream_id: str, text: str = "hi", **fields: Any) -> None:
        """Start a chat stream."""
        messages = [{"role": "user", "content": text}]
        await self.send({"type": "chat.completion.create", "stream_id": stream_id, "messages": messages, **fields})

    async def receive(self) -> Event:
        with anyio.fail_after(10):
            event: Event = json.loads(await self.connection.recv())
        self.events.append(event)
        return event

    async def ending(self, stream_id: str | None) -> Event:
        """Receive until the stream's terminal message."""
        while True:
            event = await self.receive()
            if event.get("stream_id") == stream_id and event["type"] in TERMINAL:
                return event

    async def chunk(self, stream_id: str, text: str) -> Event:
        """Receive until a chat stream has said `text`."""
        while True:
            event = await self.receive()
            if event.get("stream_id") == stream_id and self.text(stream_id) == text:
                return event

    async def closed(self) -> int:
        """Receive until the server closes; its code."""
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await self.receive()
        assert closed.value.rcvd is not None, "the connection was lost without a close frame"
        return closed.value.rcvd.code

    def of(self, stream_id: str | None) -> list[Event]:
        """What one stream has brought."""
        return [event for event in self.events if event.get("stream_id") == stream_id]

    def text(self, stream_id: str) -> str:
        """What a chat stream has said."""
        return text_of(self.of(stream_id))

    async def drop(self) -> None:
        """Lose the connection without a word."""
        self.connection.transport.abort()


def text_of(events: list[Event]) -> str:
    """What the chunks of a chat say."""
    chunks = [
        event["data"]["choices"][0] for event in events if event["type"] == "chat.completion.chunk" and event["data"]["choices"]
    ]
    return "".join(chunk["delta"].get("content") or "" for chunk in chunks)


def numbers(events: list[Event]) -> list[int]:
    return [event["sequence_number"] for event in events]


@asynccontextmanager
async def session(port: int, path: str = "/v1/ws", **options: Any) -> AsyncIterator[Session]:
    """Open a socket; `options` as in `websockets.connect`."""
    async with connect(f"ws://127.0.0.1:{port}{path}", **options) as connection:
        yield Session(connection)
