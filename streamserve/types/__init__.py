"""Types of the public API and of the engine socket: sampling parameters, sequence specs, deltas, finished outputs.

msgspec structs: they validate themselves, compare by value, and cross the engine socket as they are. No torch and no I/O; all
but the outputs and tallies are immutable.
"""

from streamserve.types.deltas import ErrorInfo, FinishReason, TextDelta, TextLogprob, TokenDelta, TokenLogprobs
from streamserve.types.engine import EngineInfo, EngineSnapshot, EngineStats, Tally, preemption_counts, step_sizes
from streamserve.types.outputs import CompletionOutput, EmbeddingOutput, EmbeddingRequestOutput, Logprob, RequestOutput
from streamserve.types.pooling import Pooling, PoolingKind, PoolingParams
from streamserve.types.progress import Progress
from streamserve.types.quota import Quota, Quotas
from streamserve.types.reasoning_marks import ReasoningMarks
from streamserve.types.sampling import (
    GREEDY_TEMPERATURE,
    LARGEST_FLOAT32,
    SMALLEST_FLOAT32,
    Sampling,
    SamplingParams,
    StructuredOutputs,
)
from streamserve.types.sequence import SequenceSpec
from streamserve.types.tenant import ANYONE, Tenant

__all__ = [
    "ANYONE",
    "GREEDY_TEMPERATURE",
    "LARGEST_FLOAT32",
    "SMALLEST_FLOAT32",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineInfo",
    "EngineSnapshot",
    "EngineStats",
    "ErrorInfo",
    "FinishReason",
    "Logprob",
    "Pooling",
    "PoolingKind",
    "PoolingParams",
    "Progress",
    "Quota",
    "Quotas",
    "ReasoningMarks",
    "RequestOutput",
    "Sampling",
    "SamplingParams",
    "SequenceSpec",
    "StructuredOutputs",
    "Tally",
    "Tenant",
    "TextDelta",
    "TextLogprob",
    "TokenDelta",
    "TokenLogprobs",
    "preemption_counts",
    "step_sizes",
]
