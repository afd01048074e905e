"""`<think>…</think>` before an answer (Qwen3, DeepSeek-R1): the inside is reasoning, the rest another parser's."""

from __future__ import annotations

from enum import Enum

from streamserve.text.parsing.marker import split_at
from streamserve.text.parsing.pieces import Parser, Piece, Reasoning

START = "<think>"
END = "</think>"


class _State(Enum):
    UNDECIDED = "undecided"
    THINKING = "thinking"
    ANSWERING = "answering"


class ReasoningParser:
    """Splits the reasoning off the front.

    answer       reads everything after the reasoning
    is_thinking  the prompt ended with the opening marker already, as some templates' prompts do
    """

    def __init__(self, answer: Parser, *, is_thinking: bool = False) -> None:
        self._answer = answer
        self._state = _State.THINKING if is_thinking else _State.UNDECIDED
        self._held = ""
        self._trims = is_thinking
        self._may_repeat_start = is_thinking

    @property
    def passes_through(self) -> bool:
        return self._state is _State.ANSWERING and not self._trims and self._answer.passes_through

    def push(self, text: str) -> list[Piece]:
        if self._state is _State.ANSWERING:
            return self._push_answer(text)
        text, self._held = self._held + text, ""
        if self._state is _State.UNDECIDED:
            return self._decide(text)
        return self._think(text)

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        held, self._held = self._held, ""
        if self._state is _State.THINKING:
            return [Reasoning(held)] if held.strip() else []
        pieces = self._answer.push(held) if held else []
        return [*pieces, *self._answer.finish(is_cut=is_cut)]

    def _decide(self, text: str) -> list[Piece]:
        begun = text.lstrip()
        if begun.startswith(START):
            self._state, self._trims = _State.THINKING, True
            return self._think(begun.removeprefix(START))
        if START.startswith(begun):
            self._held = text
            return []
        self._state = _State.ANSWERING
        return self._answer.push(text)

    def _think(self, text: str) -> list[Piece]:
        if self._may_repeat_start:
            begun = text.lstrip()
            if begun != START and START.startswith(begun):
                self._held = text
                return []
            # The model wrote the mark although its reasoning had begun.
            self._may_repeat_start = False
            text = begun.removeprefix(START) if begun.startswith(START) else text
        if self._trims:
            text = text.lstrip("\n")
            self._trims = not text
        thought, rest, ended = split_at(text, END)
        if not ended:
            # Newlines before the end marker belong to the markup.
            shown = thought.rstrip("\n")
            self._held = thought[len(shown) :] + rest
            return [Reasoning(shown)] if shown else []
        self._state, self._trims = _State.ANSWERING, True
        thought = thought.rstrip("\n")
        return [*([Reasoning(thought)] if thought else []), *self._push_answer(rest)]

    def _push_answer(self, text: str) -> list[Piece]:
        if self._trims:
            text = text.lstrip("\n")
            self._trims = not text
        return self._answer.push(text) if text else []
