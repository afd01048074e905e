"""Grammars of chat answers: text or a JSON value, after reasoning or not, or tool calls whose arguments follow their schemas.

Pure text, in Lark as llguidance reads it (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), written from
the data that the parsers of a dialect follow: what a grammar generates is what they read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamserve.text.grammars.argument_rules import argument_rules
from streamserve.text.grammars.lark_rules import LarkRules, json_rule, pattern_of
from streamserve.text.parsing.formats import CallFormat, CallList, ChannelFormat, NamedCall, ObjectCall, ReasoningFormat
from streamserve.text.schemas.call_schema import Function, call_schema


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """The forms that an answer may take.

    calls        how calls are written, None without calls
    channels     in place of that, for answers that are messages of channels
    reasoning    how reasoning is written
    functions    what may be called
    parallel     whether several times
    is_required  whether the answer is calls, and nothing else but reasoning
    answer       JSON schema of an answer that is no call; free text when None
    thinks       whether reasoning precedes JSON or required calls: True when it has begun, False when it may begin, else None
    special      ids of the marks that are special tokens of the vocabulary
    """

    calls: CallFormat | None = None
    channels: ChannelFormat | None = None
    reasoning: ReasoningFormat | None = None
    functions: Sequence[Function] = ()
    parallel: bool = True
    is_required: bool = False
    answer: Mapping[str, Any] | None = None
    thinks: bool | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    def lark(self) -> str:
        """The grammar's source."""
        rules = LarkRules(self.special)
        if self.channels is not None:
            start = _in_channels(self, self.channels, rules)
        elif self.answer is not None or self.is_required:
            start = _after_reasoning(self, _whole_answer(self, rules), rules)
        elif self.calls is not None and self.functions:
            start = _free(self, self.calls, rules)
        else:
            start = rules.anything
        return rules.source(start)


def _whole_answer(form: AnswerForm, rules: LarkRules) -> str:
    """A JSON value, or calls where there may be some."""
    forms = [] if form.answer is None else [rules.rule(json_rule(form.answer))]
    if form.calls is not None and form.functions:
        forms.append(_calls(form, form.calls, rules))
    return forms[0] if len(forms) == 1 else rules.rule(" | ".join(forms))


def _after_reasoning(form: AnswerForm, body: str, rules: LarkRules) -> str:
    if form.thinks is None or form.reasoning is None:
        return body
    begin = "" if form.thinks else f"{rules.one_of(form.reasoning.opens)} "
    thought = f"{begin}{rules.up_to(form.reasoning.closes)} {rules.space}"
    return f"{thought} {body}" if form.thinks else f"({thought})? {body}"


def _free(form: AnswerForm, calls: CallFormat, rules: LarkRules) -> str:
    """Text in which calls may stand; only instead of it where no mark begins them."""
    if not calls.openings:
        return f"{rules.terminal(_without_beginnings(calls, rules))} | {_calls(form, calls, rules)}"
    marks = calls.openings.marks
    begun = [f"{rules.up_to((mark,), marks)} {_rest(form, calls, mark, rules)}" for mark in _opens(calls)]
    one = rules.rule(" | ".join(begun))
    return f"{one}{'*' if form.parallel else '?'} {rules.text_without(marks)}"


def _without_beginnings(calls: CallFormat, rules: LarkRules) -> str:
    """The expression of a text that does not begin as calls do."""
    first = "".join(sorted({each.opens or "{" for each in calls.lists}))
    begins = [f"[{re.escape(first)}]", *(pattern_of(lead) for lead in calls.leads if lead not in rules.special)]
    return rf"/(?s:.*)/ & ~/[ \t\n\r]*({'|'.join(begins)})(?s:.*)/"


def _opens(calls: CallFormat) -> Sequence[str]:
    """The marks that calls are begun with: those of a call alone only where it has no others."""
    return calls.opens or calls.openings.marks


def _calls(form: AnswerForm, calls: CallFormat, rules: LarkRules) -> str:
    """Calls from their first mark on."""
    if not calls.openings:
        lead = f"({rules.one_of(calls.leads)})? " if calls.leads else ""
        return rules.rule(f"{lead}{_rest(form, calls, '', rules)}")
    begun = [f"{rules.one_of((mark,))} {_rest(form, calls, mark, rules)}" for mark in _opens(calls)]
    one = rules.rule(" | ".join(begun))
    return rules.rule(f"{one} ({rules.space} {one})*" if form.parallel else one)


