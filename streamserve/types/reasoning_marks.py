"""How the tokens of a model's reasoning are told from the others of an answer, and which tokens end it.

Plain values, which cross the engine socket as part of a `SequenceSpec`. What marks say is known where text is; the engine
knows them as token ids.
"""

from __future__ import annotations

import msgspec


class ReasoningMarks(msgspec.Struct, frozen=True, array_like=True):
    """The marks of one answer's reasoning, each as the sequences of token ids that may spell it.

    opens      begin reasoning
    closes     end it
    answers    end it for good: no reasoning follows in this answer
    ending     what is generated to end reasoning early: for each place, the ids that may stand there
    has_begun  whether the prompt ended inside reasoning
    anywhere   whether reasoning may begin behind other text; else only where the answer begins
    """

    opens: list[list[int]]
    closes: list[list[int]]
    answers: list[list[int]]
    ending: list[list[int]]
    has_begun: bool = False
    anywhere: bool = False


__all__ = ["ReasoningMarks"]
