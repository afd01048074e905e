"""`streamserve chat`: a conversation with a model in this process, line by line.

Ctrl-C ends an answer that is being written; at the prompt it exits, as Ctrl-D and /exit do.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from streamserve.commands.engine_options import engine_config, engine_options
from streamserve.commands.local_model import LocalModel, local_model
from streamserve.commands.sampling_options import sampling_options, sampling_values
from streamserve.commands.vllm_command import VllmCommand
from streamserve.errors import InvalidRequest

HINT = "/clear starts anew, /exit leaves, Ctrl-C ends an answer."


@click.command(cls=VllmCommand)
@click.argument("message", required=False)
@engine_options
@sampling_options(max_tokens=512)
@click.option("--system", help="Instructions to the model, before the conversation.")
def chat(message: str | None, **values: Any) -> None:
    """Answer MESSAGE, or without one hold a conversation."""
    sampling = sampling_values(values)
    config = engine_config(None, values)
    with local_model(config) as model:
        session = ChatSession(model, sampling, values["system"], stats=values["stats"])
        if message is not None:
            session.send(message)
        else:
            _converse(session)


def _converse(session: ChatSession) -> None:
    if sys.stdin.isatty():
        print(HINT, file=sys.stderr)
    while (line := _read_line()) is not None and line != "/exit":
        if line == "/clear":
            session.clear()
        elif line:
            _send(session, line)


def _send(session: ChatSession, line: str) -> None:
    try:
        session.send(line)
    except KeyboardInterrupt:
        print("\n[stopped]", file=sys.stderr)
    except InvalidRequest as error:
        print(f"error: {error.message}", file=sys.stderr)


def _read_line() -> str | None:
    """The next line; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


class ChatSession:
    """The messages so far, without those whose answer was stopped or refused."""

    def __init__(self, model: LocalModel, sampling: dict[str, Any], system: str | None, *, stats: bool) -> None:
        self._model = model
        self._sampling = sampling
        self._initial = [{"role": "system", "content": system}] if system else []
        self._stats = stats
        self._messages = list(self._initial)

    def send(self, text: str) -> None:
        """Send a message and write the answer as it is generated."""
        messages = [*self._messages, {"role": "user", "content": text}]
        answer = self._model.answer(messages, self._sampling, stats=self._stats)
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        self._messages = list(self._initial)
