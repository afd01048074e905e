"""The interactive chat: one line in, one streamed answer out, the whole conversation sent each time."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from streamserve_client import terminal
from streamserve_client.client import Client
from streamserve_client.errors import ClientError
from streamserve_client.printing import StreamResult
from streamserve_client.types import Message


class Conversation:
    """Runs until end of input or `/exit`. Ctrl-C stops an answer and keeps its text so far; at the prompt it exits."""

    def __init__(self, client: Client, model: str, messages: list[Message], sampling: dict[str, Any], *, stats: bool) -> None:
        self._client = client
        self._model = model
        self._messages = messages
        self._sampling = sampling
        self._stats = stats
        self._console = Console(stderr=True)

    def run(self) -> None:
        self._console.print(
            f"[bold]{self._model}[/]  [dim]/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer[/]"
        )
        opening = list(self._messages)
        while (line := self._read_line()) is not None:
            if line == "/reset":
                self._messages = list(opening)
            elif line:
                self._turn(line)

    def _read_line(self) -> str | None:
        try:
            line = str(
                click.prompt(
                    click.style(">", fg="cyan", bold=True), prompt_suffix=" ", default="", show_default=False, err=True
                )
            )
        except click.Abort:
            terminal.note("")
            return None
        return None if line.strip() == "/exit" else line.strip()

    def _turn(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        result = StreamResult()
        try:
            with self._client.stream_chat(self._messages, model=self._model, **self._sampling) as stream:
                result.read(stream, show=True)
        except KeyboardInterrupt:
            terminal.note(" [stopped]")
        except ClientError as error:
            # The server may recover: the conversation continues without this turn.
            self._messages.pop()
            terminal.note(f"\nerror: {error}" if result.text else f"error: {error}")
            return
        else:
            terminal.write_line("")
        self._messages.append({"role": "assistant", "content": result.text})
        if self._stats:
            terminal.note(result.timing.summary(result.usage))
