"""Reads the reasoning that a model writes before its answer."""

from __future__ import annotations

import re

from streamserve.text.parsing.formats import ReasoningFormat
from streamserve.text.parsing.output import Output
from streamserve.text.parsing.pieces import Reasoning
from streamserve.text.parsing.source import Reading, Source

_NEWLINES = re.compile(r"\n*")


def read_reasoning(source: Source, output: Output, format: ReasoningFormat, *, is_thinking: bool) -> Reading[None]:
    """Read it if the answer begins with some; newlines at its ends belong to the marks.

    is_thinking  the prompt ended with the opening mark already, as some templates' prompts do
    """
    blanks = yield from source.blanks()
    # A model may write the mark although its reasoning had begun.
    mark = yield from source.accept(format.opening)
    if mark not in format.opens and not is_thinking:
        source.unread(blanks + mark)
        return
    if mark not in format.opens:
        source.unread(blanks + mark)
    yield from source.whole_run(_NEWLINES)
    if (yield from _thought(source, output, format)):
        yield from source.whole_run(_NEWLINES)


def _thought(source: Source, output: Output, format: ReasoningFormat) -> Reading[bool]:
    """Whether it has ended before the text did."""
    held = ""
    while True:
        text, mark = source.up_to(format.ending)
        shown = text.rstrip("\n")
        if shown:
            output.reasoning(held + shown)
            held = ""
        held += text[len(shown) :]
        if mark in format.ended_by:
            source.unread(mark)
        if mark:
            return True
        if not held and source.is_read:
            output.quiet = format.ending.beginning_or_newline, Reasoning
        if not (yield from source.more()):
            return False
