"""The content blocks of one message, as its text comes: which begins, what is added to it, which ends.

Runs where the message's script or collector does; both use it, so that streamed and whole messages are the same.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, NamedTuple

from streamserve.server.apis.openai.answers.reading import Reading
from streamserve.text.parsing.pieces import Content, Piece, Reasoning, ToolCallStart
from streamserve.types import TextDelta


class BlockStart(NamedTuple):
    """Block `number` begins as `block`, which is still empty."""

    number: int
    block: dict[str, Any]


class BlockDelta(NamedTuple):
    """More of the last block: `field` of a delta of type `kind`."""

    number: int
    kind: str
    field: str
    text: str


class BlockStop(NamedTuple):
    """The last block is whole."""

    number: int


Change = BlockStart | BlockDelta | BlockStop


class Blocks:
    """Reads the deltas of one message.

    reading  how the text is taken apart; None when all of it is one block of text
    """

    def __init__(self, reading: Reading | None) -> None:
        self._parser = None if reading is None else reading.new_parser()
        self._shows_reasoning = reading is None or reading.shows_reasoning
        self._num_blocks = 0
        self._open: str | None = None
        self._arguments: list[str] = []
        self._has_calls = False

    @property
    def plain_index(self) -> int | None:
        """The index of the block of text that all further text belongs to, unchanged; None while that is not known."""
        is_plain = self._open == "text" and (self._parser is None or self._parser.passes_through)
        return self._num_blocks - 1 if is_plain else None

    def read(self, delta: TextDelta) -> list[Change]:
        """What a delta changes, in order; with the last one, the last block ends."""
        changes: list[Change] = []
        for piece in self._pieces(delta):
            self._add(piece, changes)
        if delta.finish_reason is not None:
            self.close(changes)
        return changes

    def close(self, changes: list[Change]) -> None:
        """End the block that is open, if one is."""
        if self._open is not None:
            self._open = None
            changes.append(BlockStop(self._num_blocks - 1))

    def stop_reason(self, delta: TextDelta) -> dict[str, str | None]:
        """How the message ended, by its last delta: a stop string is named, and a call that is whole is one."""
        if isinstance(delta.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": delta.stop_reason}
        if delta.finish_reason in ("length", "time"):
            reason = "max_tokens"
        elif delta.finish_reason == "abort":
            reason = "abort"
        else:
            reason = "tool_use" if self._has_calls and parsed_input("".join(self._arguments)) is not None else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}

    def _pieces(self, delta: TextDelta) -> list[Piece]:
        if self._parser is None:
            return [Content(delta.text)]
        pieces = self._parser.push(delta.text) if delta.text else []
        return pieces if delta.finish_reason is None else [*pieces, *self._parser.finish(is_cut=delta.finish_reason != "stop")]

    def _add(self, piece: Piece, changes: list[Change]) -> None:
        match piece:
            case Content(text):
                self._add_text("text", "text", text, {"type": "text", "text": ""}, changes)
            case Reasoning(text):
                if self._shows_reasoning:
                    empty = {"type": "thinking", "thinking": "", "signature": ""}
                    self._add_text("thinking", "thinking", text, empty, changes)
            case ToolCallStart(_, name):
                self._has_calls = True
                self._arguments = []
                id = f"toolu_{secrets.token_hex(12)}"
                self._start("tool_use", {"type": "tool_use", "id": id, "name": name, "input": {}}, changes)
            case _:
                self._arguments.append(piece.json)
                changes.append(BlockDelta(self._num_blocks - 1, "input_json_delta", "partial_json", piece.json))

    def _add_text(self, kind: str, field: str, text: str, empty: dict[str, Any], changes: list[Change]) -> None:
        if not text:
            return
        if self._open != kind:
            self._start(kind, empty, changes)
        changes.append(BlockDelta(self._num_blocks - 1, f"{kind}_delta", field, text))

    def _start(self, kind: str, block: dict[str, Any], changes: list[Change]) -> None:
        self.close(changes)
        self._open = kind
        changes.append(BlockStart(self._num_blocks, block))
        self._num_blocks += 1


def parsed_input(text: str) -> dict[str, Any] | None:
    """The arguments of a call; None for a call that is not whole."""
    try:
        value = json.loads(text or "{}", strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
