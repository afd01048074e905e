"""Reads an answer that may hold calls: content up to a mark, calls behind it, content again.

What turns out to be no call is content up to the fault, the mark included. Newlines before a mark, blanks between calls and
after the last one belong to the calls; all else is content, unchanged and in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamserve.text.parsing.formats import Call, CallFormat, CallList, JsonArguments, Mark, NamedCall, ObjectCall, Parameters
from streamserve.text.parsing.json_text import read_arguments
from streamserve.text.parsing.output import NotACall, Output
from streamserve.text.parsing.pieces import Content
from streamserve.text.parsing.readers.literals import LiteralsReader
from streamserve.text.parsing.readers.object_call import ObjectCallReader
from streamserve.text.parsing.readers.parameters import ParametersReader
from streamserve.text.parsing.source import BLANKS, MarkSet, Reading, Source

Functions = Mapping[str, Mapping[str, Any]]
"""Schemas of arguments by the names of the functions that were offered."""

_NAME = re.compile(r"[\w.:/-]*")
_NAME_LIMIT = 160
_ID = re.compile(r"[\w.:/-]*")
_NUMBERED = re.compile(r":\d+\Z")


class CallsReader:
    """Reads one answer.

    functions       None when any name is a function's
    on_only_content  called when all that follows is content
    """

    def __init__(
        self,
        source: Source,
        output: Output,
        format: CallFormat,
        functions: Functions | None,
        on_only_content: Callable[[], None],
    ) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._functions = functions
        self._on_only_content = on_only_content
        self._is_after_call = False
        self._blanks = ""

    def read(self) -> Reading[None]:
        if self._format.is_bare:
            yield from self._bare_calls()
        while self._format.openings:
            held, opening = yield from self._content()
            if not opening:
                return
            if opening in self._format.opens:
                self._source.begin_record(held, opening)
            else:
                self._source.begin_record(held)
                self._source.unread(opening)
            yield from self._try_calls()
        yield from self._rest()

    def _bare_calls(self) -> Reading[None]:
        """Calls that begin the answer, if it begins with some."""
        source = self._source
        source.begin_record()
        yield from source.blanks()
        yield from source.accept(self._format.leading)
        yield from self._try_calls()

    def _rest(self) -> Reading[None]:
        """All that follows, as content."""
        source = self._source
        blanks = (yield from source.blanks()) if self._is_after_call else ""
        if (yield from source.peek()):
            self._output.content(blanks)
            self._on_only_content()
        while True:
            self._output.content(source.take_all())
            if not (yield from source.more()):
                return

    def _content(self) -> Reading[tuple[str, str]]:
        """Content up to a mark: what was held back before that, and the mark, "" at the end."""
        held = ""
        while True:
            text, mark = self._source.up_to(self._format.openings)
            if not self._is_after_call or text.strip(BLANKS):
                shown = text.rstrip("\n")
                if shown:
                    self._output.content(held + shown)
                    self._is_after_call, held, text = False, "", text[len(shown) :]
            held += text
            if mark:
                return held, mark
            if not held and not self._is_after_call and self._source.is_read:
                self._output.quiet = self._format.openings.beginning_or_newline, Content
            if not (yield from self._source.more()):
                self._output.content("" if self._is_after_call else held)
                return "", ""

    def _try_calls(self) -> Reading[None]:
        """What follows a mark: calls, or what the record has of it, as content."""
        try:
            yield from self._calls()
        except NotACall:
            self._output.content(self._source.take_record())
            self._is_after_call = False

    def _calls(self) -> Reading[None]:
        source = self._source
        yield from source.blanks()
        calls = self._format.list_beginning_with((yield from source.peek()))
        if calls is None:
            raise NotACall
        if calls.opens:
            source.take(1)
            yield from source.blanks()
        yield from self._call(calls.call)
        while (yield from self._goes_on(calls)):
            yield from self._call(calls.call)
        source.unread(self._blanks)
        self._blanks = ""

    def _goes_on(self, calls: CallList) -> Reading[bool]:
        """Whether another call is to follow, what stands between having been read; else the end of the list has."""
        source = self._source
        # A bracket too many is forgiven where a mark follows it.
        self._blanks += yield from source.blanks("}" if isinstance(calls.call, ObjectCall) else "")
        separator = yield from source.accept(calls.separators)
        if separator:
            source.begin_record(self._blanks, separator)
            yield from source.blanks()
            if (yield from source.peek()) not in ("", calls.closes):
                return True
            source.drop_record()
            self._blanks = ""
        if (yield from source.accept(calls.closing)):
            self._blanks = yield from source.blanks()
        if (yield from source.accept(self._format.closing)):
            self._blanks = ""
            return False
        if calls.separator != "" or not calls.begins_with((yield from source.peek())):
            return False
        source.begin_record(self._blanks)
        return True

    def _call(self, call: Call) -> Reading[None]:
        """One call; what of the blanks after it has been read is in `_blanks`."""
        self._blanks = ""
        if isinstance(call, NamedCall):
            yield from self._named_call(call)
        elif (yield from self._source.peek()) == "{":
            yield from ObjectCallReader(self._source, self._output, call, self._announce).read()
        else:
            raise NotACall
        self._is_after_call = True

    def _named_call(self, call: NamedCall) -> Reading[None]:
        source = self._source
        yield from self._expect(call.before)
        yield from source.blanks()
        name, id = _name_and_id(call, (yield from source.whole_run(_NAME, _NAME_LIMIT)))
        yield from source.blanks()
        if (yield from source.accept(call.id_marks)):
            id = yield from source.whole_run(_ID, _NAME_LIMIT)
        yield from self._expect(call.between)
        yield from self._arguments(call, name, id)
        for mark in call.after:
            self._blanks += yield from source.blanks()
            if (yield from source.accept(mark.set)):
                self._blanks = ""

    def _expect(self, marks: Sequence[Mark]) -> Reading[None]:
        for mark in marks:
            yield from self._source.blanks()
            if not (yield from self._source.accept(mark.set)) and not mark.optional:
                raise NotACall

    def _arguments(self, call: NamedCall, name: str, id: str | None) -> Reading[None]:
        """The arguments; the call begins once it is sure to be one."""
        form = call.arguments
        if isinstance(form, JsonArguments):
            yield from self._json_arguments(call, name, id)
        elif isinstance(form, Parameters):
            ends = MarkSet((*(text for mark in call.after for text in mark.texts), *self._format.closes))
            parameters = ParametersReader(self._source, self._output, form, ends)
            yield from parameters.begin()
            self._announce(name, id)
            self._blanks = yield from parameters.read((self._functions or {}).get(name, {}))
        else:
            literals = LiteralsReader(self._source, self._output, form)
            yield from literals.begin()
            self._announce(name, id)
            yield from literals.read()

    def _json_arguments(self, call: NamedCall, name: str, id: str | None) -> Reading[None]:
        source, output = self._source, self._output
        yield from source.blanks()
        character = yield from source.peek()
        if character != "{" and all(mark.optional for mark in call.between):
            raise NotACall
        self._announce(name, id)
        if not character:
            return
        unfinished = yield from read_arguments(source, output.arguments)
        missing = "" if unfinished is None or source.is_cut else unfinished.missing
        if unfinished is None or missing:
            output.end_call(missing)

    def _announce(self, name: str, id: str | None = None) -> None:
        is_offered = self._functions is None or name in self._functions
        if not name or (self._format.is_bare and not is_offered):
            raise NotACall
        self._source.drop_record()
        self._output.begin_call(name, id)


def _name_and_id(call: NamedCall, text: str) -> tuple[str, str | None]:
    """The function's name in what stands for it, and the id if it is one."""
    name = text.removeprefix(call.prefix)
    return (_NUMBERED.sub("", name), text) if call.name_is_id else (name, None)
