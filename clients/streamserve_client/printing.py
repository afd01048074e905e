"""Prints a stream to the terminal as it arrives, or its result as one line of JSON at the end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamserve_client import terminal
from streamserve_client.async_client import AsyncClient
from streamserve_client.streams import Stream
from streamserve_client.timing import Timing
from streamserve_client.types import ChatCompletion, Completion, Progress, Usage
from streamserve_client.websocket import WebSocketSession, WebSocketStream

AnyWebSocketStream = WebSocketStream[Completion] | WebSocketStream[ChatCompletion]


@dataclass
class StreamResult:
    """The result of a stream so far: its text, its figures and when they arrived."""

    timing: Timing = field(default_factory=Timing)
    text: str = ""
    id: str = ""
    model: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    _state: str = ""

    def read(self, stream: Stream[Completion] | Stream[ChatCompletion], *, show: bool) -> None:
        """Read the stream to its end, printing its text when `show`."""
        try:
            for chunk in stream:
                self.add(chunk, show=show)
        finally:
            self.show_progress("")

    def add(self, chunk: Completion | ChatCompletion, *, show: bool) -> None:
        """Add one chunk, printing its text when `show`."""
        self.id, self.model = chunk.id or self.id, chunk.model or self.model
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage
        if chunk.progress is not None:
            self.show_progress(state_of(chunk.progress))
        if chunk.text:
            self.show_progress("")
            self.timing.mark()
            self.text += chunk.text
            if show:
                terminal.write(chunk.text)

    def show_progress(self, state: str) -> None:
        """Show how far the answer is before its text, in place of what was shown before."""
        if state != self._state:
            terminal.status(state)
            self._state = state

    def as_json(self) -> str:
        """One line for scripts, non-ASCII text unescaped."""
        fields: dict[str, Any] = {
            "id": self.id,
            "model": self.model,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": None if self.usage is None else msgspec.to_builtins(self.usage),
            "ttft_s": self.timing.ttft_s,
            "tokens_per_s": self.timing.tokens_per_s(self.usage),
        }
        return json.dumps(fields, ensure_ascii=False)


def state_of(progress: Progress) -> str:
    """Progress in a few words for a person."""
    if progress.state == "queued":
        wait = "" if progress.wait_s is None else f", about {progress.wait_s:.0f} s"
        return f"queued: place {progress.position}{wait}"
    return f"reading the prompt: {progress.processed} of {progress.total} tokens"


def print_stream(open_stream: Callable[[], Stream[Completion] | Stream[ChatCompletion]], *, as_json: bool, stats: bool) -> None:
    """Open a stream, print it to its end, and close it however that goes. Its figures count from the call."""
    result = StreamResult()
    with open_stream() as stream:
        result.read(stream, show=not as_json)
    _print_end(result, as_json=as_json, stats=stats)


async def print_websocket_stream(
    client: AsyncClient, open_stream: Callable[[WebSocketSession], Awaitable[AnyWebSocketStream]], *, as_json: bool, stats: bool
) -> None:
    """As `print_stream`, over a WebSocket that carries this stream alone. Its figures count from the open socket."""
    async with client, client.websocket() as session:
        result = StreamResult()
        async with await open_stream(session) as stream:
            try:
                async for chunk in stream:
                    result.add(chunk, show=not as_json)
            finally:
                result.show_progress("")
    _print_end(result, as_json=as_json, stats=stats)


def _print_end(result: StreamResult, *, as_json: bool, stats: bool) -> None:
    terminal.write_line(result.as_json() if as_json else "")
    if stats:
        terminal.note(result.timing.summary(result.usage))
