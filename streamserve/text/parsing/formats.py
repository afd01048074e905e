"""How dialects are written down: the data that the readers of calls and reasoning follow.

Marks are texts between which things stand; blanks may surround each of them. What a format says is what models were trained to
write; readers take less than that, too, where nothing else can be meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from streamserve.text.parsing.source import MarkSet

PYTHON_WORDS: Mapping[str, str] = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True)
class Mark:
    """One of some texts, at its place.

    optional  may be left out
    """

    texts: tuple[str, ...]
    optional: bool = False

    @cached_property
    def set(self) -> MarkSet:
        return MarkSet(self.texts)


@dataclass(frozen=True)
class JsonArguments:
    """Arguments as a JSON object."""

    marks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Arguments one after another, each between marks: texts as they are, all else as JSON, by the schema of the function.

    opens   before a name
    middle  between name and value
    closes  after a value
    padded  whether a newline after `middle` and one before `closes` are no part of the value
    """

    opens: str
    middle: tuple[str, ...]
    closes: str
    padded: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.opens, *self.middle, self.closes)


@dataclass(frozen=True, kw_only=True)
class Literals:
    """Arguments by name, with values as a programming language writes them.

    opens, closes  around all of them
    assigns        between name and value, of arguments; a colon inside of objects
    quotes         what texts stand between
    escapes        whether a backslash in them escapes
    words          values that have other names in JSON
    """

    opens: str
    closes: str
    assigns: str
    quotes: tuple[str, ...]
    escapes: bool = False
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def marks(self) -> tuple[str, ...]:
        return self.quotes

    @cached_property
    def quote_set(self) -> MarkSet:
        return MarkSet(self.quotes)


Arguments = JsonArguments | Parameters | Literals


@dataclass(frozen=True, kw_only=True)
class ObjectCall:
    """A call as a JSON object that names function and arguments.

    id_key  of the number that the model gives to the call, which comes first; "" for none
    """

    name_key: str = "name"
    arguments_key: str = "arguments"
    id_key: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class NamedCall:
    """A call whose function's name and arguments have places of their own.

    before      marks before the name
    prefix      written before the name, of the same kind of characters, and no part of it
    name_is_id  what stands for the name is the call's id, of which the name is a part: `prefix`name:number
    id_mark     before the id that may follow the name
    between     marks between name and arguments
    after       marks after the arguments; may be missing
    """

    before: tuple[Mark, ...] = ()
    prefix: str = ""
    name_is_id: bool = False
    id_mark: str = ""
    between: tuple[Mark, ...] = ()
    arguments: Arguments = JsonArguments()
    after: tuple[Mark, ...] = ()

    @cached_property
    def id_marks(self) -> MarkSet:
        return MarkSet((self.id_mark,) if self.id_mark else ())

    @property
    def arguments_stand_apart(self) -> bool:
        """Whether blanks may surround the arguments without being taken for a part of them."""
        return not isinstance(self.arguments, Literals)

    @property
    def marks(self) -> tuple[str, ...]:
        parts = (*self.before, *self.between, *self.after)
        id_mark = (self.id_mark,) if self.id_mark else ()
        return (*(text for part in parts for text in part.texts), *id_mark, *self.arguments.marks)


Call = ObjectCall | NamedCall


@dataclass(frozen=True, kw_only=True)
class CallList:
    """One call, or several.

    opens, closes  around all of them
    separator      between two; None for one call alone
    """

    call: Call
    opens: str = ""
    separator: str | None = None
    closes: str = ""

    @cached_property
    def separators(self) -> MarkSet:
        return MarkSet((self.separator,) if self.separator else ())

    @cached_property
    def closing(self) -> MarkSet:
        return MarkSet((self.closes,) if self.closes else ())

    def begins_with(self, character: str) -> bool:
        """Whether it can begin with this character."""
        if self.opens:
            return character == self.opens[0]
        if isinstance(self.call, ObjectCall):
            return character == "{"
        if self.call.before:
            return any(text[0] == character for text in self.call.before[0].texts)
        return character.isalnum() or character == "_"


@dataclass(frozen=True, kw_only=True)
class CallFormat:
    """How one dialect writes calls.

    opens    marks that begin calls anywhere in an answer
    closes   marks that end them; may be missing
    lists    the forms that calls have between these, told apart by their first characters
    is_bare  calls may begin an answer without a mark: then only functions that were offered are called
    leads    marks that may stand before such ones
    """

    lists: tuple[CallList, ...]
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    is_bare: bool = False
    leads: tuple[str, ...] = ()

    @cached_property
    def openings(self) -> MarkSet:
        """The marks at which calls are looked for."""
        return MarkSet((*self.opens, *(text for first in self._first_marks for text in first.texts)))

    @cached_property
    def closing(self) -> MarkSet:
        return MarkSet(self.closes)

    @cached_property
    def leading(self) -> MarkSet:
        return MarkSet(self.leads)

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """All texts that may be special tokens."""
        calls = (mark for each in self.lists for mark in each.call.marks)
        return tuple(dict.fromkeys((*self.opens, *self.closes, *self.leads, *calls)))

    @property
    def _first_marks(self) -> list[Mark]:
        """A call that begins with a mark of its own needs no other."""
        return [each.call.before[0] for each in self.lists if isinstance(each.call, NamedCall) and each.call.before]

    def list_beginning_with(self, character: str) -> CallList | None:
        return next((each for each in self.lists if each.begins_with(character)), None) if character else None


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """How one dialect writes reasoning before an answer.

    opens, closes  marks around it
    always         whether answers begin inside it although nothing opened it
    ended_by       marks of what may follow although nothing closed it
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    always: bool = False
    ended_by: tuple[str, ...] = ()

    @cached_property
    def opening(self) -> MarkSet:
        return MarkSet(self.opens)

    @cached_property
    def ending(self) -> MarkSet:
        return MarkSet((*self.closes, *self.ended_by))

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.opens, *self.closes)


@dataclass(frozen=True, kw_only=True)
class ChannelFormat:
    """An answer that is messages of several channels, each with a header that names its channel and whom it is for.

    begins      begins a message, before its role
    channel     before the channel's name
    constraint  before the name of the arguments' format
    body        ends a header
    ends        end a body
    recipient   before the name of whom a message is for, which is `prefix` and a function's name for calls
    reasoning, calls, final  names of channels
    """

    begins: str
    role: str
    channel: str
    constraint: str
    body: str
    ends: tuple[str, ...]
    recipient: str
    prefix: str
    reasoning: str
    calls: str
    final: str

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begins, self.channel, self.constraint, self.body, *self.ends)
