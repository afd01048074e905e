"""One answer on its way to the terminal: printed as it comes, gathered for whoever wants it whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamserve_client import terminal
from streamserve_client.streams import Stream
from streamserve_client.timing import Timing
from streamserve_client.types import ChatCompletion, Completion, Usage


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
    terminal.write_line(answer.as_json() if as_json else "")
    if stats:
        terminal.note(answer.timing.summary(answer.usage))
