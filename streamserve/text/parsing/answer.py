"""The parser of one answer: drives the readers of its reasoning, calls and channels with the text as it arrives."""

from __future__ import annotations

from collections.abc import Callable

from streamserve.text.parsing.formats import CallFormat, ChannelFormat, ReasoningFormat
from streamserve.text.parsing.output import Output
from streamserve.text.parsing.pieces import Content, Piece
from streamserve.text.parsing.readers.calls import CallsReader, Functions
from streamserve.text.parsing.readers.channels import ChannelsReader
from streamserve.text.parsing.readers.reasoning import read_reasoning
from streamserve.text.parsing.source import Reading, Source

NO_CALLS = CallFormat(lists=())


class AnswerParser:
    """Parses as `read` reads.

    read  of a source and an output, and a function to call when all that follows is content
    """

    def __init__(self, read: Callable[[Source, Output, Callable[[], None]], Reading[None]]) -> None:
        self._source = Source()
        self._output = Output()
        self._is_plain = False
        self._reading: Reading[None] | None = read(self._source, self._output, self._become_plain)
        self._resume()

    @classmethod
    def of_calls(
        cls,
        format: CallFormat,
        functions: Functions | None = None,
        reasoning: ReasoningFormat | None = None,
        *,
        is_thinking: bool = False,
    ) -> AnswerParser:
        """For answers that may begin with reasoning and then are content and calls.

        functions  the functions that were offered; None when any may be called
        """

        def read(source: Source, output: Output, on_only_content: Callable[[], None]) -> Reading[None]:
            if reasoning is not None:
                yield from read_reasoning(source, output, reasoning, is_thinking=is_thinking)
            yield from CallsReader(source, output, format, functions, on_only_content).read()

        return cls(read)

    @classmethod
    def of_channels(cls, format: ChannelFormat) -> AnswerParser:
        """For answers that are messages of several channels."""
        return cls(lambda source, output, _: ChannelsReader(source, output, format).read())

    @property
    def passes_through(self) -> bool:
        return self._is_plain

    def push(self, text: str) -> list[Piece]:
        if self._is_plain:
            return [Content(text)] if text else []
        if not text:
            return []
        quiet = self._output.quiet
        if quiet is not None:
            pattern, kind = quiet
            if pattern.search(text) is None:
                return [kind(text)]
            self._output.quiet = None
        self._source.add(text)
        self._resume()
        return self._output.take()

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        self._source.end(is_cut=is_cut)
        self._resume()
        return self._output.take()

    def _resume(self) -> None:
        if self._reading is not None and next(self._reading, self) is self:
            self._reading = None

    def _become_plain(self) -> None:
        self._is_plain = True
