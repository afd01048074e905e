"""The marks of reasoning as token ids: whatever stands beside them, the engine finds them."""

from __future__ import annotations

from functools import cache

import pytest

from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig
from streamserve.scheduling.reasoning import ReasoningLimit
from streamserve.text.mark_tokens import MarkTokens
from streamserve.text.parsing.dialects.dialect import Dialect
from streamserve.text.parsing.dialects.known import CHANNELS, REASONING_FORMATS
from streamserve.text.tokenizers.tokenizer import Tokenizer, tokenizer_of
from streamserve.types import ReasoningMarks
from tests.support.byte_tokenizer import byte_tokenizer

GRANITE = Dialect(reasoning=REASONING_FORMATS["granite"])
HARMONY = Dialect(channels=CHANNELS)


@cache
def demo_tokenizer() -> Tokenizer:
    config = EngineConfig(model="demo")
    return tokenizer_of(config, checkpoint_of(config))


def marks_of(dialect: Dialect, thinks: bool | None, tokenizer: Tokenizer, *, may_call: bool = False) -> ReasoningMarks:
    marks = MarkTokens(tokenizer).reasoning(dialect, thinks, may_call=may_call)
    assert marks is not None
    return marks


@pytest.mark.parametrize("before", ["", " ", "\n\n", "done.\n", "So: "])
@pytest.mark.parametrize("behind", ["", " Yes", "\n", "\n\nYes", "Yes"])
def test_a_mark_of_plain_text_is_found_whatever_its_tokens_hold_beside_it(before: str, behind: str) -> None:
    tokenizer = demo_tokenizer()
    marks = marks_of(GRANITE, True, tokenizer)
    limit = ReasoningLimit(marks, 1000)
    for token_id in tokenizer.encode(f"{before}Here is my response:{behind}", add_special_tokens=False):
        limit.accept(token_id)
    assert limit.is_over


def test_what_ends_reasoning_is_read_as_its_end() -> None:
    tokenizer = byte_tokenizer()
    marks = marks_of(GRANITE, True, tokenizer)
    assert tokenizer.decode([ids[0] for ids in marks.ending]) == "Here is my response:"
    limit = ReasoningLimit(marks, 0)
    while (allowed := limit.plan()) is not None:
        limit.accept(allowed[0])
    assert limit.is_over


def test_the_analysis_of_channels_is_ended_by_another_message() -> None:
    tokenizer = byte_tokenizer()
    for may_call, ending in ((False, "final<|message|>"), (True, "f")):
        marks = marks_of(HARMONY, None, tokenizer, may_call=may_call)
        text = tokenizer.decode([ids[-1] for ids in marks.ending])
        assert text == f"<|end|><|start|>assistant<|channel|>{ending}"
        assert marks.ending[-1] == (sorted(b"cf") if may_call else [ord(">")])
        limit = ReasoningLimit(marks, 3)
        for token_id in b"<|channel|>analysis<|message|>abc":
            assert limit.plan() is None
            limit.accept(token_id)
        assert limit.plan() == [ord("<")]


def test_there_are_no_marks_where_there_is_no_reasoning() -> None:
    assert MarkTokens(byte_tokenizer()).reasoning(GRANITE, None, may_call=False) is None
    assert MarkTokens(byte_tokenizer()).reasoning(Dialect(), None, may_call=False) is None
