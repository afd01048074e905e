"""A sequence as the engine admits it."""

from __future__ import annotations

import msgspec

from streamserve.types.pooling import Pooling
from streamserve.types.reasoning_marks import ReasoningMarks
from streamserve.types.sampling import Sampling, StructuredOutputs
from streamserve.types.tenant import ANYONE, Tenant


class SequenceSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence as the engine admits it: tokens only, every default resolved.

    All that is needed to continue the sequence elsewhere: with `generated_token_ids` set, generation continues after them.

    sequence_id          unique in the engine while the sequence lives
    max_tokens           resolved: at least 1, and prompt + max_tokens fits max_model_len
    structured_outputs   what the text must conform to; the engine compiles it
    priority             lower runs first, under the priority policy
    cache_salt           sequences share cached prefixes only with the same salt
    max_time_s           seconds from admission after which the sequence ends with reason "time"
    reasoning            how its reasoning is told and ended; None where it has none, or can't be told
    reasoning_budget     tokens after which reasoning is ended; None for no limit
    tenant               whom it belongs to
    reports_progress     whether its place in the queue and the progress of its prompt are reported, until its first token
    patience_s           seconds that the client waits for its answer, where it says so; of a request's first sequence
    pooling              the sequence is a prompt of which a vector is made, and generates nothing; None for one that generates
    """

    sequence_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: Sampling
    generated_token_ids: list[int] = []
    structured_outputs: StructuredOutputs | None = None
    priority: int = 0
    cache_salt: str = ""
    max_time_s: float | None = None
    reasoning: ReasoningMarks | None = None
    reasoning_budget: int | None = None
    tenant: Tenant = ANYONE
    reports_progress: bool = False
    patience_s: float | None = None
    pooling: Pooling | None = None