def _rest(form: AnswerForm, calls: CallFormat, mark: str, rules: LarkRules) -> str:
    """What follows the mark that begins calls, up to their end."""
    lists = [_list(form, each, calls, mark, rules) for each in calls.lists]
    closes = ""
    if calls.closes and calls.openings:
        # A list with brackets of its own shows where it ends: some models write no mark after it.
        is_optional = all(each.closes for each in calls.lists)
        closes = f" ({rules.space} {rules.one_of(calls.closes[:1])}){'?' if is_optional else ''}"
    return rules.rule(f"{rules.space} ({' | '.join(lists)}){closes}")


def _list(form: AnswerForm, calls: CallList, format: CallFormat, mark: str, rules: LarkRules) -> str:
    first = _call(form, calls, rules, is_begun=mark not in format.opens and bool(mark))
    if calls.separator is None or not form.parallel or not (calls.separator or format.opens):
        several = first
    else:
        separator = f"{rules.one_of((calls.separator,))} {rules.space}" if calls.separator else ""
        several = f"{first} ({rules.space} {separator} {_call(form, calls, rules)})*"
    if not calls.opens:
        return rules.rule(several)
    return rules.rule(f'"{calls.opens}" {rules.space} {several} {rules.space} "{calls.closes}"')


def _call(form: AnswerForm, calls: CallList, rules: LarkRules, *, is_begun: bool = False) -> str:
    """One call of any of the functions; `is_begun` after its first mark."""
    if isinstance(calls.call, ObjectCall):
        schema, definitions = call_schema(form.functions, calls.call.arguments_key, calls.call.name_key, calls.call.id_key)
        return rules.rule(json_rule({**schema, "$defs": definitions}))
    return rules.rule(" | ".join(_named(calls.call, function, rules, is_begun=is_begun) for function in form.functions))


def _named(call: NamedCall, function: Function, rules: LarkRules, *, is_begun: bool) -> str:
    before = [rules.one_of(mark.texts) for mark in call.before[1 if is_begun else 0 :]]
    name = [rules.literal(call.prefix + function.name)]
    if call.name_is_id:
        name += ['":"', rules.terminal("/[0-9]{1,4}/")]
    between = [f"{rules.one_of(mark.texts)}{'?' if mark.optional else ''}" for mark in call.between]
    after = [rules.one_of(mark.texts) for mark in call.after]
    arguments = argument_rules(call.arguments, function, rules)
    if call.arguments_stand_apart:
        between, after = [rules.space, *between, rules.space], [rules.space, *_spaced(after, rules)]
    return rules.rule(" ".join([*before, *name, *between, arguments, *after]))


def _spaced(terms: Sequence[str], rules: LarkRules) -> list[str]:
    return [each for term in terms for each in (term, rules.space)][:-1]


def _in_channels(form: AnswerForm, channels: ChannelFormat, rules: LarkRules) -> str:
    """Reasoning in its channel, then the answer in the last one, or calls; after a prompt that ends with the first role."""

    def message(channel: str) -> str:
        return f"{rules.one_of((channels.channel,))} {rules.literal(channel)} {rules.one_of((channels.body,))}"

    again = f"{rules.one_of((channels.begins,))} {rules.literal(channels.role)}"
    thought = f"({message(channels.reasoning)} {rules.up_to(channels.ends[:1])} {again})?"
    text = rules.anything if form.answer is None else rules.rule(json_rule(form.answer))
    forms = [] if form.is_required else [f"{message(channels.final)} {text}"]
    if form.functions:
        forms.append(_channel_calls(form, channels, again, rules))
    return f"{thought} ({' | '.join(forms)})"


def _channel_calls(form: AnswerForm, channels: ChannelFormat, again: str, rules: LarkRules) -> str:
    header = f"{rules.one_of((channels.channel,))} {rules.literal(f'{channels.calls} {channels.recipient}{channels.prefix}')}"
    kind = f'" " {rules.one_of((channels.constraint,))} "json" {rules.one_of((channels.body,))}'
    calls = [f"{rules.literal(each.name)} {kind} {rules.rule(json_rule(each.arguments))}" for each in form.functions]
    one = rules.rule(f"{header} ({' | '.join(calls)})")
    ended = rules.one_of(channels.ends[1:2])
    return rules.rule(f"{one} ({ended} {again} {one})*" if form.parallel else one)
