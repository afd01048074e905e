"""Rules and terminals of a grammar while it is written out, in Lark as llguidance reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from streamserve.text.schemas.call_schema import JSON_STYLE
from streamserve.text.schemas.references import with_local_references
from streamserve.text.schemas.weakening import without_annotations


class LarkRules:
    """Numbers rules and terminals, so that each is written once.

    special  ids of special tokens by their text
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self.special = special
        self._names: dict[str, str] = {}

    def source(self, start: str) -> str:
        """The grammar whose start rule has this body."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for body, name in self._names.items())])

    def rule(self, body: str) -> str:
        return self._names.setdefault(body, f"r{len(self._names)}")

    def terminal(self, body: str) -> str:
        return self._names.setdefault(body, f"T{len(self._names)}")

    def named(self, name: str, body: str) -> str:
        """A rule that refers to itself by its name."""
        return self._names.setdefault(body, name)

    @property
    def space(self) -> str:
        """Some white space; unbounded, a model may write nothing else."""
        return self.terminal(r"/[ \t\n\r]{0,8}/")

    @property
    def anything(self) -> str:
        return self.terminal("/(?s:.*)/")

    def literal(self, text: str) -> str:
        """A text that is no mark."""
        return json.dumps(text)

    def one_of(self, marks: Sequence[str]) -> str:
        """Any of some marks."""
        terms = [f"<[{self.special[mark]}]>" if mark in self.special else json.dumps(mark) for mark in marks]
        return terms[0] if len(terms) == 1 else f"({' | '.join(terms)})"

    def up_to(self, ends: Sequence[str], marks: Sequence[str] = ()) -> str:
        """Text that ends with its first of `marks`, by default `ends`, which is one of `ends`."""
        spelled = [mark for mark in marks or ends if mark not in self.special]
        terms = []
        for end in ends:
            if end in self.special:
                terms.append(f"{self.terminal(_without(spelled))} {self.one_of((end,))}")
            else:
                terms.append(self.terminal(f"/(?s:.*){pattern_of(end)}/ & ~/(?s:.*){_any_of(spelled)}(?s:.+)/"))
        return self.rule(" | ".join(terms))

    def text_without(self, marks: Sequence[str]) -> str:
        """Text without any of the marks."""
        return self.terminal(_without([mark for mark in marks if mark not in self.special]))


def json_rule(schema: Mapping[str, Any]) -> str:
    """The body of a rule for JSON that follows a schema."""
    return f"%json {json.dumps({**with_local_references(without_annotations(schema)), 'x-guidance': JSON_STYLE})}"


def pattern_of(text: str) -> str:
    """The expression of a text."""
    return re.escape(text).replace("/", r"\/")


def _any_of(marks: Sequence[str]) -> str:
    return pattern_of(marks[0]) if len(marks) == 1 else "(" + "|".join(map(pattern_of, marks)) + ")"


def _without(marks: Sequence[str]) -> str:
    return f"/(?s:.*)/ & ~/(?s:.*){_any_of(marks)}(?s:.*)/" if marks else "/(?s:.*)/"
