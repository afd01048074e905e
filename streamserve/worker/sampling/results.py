"""What a step sampled, on its way to the host: ids and log-probabilities by row.

Made on the launch thread, read on the wait thread once the step's event has passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from torch import Tensor

from streamserve.types import TokenLogprobs
from streamserve.worker.sampling.logprobs import HostLogprobs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DraftedCounts:
    """Of a step with drafts: how many lines each row has, and how many of their ids it took.

    accepted  [rows]  int32, on its way to the host
    """

    lines: list[int]
    accepted: Tensor


@dataclass(frozen=True, slots=True)
class HostSample:
    """Ids sampled for the rows of a step, one line of logits each, or several where rows have drafts.

    token_ids         [lines]  int64, on its way to the host
    drafted           set where rows have several lines
    logprob_requests  by row, the number of top alternatives to report, or None; read where there are `logprobs`
    logprobs          of all lines of the rows that request them
    """

    token_ids: Tensor
    drafted: DraftedCounts | None = None
    logprob_requests: Sequence[int | None] = ()
    logprobs: HostLogprobs | None = None

    def read_tokens(self) -> list[list[int]]:
        """The tokens that each row took. Only after the step's event has passed, as `read_logprobs`."""
        if self.drafted is None:
            tokens: list[list[int]] = self.token_ids.unsqueeze(1).tolist()
            return tokens
        ids = iter(self.token_ids.tolist())
        taken = zip(self.drafted.lines, self.drafted.accepted.tolist(), strict=True)
        return [_next(ids, num_lines)[:num_accepted] for num_lines, num_accepted in taken]

    def read_logprobs(self) -> list[list[TokenLogprobs] | None] | None:
        """By row, those of its tokens, or None where it requests none; None when no row requests any."""
        if self.logprobs is None:
            return None
        requests = self.logprob_requests
        lines = [1] * len(requests) if self.drafted is None else self.drafted.lines
        accepted = lines if self.drafted is None else self.drafted.accepted.tolist()
        num_tops = [
            num_top for num_top, count in zip(requests, lines, strict=True) if num_top is not None for _ in range(count)
        ]
        entries = iter(self.logprobs.read(num_tops))
        return [
            None if num_top is None else _next(entries, num_lines)[:num_accepted]
            for num_top, num_lines, num_accepted in zip(requests, lines, accepted, strict=True)
        ]


def _next(items: Iterator[T], count: int) -> list[T]:
    return list(islice(items, count))
