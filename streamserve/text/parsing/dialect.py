"""How one model writes tool calls and reasoning, and the parser that its answers need."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from streamserve.text.parsing.content import ContentParser
from streamserve.text.parsing.pieces import Parser
from streamserve.text.parsing.reasoning import END, START, ReasoningParser


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The format of one model's tool calls and reasoning; made by `registry.dialect_of`.

    tool_calls       the name of the parser of calls; None when no parser fits the model
    call_marks       texts that delimit calls, and may be special tokens
    reasons          whether answers may begin with reasoning
    always_reasons   whether they do even without an opening mark
    """

    tool_calls: str | None = None
    new_call_parser: Callable[[Collection[str]], Parser] | None = None
    call_marks: tuple[str, ...] = ()
    reasons: bool = False
    always_reasons: bool = False
    reasoning_marks: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that parsers look for."""
        return self.call_marks + self.reasoning_marks

    def parser_factory(
        self, prompt: str, *, functions: Collection[str], continued: str | None = None
    ) -> Callable[[], Parser] | None:
        """A function that makes a parser for each answer to `prompt`; None when answers can only be content.

        functions  the names of those that were offered; none when answers hold no calls
        continued  the assistant's text so far, when the prompt ends inside of it
        """
        new_call_parser = self.new_call_parser if functions else None
        new_answer = ContentParser if new_call_parser is None else partial(new_call_parser, functions)
        is_thinking = self.thinks(prompt, continued)
        if is_thinking is not None:
            return lambda: ReasoningParser(new_answer(), is_thinking=is_thinking)
        return None if new_answer is ContentParser else new_answer

    def thinks(self, prompt: str, continued: str | None) -> bool | None:
        """Whether an answer begins inside reasoning; None when it can contain no reasoning."""
        if not self.reasons:
            return None
        if continued is not None:
            return True if START in continued and END not in continued else None
        end = prompt.rstrip()
        if end.endswith(END):
            return None
        return self.always_reasons or end.endswith(START)
