"""One answer on its way to the terminal: printed as it comes, gathered for whoever wants it whole."""

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
from streamserve_client.types import ChatCompletion, Completion, Usage
from streamserve_client.websocket import WebSocketSession, WebSocketStream

AnyWebSocketStream = WebSocketStream[Completion] | WebSocketStream[ChatCompletion]


@dataclass
class Answer:
    """What has come so far."""

    timing: Timing = field(default_factory=Timing)
    text: str = ""
    id: str = ""
    model: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None

    def read(self, stream: Stream[Completion] | Stream[ChatCompletion], *, show: bool) -> None:
        """Take the stream to its end, printing its text when `show`."""
        for chunk in stream:
            self.add(chunk, show=show)

    def add(self, chunk: Completion | ChatCompletion, *, show: bool) -> None:
        """Take one chunk, printing its text when `show`."""
        self.id, self.model = chunk.id or self.id, chunk.model or self.model
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage
        if chunk.text:
            self.timing.mark()
            self.text += chunk.text
            if show:
                terminal.write(chunk.text)

    def as_json(self) -> str:
        """For scripts: one line, text unescaped."""
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


def present(stream: Stream[Completion] | Stream[ChatCompletion], answer: Answer, *, as_json: bool, stats: bool) -> None:
    """Show one stream the way the user asked, and leave it properly however that ends."""
    with stream:
        answer.read(stream, show=not as_json)
    finish(answer, as_json=as_json, stats=stats)


async def present_websocket(
    client: AsyncClient, ask: Callable[[WebSocketSession], Awaitable[AnyWebSocketStream]], *, as_json: bool, stats: bool
) -> None:
    """The same over a WebSocket of its own, for one stream."""
    async with client, client.websocket() as session:
        answer = Answer()
        async with await ask(session) as stream:
            async for chunk in stream:
                answer.add(chunk, show=not as_json)
    finish(answer, as_json=as_json, stats=stats)


def finish(answer: Answer, *, as_json: bool, stats: bool) -> None:
    """What comes after the text."""
    terminal.write_line(answer.as_json() if as_json else "")
    if stats:
        terminal.note(answer.timing.summary(answer.usage))
