"""How one model writes tool calls and reasoning, and so which parser an answer of it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from streamserve.text.parsing.content import ContentParser
from streamserve.text.parsing.pieces import Parser
from streamserve.text.parsing.reasoning import END, START, ReasoningParser


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """Made by `registry.dialect_of`.

    tool_calls       the name of the parser of calls; None when the model is not known to write any
    call_marks       texts that mark calls, and may be special tokens
    reasons          whether answers may begin with reasoning
    reasons_at_once  whether they do even when no mark says so
    """

    tool_calls: str | None = None
    new_call_parser: Callable[[], Parser] | None = None
    call_marks: tuple[str, ...] = ()
    reasons: bool = False
    reasons_at_once: bool = False
    reasoning_marks: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that parsers look for."""
        return self.call_marks + self.reasoning_marks

    def parser_factory(self, prompt: str, *, calls: bool, continued: str | None = None) -> Callable[[], Parser] | None:
        """What makes a parser for each answer to `prompt`; None when an answer can be nothing but content.

        calls      whether tools were offered
        continued  the assistant's text so far, when the prompt ends inside of it
        """
        new_answer = self.new_call_parser if calls and self.new_call_parser is not None else ContentParser
        is_thinking = self.thinks(prompt, continued)
        if is_thinking is not None:
            return lambda: ReasoningParser(new_answer(), is_thinking=is_thinking)
        return None if new_answer is ContentParser else new_answer

    def thinks(self, prompt: str, continued: str | None) -> bool | None:
        """Whether an answer begins inside of reasoning; None when no reasoning can come any more."""
        if not self.reasons:
            return None
        if continued is not None:
            return True if START in continued and END not in continued else None
        end = prompt.rstrip()
        if end.endswith(END):
            return None
        return self.reasons_at_once or end.endswith(START)
