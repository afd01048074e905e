"""How one model writes tool calls and reasoning, and the parser that its answers need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from streamserve.text.parsing.answer import NO_CALLS, AnswerParser
from streamserve.text.parsing.formats import CallFormat, ChannelFormat, ReasoningFormat
from streamserve.text.parsing.pieces import Parser
from streamserve.text.parsing.readers.calls import Functions


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The format of one model's tool calls and reasoning; made by `registry.dialect_of`.

    tool_calls  the name of the parser of calls; None when no parser fits the model
    channels    in place of calls and reasoning, where messages of channels are all that models write
    """

    tool_calls: str | None = None
    calls: CallFormat | None = None
    reasoning: ReasoningFormat | None = None
    channels: ChannelFormat | None = None

    @property
    def can_call(self) -> bool:
        """Whether calls can be told from content."""
        return self.tool_calls is not None

    @property
    def can_reason(self) -> bool:
        """Whether reasoning can be told from content."""
        return self.reasoning is not None or self.channels is not None

    @property
    def marks_calls(self) -> bool:
        """Whether calls can't be mistaken for a JSON answer."""
        return self.channels is not None or (self.calls is not None and bool(self.calls.openings))

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that parsers look for, and that may be special tokens."""
        return tuple(mark for each in (self.channels, self.calls, self.reasoning) if each is not None for mark in each.marks)

    def parser_factory(self, prompt: str, *, functions: Functions, continued: str | None = None) -> Callable[[], Parser] | None:
        """A function that makes a parser for each answer to `prompt`; None when answers can only be content.

        functions  those that were offered; none when answers hold no calls
        continued  the assistant's text so far, when the prompt ends inside of it
        """
        if self.channels is not None:
            return None if continued is not None else partial(AnswerParser.of_channels, self.channels)
        calls = self.calls if functions and self.calls is not None else NO_CALLS
        thinks = self.thinks(prompt, continued)
        if thinks is None and calls is NO_CALLS:
            return None
        reasoning = None if thinks is None else self.reasoning
        return partial(AnswerParser.of_calls, calls, functions, reasoning, is_thinking=bool(thinks))

    def thinks(self, prompt: str, continued: str | None) -> bool | None:
        """Whether an answer begins inside reasoning; None when it can contain no reasoning."""
        form = self.reasoning
        if form is None:
            return None
        if continued is not None:
            opened = any(mark in continued for mark in form.opens)
            return True if opened and not any(mark in continued for mark in form.closes) else None
        end = prompt.rstrip()
        if end.endswith(form.closes):
            return None
        return form.always or end.endswith(form.opens)
