"""Reads answers that are messages of several channels, as gpt-oss writes them in OpenAI's harmony format.

A message is a header and a body (https://cookbook.openai.com/articles/openai-harmony):
`<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>`. The prompt ends with the first
message's role. What is no header is content.
"""

from __future__ import annotations

import re

from streamserve.text.parsing.formats import ChannelFormat
from streamserve.text.parsing.json_text import read_arguments
from streamserve.text.parsing.output import Output
from streamserve.text.parsing.pieces import Content, Reasoning
from streamserve.text.parsing.source import MarkSet, Reading, Source

_WORD = re.compile(r"[^\s<]*")
_WORD_LIMIT = 160


class ChannelsReader:
    """Reads one answer."""

    def __init__(self, source: Source, output: Output, format: ChannelFormat) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._roles = MarkSet((format.role,))
        self._parts = MarkSet((format.channel, format.constraint, format.recipient))
        self._body = MarkSet((format.body,))
        self._begins = MarkSet((format.begins, format.channel))
        self._ends = MarkSet((*format.ends, format.begins, format.channel))

    def read(self) -> Reading[None]:
        while (yield from self._source.peek()):
            self._source.begin_record()
            header = yield from self._header()
            if header is None:
                yield from self._no_message(self._source.take_record())
                continue
            self._source.drop_record()
            channel, recipient = header
            if recipient and channel != self._format.reasoning:
                yield from self._call(recipient.removeprefix(self._format.prefix))
            yield from self._text(is_reasoning=channel == self._format.reasoning, is_call=bool(recipient))

    def _header(self) -> Reading[tuple[str, str] | None]:
        """The channel and whom the message is for; None for what is no header."""
        source, format = self._source, self._format
        channel = recipient = ""
        if (yield from source.accept(MarkSet((format.begins,)))):
            yield from source.accept(self._roles)
        kinds = 0
        while True:
            yield from source.blanks()
            if (yield from source.accept(self._body)) == format.body:
                return channel, recipient
            part = yield from source.accept(self._parts)
            word = yield from source.whole_run(_WORD, _WORD_LIMIT)
            if part == format.channel:
                channel = word
            elif part == format.recipient:
                recipient = word
            elif not part:
                # The kind of a body may stand without its mark.
                kinds += 1
                if not (word and channel) or kinds > 1:
                    return None

    def _no_message(self, text: str) -> Reading[None]:
        """What a header was looked for in, and what follows up to the next message, is content."""
        self._output.content(text)
        while True:
            text, mark = self._source.up_to(self._begins)
            self._output.content(text)
            if mark:
                self._source.unread(mark)
            if mark or not (yield from self._source.more()):
                return

    def _call(self, name: str) -> Reading[None]:
        source, output = self._source, self._output
        yield from source.blanks()
        output.begin_call(name)
        if not (yield from source.peek()):
            return
        unfinished = yield from read_arguments(source, output.arguments)
        missing = "" if unfinished is None or source.is_cut else unfinished.missing
        if unfinished is None or missing:
            output.end_call(missing)

    def _text(self, *, is_reasoning: bool, is_call: bool) -> Reading[None]:
        """The body, or what is left of that of a call, up to its end."""
        blanks = (yield from self._source.blanks()) if is_call and not is_reasoning else ""
        show = self._output.reasoning if is_reasoning else self._output.content
        while True:
            text, mark = self._source.up_to(self._ends)
            if text:
                show(blanks + text)
                blanks = ""
            if mark and mark not in self._format.ends:
                self._source.unread(mark)
            if not mark and not blanks and self._source.is_read:
                self._output.quiet = self._ends.beginning_or_newline, Reasoning if is_reasoning else Content
            if mark or not (yield from self._source.more()):
                return
