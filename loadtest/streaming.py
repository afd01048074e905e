"""The times of a streamed answer, and the events of a stream, which has one end and a reason for it. Knows no Locust."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


class BrokenStream(Exception):
    """An answer that did not end once and for a reason."""


class FailedAnswer(Exception):
    """An answer that was refused, or ended with an error, whose code this has."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def raise_for_status(response: httpx.Response) -> None:
    """Raises `FailedAnswer` with the code of a refusal."""
    if response.status_code != 200:
        response.read()
        try:
            code = str(response.json()["error"]["code"])
        except (ValueError, LookupError, TypeError):
            raise BrokenStream(f"{response.status_code} without a reason: {response.content[:200]!r}") from None
        raise FailedAnswer(code)


@dataclass
class AnswerTimes:
    """When the text of one answer arrived; times in seconds since it was asked for.

    gaps_s  between one piece of text and the next
    """

    ttft_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    characters: int = 0
    _last_s: float = 0.0

    def observe(self, text: str, now_s: float) -> None:
        """A piece of text has arrived; an empty one is none."""
        if not text:
            return
        if self.ttft_s is None:
            self.ttft_s = now_s
        else:
            self.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s
        self.characters += len(text)


def completion_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a chat stream up to its end. Raises `BrokenStream` and `FailedAnswer`."""
    raise_for_status(response)
    reasons, is_done = [], False
    for line in response.iter_lines():
        if is_done and line:
            raise BrokenStream("something follows [DONE]")
        if line == "data: [DONE]":
            is_done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise FailedAnswer(str(event["error"]["code"]))
            reasons += [choice["finish_reason"] for choice in event["choices"] if choice["finish_reason"] is not None]
            yield event
    if not is_done or len(reasons) != 1:
        raise BrokenStream(f"{'' if is_done else 'no '}[DONE] after the reasons {reasons}")


def completion_text(event: dict[str, Any]) -> str:
    """The text of a chat chunk."""
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
